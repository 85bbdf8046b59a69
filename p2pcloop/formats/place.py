"""A name with the place of its record: `@key/label` behind the base of a mirror, or alone.

    @<key>/<label>
    https://host/dir/@<key>/<label>
    /directory/@<key>/<label>

A base ends in "/": a URL, or a directory, with the layout of docs/formats/mirror.md.
"""

from __future__ import annotations

from p2pcloop.errors import FormatError
from p2pcloop.formats.link import parse_mirror
from p2pcloop.formats.name import Name, parse_name
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr


@dataclass(frozen=True, slots=True)
class Place:
    """A name, and where to ask for it.

    Attributes:
        name: of the image, with its publisher's key.
        base: URL or directory, ending in "/"; "" for all sources.
    """

    name: Name
    base: str = ""

    def __str__(self) -> str:
        return f"{self.base}{self.name}"


def is_url(text: str) -> bool:
    """Whether the base of a mirror is a URL, not a directory."""
    return text[:8].lower().startswith(("http://", "https://"))


def parse_place(text: str) -> Place:
    """Read a name with or without a base; the directory is not checked.

    Raises:
        FormatError: it is not of that form.
    """
    base, at, name = text.rpartition("@")
    if is_url(text):
        if not at:
            raise FormatError(
                tr("{text!r} does not end in a name", text=text[:120]),
                hint="an image on the web is written https://HOST/DIR/@<key>/<label>",
            )
        base = parse_mirror(base)
    elif base and not base.endswith("/"):
        raise FormatError(tr("{text!r} has no `/` before the `@` of a name", text=text[:120]))
    return Place(parse_name(at + name), base)
