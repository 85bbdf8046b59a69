"""Catalogues of translations: the .po files of GNU gettext, read as they are.

They are read at run time, without a compiled form beside them that could be out of date: that takes
as long as gettext's own reader of .mo files, since both are a loop over all entries. The form is
that of the manual of GNU gettext, "The Format of PO Files"; `tools/translations.py` writes it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from gettext import c2py
from pathlib import Path
from string import Formatter

from p2pcloop.frozen import dataclass

FOLDER = Path(__file__).parent / "locale"

_ESCAPE = re.compile(r"\\(.)")
_ESCAPED = {"n": "\n", "t": "\t"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One text of a catalogue.

    Attributes:
        id: the English text, or its singular.
        plural: its plural, or "".
        texts: the translation, in as many forms as the language has.
        fuzzy: a person has yet to look at it: it is not used.
    """

    id: str
    plural: str
    texts: tuple[str, ...]
    fuzzy: bool = False


def read_entries(text: str) -> Iterator[Entry]:
    """Read the entries of a .po file, the header (with an empty id) first; obsolete ones not."""
    for paragraph in text.split("\n\n"):
        fields: dict[str, list[str]] = {}
        fuzzy = False
        for line in paragraph.splitlines():
            if line.startswith("#"):
                fuzzy |= line.startswith("#,") and "fuzzy" in line
                continue
            key, _, rest = line.partition('"')
            if key:
                parts = fields.setdefault(key.strip(), [])
            parts.append(_unescaped(rest.rstrip()[:-1]))
        if "msgid" in fields:
            told = ("".join(parts) for key, parts in fields.items() if key.startswith("msgstr"))
            plural = "".join(fields.get("msgid_plural", ()))
            yield Entry("".join(fields["msgid"]), plural, tuple(told), fuzzy)


def _unescaped(text: str) -> str:
    if "\\" not in text:
        return text
    return _ESCAPE.sub(lambda match: _ESCAPED.get(match[1], match[1]), text)


class Catalogue:
    """The translations of one language.

    Attributes:
        language: its code, `ja`.
        forms: of a number: 1 where there is no plural.
    """

    def __init__(self, language: str, source: str) -> None:
        self.language = language
        self._texts: dict[str, tuple[str, ...]] = {}
        self.forms = 1
        self._form: Callable[[int], int] = lambda _count: 0
        for entry in read_entries(source):
            if not entry.id:
                self.forms, self._form = _plural_forms(entry.texts[0])
            elif all(entry.texts) and not entry.fuzzy:
                self._texts[entry.id] = entry.texts

    def find(self, template: str) -> tuple[str, ...] | None:
        """The forms of a text in this language, or None if it lacks it."""
        return self._texts.get(template)

    def form(self, number: int, forms: Sequence[str]) -> str:
        """The one of these forms that a number takes."""
        return forms[min(self._form(number), len(forms) - 1)]


def placeholders(template: str) -> list[tuple[str, str | None, str | None]]:
    """What a template asks for, in order: name, format and conversion.

    Raises:
        ValueError: it is no template of `str.format`.
    """
    return [
        (name, spec, conversion)
        for _, name, spec, conversion in Formatter().parse(template)
        if name is not None
    ]


def _plural_forms(header: str) -> tuple[int, Callable[[int], int]]:
    """How many forms a language has for numbers, and which it uses for one: of its header."""
    match = re.search(r"nplurals=([0-9]+);\s*plural=([^;\n]+)", header)
    if match is None:
        return 1, lambda _count: 0
    rule: Callable[[int], int] = c2py(match[2].strip())
    return int(match[1]), rule


@cache
def catalogue(language: str) -> Catalogue | None:
    """The catalogue of a language, or None if there is none (or it is English)."""
    if not re.fullmatch(r"[a-z]{2,3}", language):
        return None
    try:
        source = (FOLDER / f"{language}.po").read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    return Catalogue(language, source)
