"""Texts that users read, in their language: English inside, translated where they are shown.

A text is written in English where it is made. `tr` returns that very English text, which also keeps
its template and its values, so that the place that shows it to a user (a terminal, a page) can
say it in another language: `translated`. So logs, JSON, files and what programs send to each other
are English whatever the language. English users pay for no catalogue (docs/translating.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Self

if TYPE_CHECKING:
    from p2pcloop.catalogue import Catalogue


class Text(str):
    """A text in English that can be said in another language.

    Attributes:
        template: the key in the catalogue, with `{name}` for each value.
        values: by name, for the template.
        number: what decides between singular and plural, or None.
    """

    __slots__ = ("number", "template", "values")

    template: str
    values: Mapping[str, Any]
    number: int | None

    def __new__(
        cls,
        english: str,
        template: str = "",
        values: Mapping[str, Any] | None = None,
        number: int | None = None,
    ) -> Self:
        """Make the text; see `tr`, which does it for a template."""
        self = super().__new__(cls, english)
        self.template = template or english
        self.values = values or {}
        self.number = number
        return self

    def __add__(self, other: str) -> Text:
        """Both together, as a text."""
        return Text(str.__add__(self, other), "{one}{two}", {"one": self, "two": other})

    def __radd__(self, other: str) -> Text:
        """Both together, as a text."""
        return Text(other + str(self), "{one}{two}", {"one": other, "two": self})


def tr(template: str, /, **values: object) -> str:
    """Mark a text for translation, and fill in its values as `str.format` does.

    Without values the text is taken as it stands, braces and all. An error as a value is told in
    the language of the whole.
    """
    if not values:
        return Text(template)
    kept = {name: _kept(value) for name, value in values.items()}
    return Text(template.format(**kept), template, kept)


def as_text(text: str) -> str:
    """A text that was not marked where it was written, such as the constant argument of a function
    that shows it, as a value of another text."""
    return text if isinstance(text, Text) else Text(text)


def tr_n(one: str, many: str, count: int, /, **values: object) -> str:
    """Mark a text that has a plural form; both may have `{count}`."""
    kept = {name: _kept(value) for name, value in values.items()} | {"count": count}
    return Text((one if count == 1 else many).format(**kept), one, kept, count)


def joined(between: str, texts: Iterable[str]) -> str:
    """Join texts, as `str.join` does."""
    parts = list(texts)
    names = [f"part{number}" for number in range(len(parts))]
    template = between.replace("{", "{{").replace("}", "}}").join(f"{{{name}}}" for name in names)
    return Text(between.join(parts), template, dict(zip(names, parts, strict=True)))


def _kept(value: object) -> object:
    """A value as a text keeps it: of an error, its message."""
    if not isinstance(value, Exception):
        return value
    message = getattr(value, "message", None)
    if isinstance(message, str):
        return as_text(message)
    # Of Python's own errors, what was marked: `str` makes plain English of it.
    return value.args[0] if len(value.args) == 1 and isinstance(value.args[0], Text) else value


def mapped(text: Text, change: Callable[[str], str]) -> Text:
    """Return a text whose words of strangers are changed: all its values but numbers."""
    values = {
        name: mapped(value, change)
        if isinstance(value, Text)
        else value
        if isinstance(value, int | float)
        else change(str(value))
        for name, value in text.values.items()
    }
    return Text(change(str(text)), text.template, values, text.number)


_current: Catalogue | None = None


def use(environment: Mapping[str, str]) -> None:
    """Have this process show texts in the language of its user, by the variables of the locale.

    A language without a catalogue, and the locales C and POSIX, are English.
    """
    global _current  # noqa: PLW0603  the language of a process
    _current = None
    locale = next(
        (environment[name] for name in ("LC_ALL", "LC_MESSAGES", "LANG") if environment.get(name)),
        "C",
    )
    if locale.partition(".")[0] in ("C", "POSIX"):
        return  # `LANGUAGE` counts for nothing then, as in the GNU programs
    wanted = environment.get("LANGUAGE", "").split(":")
    for each in filter(None, (*wanted, locale)):
        language = each.partition(".")[0].partition("@")[0].partition("_")[0]
        if language == "en":
            return
        from p2pcloop.catalogue import catalogue  # noqa: PLC0415  English users pay for none

        _current = catalogue(language)
        if _current is not None:
            return


def language() -> str:
    """The language of this process, as HTML and RFC 5646 name it: `en`, `ja`."""
    return "en" if _current is None else _current.language


def translated(text: str) -> str:
    """Return a text in the language of this process, to be shown at once.

    A text that was not marked is looked up as it stands: many are constants.
    """
    return text if _current is None else said_in(_current, text)


def translated_if_marked(text: str) -> str:
    """Return what may be a text or a name, to be shown at once: names stay."""
    return translated(text) if isinstance(text, Text) else text


def said_in(catalogue: Catalogue, text: str) -> str:
    """Return a text in the language of a catalogue; in English as far as it lacks it."""
    if not isinstance(text, Text):
        return (catalogue.find(text) or (text,))[0]
    forms = catalogue.find(text.template)
    if not text.values:
        return str(text) if forms is None else forms[0]
    if text.number is None:
        template = text.template if forms is None else forms[0]  # its values may have one
    elif forms is None:
        return str(text)
    else:
        template = catalogue.form(text.number, forms)
    fields = {
        name: said_in(catalogue, value) if isinstance(value, Text) else value
        for name, value in text.values.items()
    }
    try:
        return template.format(**fields)
    except (ValueError, LookupError, AttributeError, TypeError):
        return str(text)  # a person wrote the template, and it asks for something else


Packed = list[Any]
"""A text for another program: template, number or None, and values by name."""

_MAX_DEPTH = 8


def packed(text: str) -> Packed | None:
    """What another program needs beside the English text to say it in its user's language."""
    if not isinstance(text, Text):
        return None
    values = {
        name: [str(value), *(packed(value) or [])] if isinstance(value, Text) else _plain(value)
        for name, value in text.values.items()
    }
    return [text.template, text.number, values]


def _plain(value: object) -> int | float | str:
    if isinstance(value, float) or (isinstance(value, int) and abs(value) < 1 << 63):
        return value
    return str(value)


def unpacked(english: str, told: object, depth: int = 0) -> str:
    """A text of another program; plain English where `told` is not of the form of `packed`."""
    match told:
        case [str(template), int() | None as number, dict(values)] if depth < _MAX_DEPTH:
            kept: dict[str, object] = {}
            for name, value in values.items():
                match value:
                    case [str(inner), *rest]:
                        kept[str(name)] = unpacked(inner, rest, depth + 1)
                    case str() | int() | float():
                        kept[str(name)] = value
                    case _:
                        return english
            return Text(english, template, kept, number)
    return english
