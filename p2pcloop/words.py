"""Texts that users read, in their language: English inside, translated where they are shown.

A text is written in English where it is made. `tr` returns that very English text, which also keeps
its template and its values, so that the place that shows it to somebody (a terminal, a page) can
say it in another language: `translated`. So logs, JSON, files and what programs send to each other
are English whatever the language. English users pay for no catalogue (docs/translating.md).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
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


def tr(template: str, /, **values: object) -> str:
    """Mark a text for translation, and fill in its values as `str.format` does.

    Without values the text is taken as it stands, braces and all. An error as a value is told in
    the language of the whole.
    """
    if not values:
        return Text(template)
    kept = {name: _kept(value) for name, value in values.items()}
    return Text(template.format(**kept), template, kept)


def tr_n(one: str, many: str, count: int, /, **values: object) -> str:
    """Mark a text that has a plural form; both may have `{count}`."""
    kept = {name: _kept(value) for name, value in values.items()} | {"count": count}
    return Text((one if count == 1 else many).format(**kept), one, kept, count)


def _kept(value: object) -> object:
    """A value as a text keeps it: of an error, its message."""
    if isinstance(value, BaseException) and value.args and isinstance(value.args[0], Text):
        return value.args[0]
    return value


def mapped(text: Text, change: Callable[[str], str]) -> Text:
    """Return a text whose words of strangers are changed: each value that is a string."""
    values = {
        name: mapped(value, change)
        if isinstance(value, Text)
        else change(value)
        if isinstance(value, str)
        else value
        for name, value in text.values.items()
    }
    return Text(change(text), text.template, values, text.number)


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
    from p2pcloop.catalogue import catalogue  # noqa: PLC0415  English users pay for none

    wanted = environment.get("LANGUAGE", "").split(":")
    for each in filter(None, (*wanted, locale)):
        language = each.partition(".")[0].partition("@")[0].partition("_")[0]
        if language == "en":
            return
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
    return text if _current is None else _current.say(text)
