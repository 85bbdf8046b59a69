"""Names as users type them: a key by its first characters, an own image by its label."""

from __future__ import annotations

import re

from p2pcloop.errors import NotHereError, UsageError
from p2pcloop.formats.name import (
    KEY_CHARACTERS,
    Name,
    check_label,
    format_key,
    is_label,
    parse_name,
)
from p2pcloop.store.home import Home
from p2pcloop.store.names import ShortNames
from p2pcloop.store.records import Records
from p2pcloop.words import tr

_PREFIX = re.compile(r"@([a-z2-7]{1,51})/(.+)")


SHOWN_CHARACTERS = 4


def known_names(home: Home) -> list[Name]:
    """The names that were used here or have a short name, in order."""
    known = {record.name for record in Records(home).names()} | set(ShortNames(home).all().values())
    return sorted(known, key=str)


def short_key(name: Name) -> str:
    """Write a name with the first characters of its key, as `find_name` reads it."""
    return f"@{format_key(name.key)[:SHOWN_CHARACTERS]}/{name.label}"


def find_name(text: str, home: Home) -> Name:
    """Read `@<key>/<label>`; the first characters of a known key are enough.

    The keys of this home, and of names that were used here, are known.

    Raises:
        FormatError: it is not of that form.
        NotHereError: no known key begins with these characters.
        UsageError: several known keys do.
    """
    begun = _PREFIX.fullmatch(text)
    if begun is None:
        return parse_name(text)
    prefix, label = begun[1], check_label(begun[2])
    names = {
        each for each in known_names(home) if each.label == label and _begins(each.key, prefix)
    }
    if not names:
        names = {Name(key, label) for key in _our_keys(home) if _begins(key, prefix)}
    if len(names) > 1:
        found = ", ".join(sorted(map(str, names)))
        raise UsageError(
            tr("{text} may be one of {found}", text=text, found=found),
            hint="give more characters of the key",
        )
    if not names:
        raise NotHereError(
            tr("no name that begins with {text} is known here", text=text),
            hint=tr(
                "a key has {key_characters} characters: give all of them, or the link",
                key_characters=KEY_CHARACTERS,
            ),
        )
    return names.pop()


def own_name(label: str, home: Home) -> Name | None:
    """The name of an image that was published from this home under a label, if there is one.

    Raises:
        UsageError: several keys of this home published under it.
    """
    if not is_label(label) or not home.names.exists():
        return None
    names = [each.name for each in Records(home).names() if each.name.label == label]
    if not names:
        return None
    ours = _our_keys(home)
    own = [name for name in names if name.key in ours]
    if len(own) > 1:
        found = ", ".join(map(str, own))
        raise UsageError(
            tr("{label} may be one of {found}", label=label, found=found),
            hint="give the name with its key",
        )
    return own[0] if own else None


def _our_keys(home: Home) -> set[bytes]:
    from p2pcloop.store.keys import our_keys  # noqa: PLC0415  what reads keys loads in 10 ms

    return our_keys(home.keys)


def _begins(key: bytes, prefix: str) -> bool:
    return format_key(key).startswith(prefix)
