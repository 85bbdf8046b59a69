"""Names: `@<key>/<label>`. They are self-certifying, since the key that signs is in the name.

The key is the 32 bytes of an Ed25519 public key (RFC 8032) in lower-case base32 without padding
(RFC 4648, section 6): 52 characters. A label has one strict form, so that two names which look
alike are alike: 1 to 64 of `a-z 0-9 . _ -`, beginning and ending with a letter or a digit, and no
two dots in a row.
"""

from __future__ import annotations

import base64
import re

from p2pcloop.errors import FormatError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

KEY_SIZE = 32
KEY_CHARACTERS = 52
LABEL_MAX = 64

_LABEL = re.compile(rf"[a-z0-9](?:[a-z0-9._-]{{0,{LABEL_MAX - 2}}}[a-z0-9])?")
_KEY = re.compile(rf"[a-z2-7]{{{KEY_CHARACTERS}}}")


@dataclass(frozen=True, slots=True)
class Name:
    """A publisher (its public key, 32 bytes) and a label."""

    key: bytes
    label: str

    def __str__(self) -> str:
        return f"@{format_key(self.key)}/{self.label}"


def is_label(text: str) -> bool:
    """Whether a text is of the one strict form of labels."""
    return _LABEL.fullmatch(text) is not None and ".." not in text


def check_label(label: str) -> str:
    """Return `label` if it is of the one strict form.

    Raises:
        FormatError: it is not.
    """
    if not is_label(label):
        raise FormatError(
            tr("{label!r} is not a label", label=label[:80]),
            hint="a label is 1 to 64 of a-z, 0-9, '.', '_' and '-', with a letter or digit first "
            "and last and no '..'",
        )
    return label


def suggest_label(text: str) -> str:
    """Make a label of a file's name; a name that cannot become one is returned unusable."""
    label = re.sub(r"[^a-z0-9._]+", "-", text.lower())[:LABEL_MAX]
    return re.sub(r"\.{2,}", ".", label).strip("._-") or text


def format_key(key: bytes) -> str:
    """Write a public key as its 52 characters."""
    return base64.b32encode(key).decode("ascii").lower().rstrip("=")


def parse_key(text: str) -> bytes:
    """Read the 52 characters of a public key.

    Raises:
        FormatError: not a key, or one that is not in its only spelling.
    """
    if not _KEY.fullmatch(text):
        raise FormatError(
            tr("{text!r} is not a key", text=text[:80]),
            hint="a key is 52 of the characters a-z and 2-7",
        )
    key = base64.b32decode(text.upper() + "====")
    if format_key(key) != text:
        raise FormatError(
            tr("{text!r} is not a key: its last character has bits that must be zero", text=text)
        )
    return key


def parse_name(text: str) -> Name:
    """Read `@<key>/<label>`.

    Raises:
        FormatError: it is not of that form.
    """
    key, slash, label = text[1:].partition("/")
    if not text.startswith("@") or not slash:
        raise FormatError(
            tr("{text!r} is not a name", text=text[:120]), hint="a name is written @<key>/<label>"
        )
    return Name(parse_key(key), check_label(label))
