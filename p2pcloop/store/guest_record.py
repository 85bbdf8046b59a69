"""The record of a guest: record.json in its directory (guests.py)."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from p2pcloop.errors import FormatError
from p2pcloop.words import tr

_FORMAT = 1
_MAX_RECORD = 1 << 16


@dataclass(frozen=True, slots=True)
class GuestRecord:
    """What a guest is, and how it ended.

    Attributes:
        name: unique in the home.
        ref: the image, as the user named it.
        image: the image's name, or the path of its file.
        version: of the image; None for a file.
        overlay: the absolute path of the file that keeps the changes, or None.
        memory: bytes.
        network: as `boot --net` takes it.
        pid: the process that runs it.
        process_start: when that process started, as `process_start` tells.
        started: when, in seconds of Unix time.
        kept: whether the record stays when the guest has ended.
        ports: of the host, which lead into the guest, as `--port` takes them.
        opened: of the host, which the guest can connect to, as `--open` takes them.
        display: `kind`, `address`, `password` and, for browsers, `link` of its display
            (docs/display.md), or None.
        ended: when, or None while it runs.
        reason: what ended it (docs/guest.md), or "failed".
        exit_code: of the command that ran it.
        error: why it failed, for people.
        boot_seconds: until its first login prompt, or None.
        fetched: bytes that came for it until its end; None for an image that is a file here, and
            while it runs.
        address: IPv4 of its network card, or None if it has none or this machine does not know it.
        words: of the command that boots it, behind `p2pcloop boot`; None for a guest of `run`, and
            in records of older versions.
        directory: the working directory of that command.
        state: the name of the state that it was suspended as last, or None.
        state_version: of that state.
        host: the machine where a guest went on whose reason is "moved", or None.
    """

    name: str
    ref: str
    image: str
    version: int | None
    overlay: str | None
    memory: int
    network: str
    pid: int
    process_start: int
    started: float
    kept: bool
    ports: list[str] = field(default_factory=list)
    opened: list[str] = field(default_factory=list)
    display: dict[str, Any] | None = None
    ended: float | None = None
    reason: str | None = None
    exit_code: int | None = None
    error: str | None = None
    boot_seconds: float | None = None
    fetched: int | None = None
    address: str | None = None
    words: list[str] | None = None
    directory: str | None = None
    state: str | None = None
    state_version: int | None = None
    host: str | None = None


def encode_record(record: GuestRecord) -> bytes:
    """Return the content of record.json."""
    # ASCII: the bytes of a path that are no text become escapes, and come back as they were.
    return json.dumps({"format": _FORMAT} | asdict(record), indent=1).encode() + b"\n"


def decode_record(data: bytes, name: str) -> GuestRecord:
    """Read what `encode_record` made.

    Args:
        data: the content of record.json.
        name: of the guest, for messages.

    Raises:
        FormatError: it is damaged, or of another format.
    """
    try:
        if len(data) > _MAX_RECORD:
            raise FormatError(tr("it has {data_count} bytes", data_count=len(data)))
        value = json.loads(data)
        if not isinstance(value, dict) or value.pop("format", None) != _FORMAT:
            raise FormatError("it is of another format")
        known = {each.name for each in fields(GuestRecord)}
        record = GuestRecord(**{key: each for key, each in value.items() if key in known})
        _check_types(record)
    except (FormatError, TypeError, ValueError, RecursionError) as err:
        raise FormatError(
            tr("the record of the guest {name} is damaged: {err}", name=name, err=err),
            hint=tr("`p2pcloop rm --guest {name}` forgets it", name=name),
        ) from err
    return record


_TYPES: dict[str, type | tuple[type, ...]] = {
    "str": str,
    "int": int,
    "float": (int, float),
    "bool": bool,
    "list[str]": list,
    "dict[str, Any]": dict,
}


def _check_types(record: GuestRecord) -> None:
    for each in fields(record):
        kind, *none = str(each.type).split(" | ")
        value = getattr(record, each.name)
        if not (isinstance(value, _TYPES[kind]) or (value is None and none)):
            raise FormatError(tr("its {each} is {what!r}", each=each.name, what=value))
