"""What a request asks for, by the rules of RFC 9110 and 9112: target, range, preconditions.

Plain functions of headers: what a file is comes as its entity tag and its date.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from datetime import UTC
from http import HTTPStatus

Headers = Mapping[str, str]
"""A request's headers by their names in lower case."""

_ABSOLUTE = re.compile(r"https?://([^/?#]*)", re.IGNORECASE)
_HOST = re.compile(
    r"(?:\[[0-9a-fA-Fv:.]+\]|(?:[A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})*)(?::[0-9]*)?"
)
_RANGES = re.compile(r"\s*bytes\s*=(.*)", re.IGNORECASE)
_RANGE = re.compile(r"([0-9]*)-([0-9]*)")
_ENTITY_TAG = re.compile(r'\s*(W/)?("[\x21\x23-\x7e\x80-\xff]*")\s*(?:,|$)|\s*,')
_MAX_DIGITS = 18
"""Of a number in a range: more than any file has."""


def fields(lines: Iterable[tuple[bytes, bytes]]) -> Headers:
    """Headers as h11 gives them; several lines of one name are one list (RFC 9110, 5.3)."""
    found: dict[str, str] = {}
    for name, value in lines:
        key, text = name.decode("latin-1"), value.decode("latin-1")
        found[key] = f"{found[key]}, {text}" if key in found else text
    return found


def is_host(value: str) -> bool:
    """Whether a header Host is one (RFC 9110, 7.2): a host and perhaps a port, or nothing."""
    return _HOST.fullmatch(value) is not None


def path_of(target: str) -> str | None:
    """The path of a request's target without its first slash; None where it is no path.

    A query changes nothing: no file here depends on one. The absolute form is what proxies are
    sent, and must be taken by every server (RFC 9112, 3.2.2).
    """
    found = _ABSOLUTE.match(target)
    if found is not None:
        if not found[1] or "@" in found[1]:
            return None
        target = target[found.end() :]
        if not target.startswith("/"):
            target = "/" + target
    if not target.startswith("/"):
        return None
    return target.partition("?")[0].removeprefix("/")


def parse_range(wanted: str | None, size: int) -> tuple[int, int] | None:
    """Offset and length of a single range (RFC 9110, 14.1.2); None: the whole is asked for.

    A range outside the file has length 0. What is no single range of bytes is passed over (14.2).
    """
    found = _RANGES.fullmatch(wanted or "")
    ranges = [each.strip(" \t") for each in found[1].split(",")] if found else []
    ranges = [each for each in ranges if each]  # empty items of a list are nothing (5.6.1)
    one = _RANGE.fullmatch(ranges[0]) if len(ranges) == 1 else None
    if one is None or one[1] == one[2] == "":
        return None
    if not one[1]:
        length = min(_number(one[2]), size)
        return None if not size and _number(one[2]) else (size - length, length)
    first = _number(one[1])
    last = _number(one[2]) if one[2] else size - 1
    if one[2] and last < first:
        return None
    return first, max(0, min(last, size - 1) + 1 - first)


def precondition(headers: Headers, etag: str | None, modified: int | None) -> HTTPStatus | None:
    """What a GET or HEAD is answered instead (RFC 9110, 13.2.2); None where nothing forbids it.

    Args:
        etag: the file's entity tag, with its quotes; None where it has none.
        modified: seconds since 1970 (UTC); None where that is not known.
    """
    match = headers.get("if-match")
    unmodified = _date(headers.get("if-unmodified-since"))
    if match is not None:
        if not _lists(match, etag, weak=False):
            return HTTPStatus.PRECONDITION_FAILED
    elif unmodified is not None and modified is not None and modified > unmodified:
        return HTTPStatus.PRECONDITION_FAILED
    none_match = headers.get("if-none-match")
    since = _date(headers.get("if-modified-since"))
    if none_match is not None:
        if _lists(none_match, etag, weak=True):
            return HTTPStatus.NOT_MODIFIED
    elif since is not None and modified is not None and modified <= since:
        return HTTPStatus.NOT_MODIFIED
    return None


def range_applies(headers: Headers, etag: str | None, modified: int | None, now: float) -> bool:
    """Whether If-Range, if there is one, lets Range count (RFC 9110, 13.1.5).

    A date does where it is the file's own and so old that the file cannot have changed again
    within it (8.8.2.2).
    """
    wanted = headers.get("if-range")
    if wanted is None:
        return True
    wanted = wanted.strip(" \t")
    if wanted.startswith(('"', "W/")):
        return etag is not None and wanted == etag
    date = _date(wanted)
    return date is not None and date == modified and date < now - 1


def _lists(wanted: str, etag: str | None, *, weak: bool) -> bool:
    """Whether a list of entity tags names this one (RFC 9110, 8.8.3.2)."""
    if wanted.strip(" \t") == "*":
        return True
    return etag is not None and any(
        tag == etag and (weak or not is_weak) for is_weak, tag in _entity_tags(wanted)
    )


def _entity_tags(text: str) -> Iterable[tuple[bool, str]]:
    """The entity tags of a list, up to where it is none: whether each is weak, and its tag."""
    at = 0
    while at < len(text) and (found := _ENTITY_TAG.match(text, at)):
        at = found.end()
        if found[2] is not None:
            yield found[1] is not None, found[2]


def _date(text: str | None) -> int | None:
    """Seconds since 1970 of one of the three forms of dates (RFC 9110, 5.6.7); else None."""
    if text is None:
        return None
    from email.utils import parsedate_to_datetime  # noqa: PLC0415  rarely needed, and p2pcloopd starts sooner

    try:
        found = parsedate_to_datetime(text)
    except (ValueError, TypeError, IndexError, OverflowError):
        return None
    try:
        return int((found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp())
    except (ValueError, OverflowError):
        return None


def _number(digits: str) -> int:
    return int(digits) if len(digits) <= _MAX_DIGITS else 10**_MAX_DIGITS
