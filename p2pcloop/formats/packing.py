"""Canonical msgpack: one spelling for each value, so that its bytes can be signed and hashed.

Maps have text keys in sorted order, integers the shortest form (which msgpack's packer always
picks), no floats and no extension types. Reading checks that packing the result again gives the
very same bytes.
"""

from __future__ import annotations

import os
from typing import Any

import msgpack

from p2pcloop.errors import FormatError
from p2pcloop.words import tr

_TYPE_NAMES = {
    dict: "a map",
    list: "a list",
    str: "text",
    bytes: "bytes",
    int: tr("an integer"),
    bool: tr("true or false"),
}


def pack_canonical(value: dict[str, Any]) -> bytes:
    """Pack a map of text keys; nested maps are sorted as well."""
    packed: bytes = msgpack.packb(_sorted(value), use_bin_type=True)
    return packed


def unpack_canonical(data: bytes, what: str, limit: int) -> dict[str, Any]:
    """Read the map that `pack_canonical` wrote.

    Args:
        data: the bytes, all of them.
        what: what they should be, for messages ("a manifest").
        limit: bytes at most.

    Raises:
        FormatError: too long, not msgpack, not a map, or not canonical.
    """
    if len(data) > limit:
        raise FormatError(
            tr(
                "{what} of {data_count} bytes is over the limit of {limit}",
                what=what,
                data_count=len(data),
                limit=limit,
            )
        )
    try:
        value = msgpack.unpackb(data, raw=False, strict_map_key=True)
        if not isinstance(value, dict) or pack_canonical(value) != data:
            raise FormatError(tr("the bytes of {what} are not a canonical msgpack map", what=what))
    except (ValueError, TypeError, RecursionError, msgpack.UnpackException) as err:
        why = tr("they are a web page, of a login perhaps") if data.lstrip()[:1] == b"<" else err
        raise FormatError(
            tr("the bytes of {what} are not msgpack: {why}", what=what, why=why)
        ) from err
    return value


class Fields:
    """Takes checked values out of an unpacked map; a field that is left at the end is an error.

    Raises (every method):
        FormatError: the field is absent, of another type, or outside its bounds.
    """

    def __init__(self, values: object, what: str) -> None:
        if not isinstance(values, dict):
            raise FormatError(tr("{what} is not a map", what=what))
        self._values = dict(values)
        self._what = what

    def __contains__(self, key: str) -> bool:
        return key in self._values

    def keys(self, limit: int) -> tuple[str, ...]:
        """The names of the fields that are left, of which there are at most `limit`."""
        if len(self._values) > limit:
            raise FormatError(
                tr("{what} has more than {limit} fields", what=self._what, limit=limit)
            )
        return tuple(self._values)

    def _take(self, key: str, kind: type) -> Any:  # noqa: ANN401  narrowed by the callers
        if key not in self._values:
            raise FormatError(tr("{what} has no field {key!r}", what=self._what, key=key))
        value = self._values.pop(key)
        if type(value) is not kind:
            raise FormatError(
                tr(
                    "field {key!r} of {what} is not {type_names}",
                    key=key,
                    what=self._what,
                    type_names=_TYPE_NAMES[kind],
                )
            )
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        """An integer with low <= value <= high."""
        value: int = self._take(key, int)
        if not low <= value <= high:
            raise FormatError(
                tr(
                    "field {key!r} of {what} is not within {low} to {high}",
                    key=key,
                    what=self._what,
                    low=low,
                    high=high,
                )
            )
        return value

    def boolean(self, key: str) -> bool:
        """True or false."""
        value: bool = self._take(key, bool)
        return value

    def data(self, key: str, length: int) -> bytes:
        """Exactly `length` bytes."""
        value: bytes = self._take(key, bytes)
        if len(value) != length:
            raise FormatError(
                tr(
                    "field {key!r} of {what} is not {length} bytes long",
                    key=key,
                    what=self._what,
                    length=length,
                )
            )
        return value

    def blob(self, key: str, limit: int) -> bytes:
        """At most `limit` bytes."""
        value: bytes = self._take(key, bytes)
        if len(value) > limit:
            raise FormatError(
                tr(
                    "field {key!r} of {what} is longer than {limit} bytes",
                    key=key,
                    what=self._what,
                    limit=limit,
                )
            )
        return value

    def optional_data(self, key: str, length: int) -> bytes | None:
        """Exactly `length` bytes, or None if the field is absent."""
        return self.data(key, length) if key in self else None

    def text(self, key: str, limit: int) -> str:
        """Text of at most `limit` characters, without control characters."""
        value: str = self._take(key, str)
        if len(value) > limit or not value.isprintable():
            raise FormatError(
                tr("field {key!r} of {what} is too long or not printable", key=key, what=self._what)
            )
        return value

    def path(self, key: str, limit: int) -> str:
        """A path, or text with one in it: any bytes but NUL, at most `limit` of them.

        Bytes that are no UTF-8 become surrogates, as in Python's names of files (PEP 383).
        """
        value: str = self._take(key, str)
        if len(os.fsencode(value)) > limit or "\0" in value:
            raise FormatError(
                tr("field {key!r} of {what} is no path, or too long", key=key, what=self._what)
            )
        return value

    def items(self, key: str, limit: int) -> list[Any]:
        """A list of at most `limit` items."""
        value: list[Any] = self._take(key, list)
        if len(value) > limit:
            raise FormatError(
                tr(
                    "field {key!r} of {what} has more than {limit} items",
                    key=key,
                    what=self._what,
                    limit=limit,
                )
            )
        return value

    def map(self, key: str) -> Fields:
        """A map, as fields of its own."""
        return Fields(self._take(key, dict), tr("{key!r} of {what}", key=key, what=self._what))

    def end(self) -> None:
        """Check that no field is left."""
        if self._values:
            extra = ", ".join(sorted(map(repr, self._values)))
            raise FormatError(
                tr("{what} has unknown fields: {extra}", what=self._what, extra=extra)
            )


def _sorted(value: Any) -> Any:  # noqa: ANN401  any msgpack value
    if isinstance(value, dict):
        return {key: _sorted(value[key]) for key in sorted(value)}
    if isinstance(value, list):
        return [_sorted(item) for item in value]
    return value
