"""Undoing what mail, chats, web pages and shells do to a link, a name or a URL that is pasted.

A link of ours has neither white space nor quotes, brackets, backslashes or invisible characters.
What programs put around it or between its parts can therefore be told from it.
"""

from __future__ import annotations

import quopri
import re
from itertools import islice
from unicodedata import category
from urllib.parse import unquote

from p2pcloop.errors import FormatError, UsageError
from p2pcloop.formats.link import Link, parse_link

_BRACKETS = ("<>", "()", "[]", '""', "''", "``", "“”", "‘’", "«»")  # noqa: RUF001  meant

_OPENING = "<([{\"'`*„“”‚‘’«»‹›「『（《"  # noqa: RUF001  meant
_CLOSING = ">)}\"'`*„“”‚‘’«»‹›」』）》.,;:!?。，、；：！？"  # noqa: RUF001  meant
"""What may stand before and behind. A link that ends in one of these has it as `%29`."""

_END = re.compile(
    r"[\"<>|`{}„“”‚‘«»‹›「」『』（）《》。、…\x00-\x08\x0e-\x1f\x7f]"  # noqa: RUF001  meant
    r"|\](?=[\[(])"
)
_CLOSED_BY = {"'": "'", "‘": "’", "(": ")", "*": "*"}  # noqa: RUF001  meant
"""What ends a link that stands right behind the other; a link of ours has none of them."""

_WORDS_BEHIND = re.compile(r"[\s'’)*]|(?<=[!-~])[^\x00-\x7f]")  # noqa: RUF001  meant
"""Where words behind a link may begin: the last is Japanese, for example, without a space."""

_MAX_ENDS = 64
"""Places that are tried, as each takes a millisecond."""

_START = re.compile(r"(?<![\w./])magnet(?::|%(?:25)*3A)", re.IGNORECASE)
_REPLY = re.compile(r"^[ \t]*(?:>[ \t]?)+", re.MULTILINE)
"""What mail puts before the lines of a letter that is answered."""

_NOT_QUOTED = re.compile(r"=(?!3D|\r?\n|[0-9A-F]{2})")
_ENCODED = re.compile(r"x\.p2pcloop%(?:25)*3D", re.IGNORECASE)
_EQUALS = re.compile(r"([?&#][\w.]+)%(?:25)*3D", re.IGNORECASE)
_SECRET = re.compile(r"%23(key=[a-z2-7]{52})$", re.IGNORECASE)
_WIDE = str.maketrans("：？＆＝＃", ":?&=#")  # noqa: RUF001  what input methods of CJK write
_INVISIBLE = re.compile(
    "\x1b\\[[0-?]*[ -/]*[@-~]|\x1b\\]8;[^;]*;"
    "|[\u034f\u115f\u1160\u3164\uffa0\ufffc\ufe00-\ufe0f\U000e0100-\U000e01ef]"
)
"""What terminals read as colours, links or a paste, and characters without a look that are not of
category Cf."""

_JSON = re.compile(r"\\u00(2[0-9a-fA-F]|3[a-fA-F])")
"""How writers of JSON have `&`, `=`, `?` and `#`, lest a web page takes them for its own."""

_BREAK = re.compile(r"<w?br\s*/?>|`(?=[&?#])", re.IGNORECASE)
"""What web pages write where a line may end, and PowerShell's escape."""


def clean_pasted(text: str) -> str:
    """Undo changes that mail, chats, web pages and shells make to a link, a name or a URL.

    This removes what stands before and behind it, white space, line breaks and invisible
    characters, the escapes of shells (a backslash or `^` before `?` and `&`), and takes back
    quoted-printable and percent-encoding of the whole. `&amp;` stays, for `parse_link` to name it.
    A text that does not become a link, a name or a URL by that may be the name of a file.
    """
    if "=3D" in text and not _NOT_QUOTED.search(text):
        quoted = text.encode("utf-8", "surrogateescape")
        text = quopri.decodestring(quoted).decode("utf-8", "replace")
    text = _BREAK.sub("", _INVISIBLE.sub("", text))
    if _START.search(text.translate(_WIDE)):
        return _link(text.translate(_WIDE))
    text = _squeezed(text)
    bare = text.lstrip(_OPENING)
    if bare.startswith("@") or bare[:8].lower().startswith(("http://", "https://")):
        bare = bare.rstrip(_CLOSING + "]").replace("/%40", "/@")
        return bare.rstrip("/") if "/@" in bare else bare
    while len(text) > 1 and text[0] + text[-1] in _BRACKETS:
        text = text[1:-1]
    return text


def parse_pasted_link(text: str) -> Link:
    """Read a link as `clean_pasted` has it; if that is none, without the words behind it.

    A link may be broken by white space anywhere, so words behind it are told from its last part
    only because it is no link with them. A later part is never taken for words.

    Errors as of `parse_link`, for the whole text.
    """
    try:
        return parse_link(clean_pasted(text))
    except (FormatError, UsageError):
        ends = islice(_WORDS_BEHIND.finditer(text, text.rfind("=") + 1), _MAX_ENDS)
        for end in reversed([found.start() for found in ends]):
            try:
                return parse_link(clean_pasted(text[:end]))
            except (FormatError, UsageError):
                continue
        raise


def _link(text: str) -> str:
    """The link in a text, which holds its beginning."""
    text = _JSON.sub(lambda found: chr(int(found[1], 16)), _REPLY.sub("", text))
    if begin := _START.search(text):
        opening, text = text[: begin.start()][-1:], text[begin.start() :]
        inside = text.partition(_CLOSED_BY.get(opening, "\0"))[0]
        text = text if opening in inside else inside
    text = _squeezed(text)
    if end := _END.search(text):
        text = text[: end.start()]
    for _ in range(3):
        if not (encoded := _ENCODED.search(text)):
            break
        if "&" in text[: encoded.start()]:
            text = _EQUALS.sub(r"\1=", text)
        else:  # of a redirector's URL, what follows the encoded link is not a part of it
            text = unquote(text.partition("&")[0])
    text = re.sub(r"^(magnet):/*(\?|%3F)", r"\1:?", text, flags=re.IGNORECASE)
    text = text.rstrip(_CLOSING)
    while text.endswith("]") and text.count("]") > text.count("["):
        text = text[:-1].rstrip(_CLOSING)
    return _SECRET.sub(r"#\1", text)


def _squeezed(text: str) -> str:
    return "".join(c for c in text if not (c.isspace() or c in "\\^" or category(c) == "Cf"))
