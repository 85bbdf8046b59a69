"""The control protocol between p2pcloopd and its clients: bytes in, messages out, no socket.

A frame is a big-endian u32, the number of bytes that follow, and that many bytes of msgpack: one
map, as docs/formats/control.md gives it. Either side may have many requests under way; the client
numbers them. Rules:

- The client's first message is a request `hello` with its version; nothing else before its reply.
- Each request gets exactly one reply (result or failure), and any number of events before it.
- After `cancel` of a request the client must ignore messages for it that were already on their way.
  The server sends nothing more for that request, not even a reply.
- At most MAX_IN_FLIGHT requests run at a time for a connection; one more is refused (`BusyError`).

A peer that breaks the framing or these rules is dropped: `RemoteControlError`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import field
from typing import Any, NoReturn

import msgpack

from p2pcloop import errors
from p2pcloop.errors import DaemonError, FormatError, P2pcloopError, StorageError
from p2pcloop.frozen import dataclass
from p2pcloop.words import Packed, Text, mapped, packed, tr, unpacked

CONTROL_VERSION = 1

MAX_FRAME = 8 << 20
"""Bytes of one message at most, without its length field."""

MAX_READ = 4 << 20
"""Bytes that one `read` may ask for: half a frame."""

MAX_IN_FLIGHT = 512
"""Requests that a client may have under way on one connection."""

MAX_ID = (1 << 63) - 1
MAX_NAME = 64
"""Characters of an operation's or event's name at most."""

MAX_TEXT = 1 << 16
"""Bytes of one string in a message at most."""

MAX_ITEMS = 1 << 17
"""Items of one list or map in a message at most: files of a layout, peers of a torrent."""

_LENGTH = 4
_KINDS = {
    kind.__name__: kind
    for kind in vars(errors).values()
    if isinstance(kind, type) and issubclass(kind, P2pcloopError)
}


class RemoteControlError(FormatError):
    """The other side broke the control protocol: drop the connection."""


class LocalControlError(P2pcloopError):
    """Our own bug: we were about to send a message that the protocol does not allow."""


@dataclass(frozen=True, slots=True)
class Request:
    """The client asks for an operation; only the types of `args` have been checked."""

    id: int
    op: str
    args: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Reply:
    """The operation is done."""

    id: int
    result: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Failure:
    """The operation ended in an error, which has the class that was raised in p2pcloopd."""

    id: int
    error: P2pcloopError


@dataclass(frozen=True, slots=True)
class Event:
    """A report about a request that is still running."""

    id: int
    event: str
    fields: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Cancel:
    """The client does not want the request of this id any more."""

    id: int


Message = Request | Reply | Failure | Event | Cancel


class ControlReceiver:
    """Turns a stream of bytes, cut anywhere, into messages.

    Holds at most one incomplete frame (MAX_FRAME bytes) and the bytes of one call to `receive`.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()

    @property
    def pending(self) -> int:
        """Bytes of an incomplete message. At the end of the stream they must be 0."""
        return len(self._buffer)

    def receive(self, data: bytes | bytearray | memoryview) -> list[Message]:
        """Take the next bytes of the stream; return the messages that they complete, in order.

        Raises:
            RemoteControlError: they are not the protocol; the stream is of no more use.
        """
        self._buffer += data
        messages = []
        start = 0
        while (end := self._frame_end(start)) is not None:
            with memoryview(self._buffer) as whole, whole[start + _LENGTH : end] as frame:
                messages.append(decode(frame))
            start = end
        del self._buffer[:start]
        return messages

    def _frame_end(self, start: int) -> int | None:
        body = start + _LENGTH
        if len(self._buffer) < body:
            return None
        length = int.from_bytes(self._buffer[start:body])
        if not 0 < length <= MAX_FRAME:
            raise RemoteControlError(
                tr(
                    "a control message of {length} bytes (1 to {max_frame})",
                    length=length,
                    max_frame=MAX_FRAME,
                )
            )
        return body + length if len(self._buffer) >= body + length else None


def encode(message: Message) -> bytes:
    """Make the frame of a message.

    Raises:
        LocalControlError: it holds a value that msgpack lacks, or is larger than a frame may be.
    """
    try:
        # Names of files need not be Unicode: their bytes are sent unchanged (PEP 383).
        body: bytes = msgpack.packb(_to_map(message), unicode_errors="surrogateescape")
    except (TypeError, ValueError, OverflowError) as err:
        raise LocalControlError(
            tr("a {name} cannot be sent: {err}", name=type(message).__name__, err=err)
        ) from err
    if len(body) > MAX_FRAME:
        raise LocalControlError(
            tr(
                "a {name} of {body_count} bytes is too large",
                name=type(message).__name__,
                body_count=len(body),
            )
        )
    return len(body).to_bytes(_LENGTH) + body


def decode(frame: bytes | memoryview) -> Message:
    """Check one frame's body whole and return the message in it.

    Raises:
        RemoteControlError: it is not a message of this protocol.
    """
    try:
        value = msgpack.unpackb(
            frame,
            raw=False,
            unicode_errors="surrogateescape",
            strict_map_key=True,
            object_pairs_hook=_unique,
            ext_hook=_no_ext,
            max_ext_len=0,
            max_str_len=MAX_TEXT,
            max_array_len=MAX_ITEMS,
            max_map_len=MAX_ITEMS,
        )
    except (ValueError, msgpack.UnpackException, RecursionError) as err:
        raise RemoteControlError(
            tr("a control message is not msgpack as agreed: {err}", err=err)
        ) from err
    if not isinstance(value, dict):
        raise RemoteControlError("a control message is not a map")
    return _from_map(value)


def _unique(pairs: list[tuple[Any, Any]]) -> dict[str, Any]:
    fields = dict(pairs)
    if len(fields) != len(pairs) or not all(isinstance(key, str) for key in fields):
        raise ValueError("a map with a key twice, or one that is no string")
    return fields


def _no_ext(code: int, data: bytes) -> NoReturn:
    raise ValueError(f"an extension type ({code}, {len(data)} bytes)")


def _to_map(message: Message) -> dict[str, Any]:
    match message:
        case Request(id, op, args):
            return {"id": id, "op": op, "args": args}
        case Reply(id, result):
            return {"id": id, "ok": True, "result": result}
        case Failure(id, error):
            return {"id": id, "ok": False, "error": _error_to_map(error)}
        case Event(id, event, fields):
            return {"id": id, "event": event} | fields
        case Cancel(id):
            return {"cancel": id}


def _from_map(value: dict[str, Any]) -> Message:
    match value:
        case {"cancel": id, **rest} if _is_id(id) and not rest:
            return Cancel(id)
        case {"id": id, "op": str(op), "args": dict(args), **rest} if _is_id(id) and not rest:
            _check_name(op)
            return Request(id, op, args)
        case {"id": id, "ok": True, "result": dict(result), **rest} if _is_id(id) and not rest:
            return Reply(id, result)
        case {"id": id, "ok": False, "error": dict(error), **rest} if _is_id(id) and not rest:
            return Failure(id, _error_from_map(error))
        case {"id": id, "event": str(event), **fields} if _is_id(id):
            _check_name(event)
            return Event(id, event, fields)
    raise RemoteControlError("a map that is no control message")


def _is_id(value: object) -> bool:
    return type(value) is int and 0 <= value <= MAX_ID


def _check_name(name: str) -> None:
    if not 0 < len(name) <= MAX_NAME:
        raise RemoteControlError(
            tr(
                "a name of {name_count} characters (1 to {max_name} may be)",
                name_count=len(name),
                max_name=MAX_NAME,
            )
        )


def _error_to_map(error: P2pcloopError) -> dict[str, Any]:
    kind = next(base for base in type(error).__mro__ if _KINDS.get(base.__name__) is base)
    fields: dict[str, Any] = {
        "kind": kind.__name__,
        "message": _sendable(str(error)),
        "hint": None if error.hint is None else _sendable(error.hint),
    }
    # With these the client says it in its user's language; left out where they would not fit.
    told = {"message": _told(error.message), "hint": _told(error.hint)}
    if len(repr(told)) < MAX_TEXT // 4:
        fields["told"] = told
    if isinstance(error, StorageError):
        fields["errno"] = error.errno
    return fields


def _told(text: str | None) -> Packed | None:
    return packed(mapped(text, _sendable)) if isinstance(text, Text) else None


def _sendable(text: str) -> str:
    """At most MAX_TEXT bytes; bytes that are no Unicode (another encoding) as `\\udce9`."""
    return text.encode("utf-8", "backslashreplace").decode()[: MAX_TEXT // 4]


def _error_from_map(fields: Mapping[str, Any]) -> P2pcloopError:
    match fields:
        case {"kind": str(kind), "message": str(message), "hint": str() | None as hint}:
            told = fields.get("told")
            if isinstance(told, dict):  # not from a p2pcloopd of before
                message = unpacked(message, told.get("message"))
                hint = hint and unpacked(hint, told.get("hint"))
            if kind != "StorageError":
                return _KINDS.get(kind, DaemonError)(message, hint=hint)
            errno = fields.get("errno")
            if type(errno) is not int or not 0 <= errno < 1 << 16:
                raise RemoteControlError("a StorageError without its errno")
            return StorageError(message, errno=errno, hint=hint)
    raise RemoteControlError("a map that is no error")
