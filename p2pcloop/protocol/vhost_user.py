"""vhost-user messages, the back end's side: framing and codes.

Source: QEMU's `docs/interop/vhost-user.rst`. `MessageReader` cuts the stream of a front end into
messages, `vhost_session` applies them. File descriptors are opaque numbers here.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Sequence

from p2pcloop.errors import P2pcloopError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

MAX_PAYLOAD = 4096
"""Bytes of a payload at most; the longest known one, a full memory table, has 264."""

MAX_REGIONS = 8
HEADER_SIZE = 12

_HEADER = struct.Struct("<III")
_VERSION, _VERSION_MASK, _REPLY, _NEED_REPLY = 1, 3, 4, 8


class Code(enum.IntEnum):
    """The requests of a front end that are known here."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    SET_MEM_TABLE = 5
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24


class ProtocolError(P2pcloopError):
    """The front end broke the protocol; the connection is of no more use."""


class RefusedError(P2pcloopError):
    """A message cannot be applied; the front end gets an answer if it asked for one."""


@dataclass(frozen=True, slots=True)
class Message:
    """One message of the front end."""

    code: int
    needs_reply: bool
    payload: bytes
    fds: tuple[int, ...]


class MessageReader:
    """Cuts a stream into messages.

    Give it at most `wanted` bytes at a time: the kernel delivers a descriptor with the first byte
    that was sent with it, so a descriptor then always belongs to this message.
    """

    def __init__(self) -> None:
        self._data = bytearray()
        self._fds: list[int] = []

    @property
    def wanted(self) -> int:
        """Bytes missing to the end of the header or, after that, of the message."""
        if len(self._data) < HEADER_SIZE:
            return HEADER_SIZE - len(self._data)
        return HEADER_SIZE + self._payload_size() - len(self._data)

    @property
    def fds(self) -> tuple[int, ...]:
        """Descriptors that came with a message that is not complete."""
        return tuple(self._fds)

    def receive(self, data: bytes, fds: Sequence[int] = ()) -> Message | None:
        """Take bytes and return the message that they complete, if they do.

        Raises:
            ProtocolError: another version, a reply, too long, too many descriptors.
        """
        assert len(data) <= self.wanted
        self._data += data
        self._fds += fds
        if len(self._fds) > MAX_REGIONS:
            raise ProtocolError(
                tr("a message with more than {max_regions} descriptors", max_regions=MAX_REGIONS)
            )
        if len(self._data) < HEADER_SIZE or self.wanted:
            return None
        code, flags, _ = _HEADER.unpack_from(self._data)
        needs_reply = bool(flags & _NEED_REPLY)
        message = Message(code, needs_reply, bytes(self._data[HEADER_SIZE:]), tuple(self._fds))
        self._data.clear()
        self._fds.clear()
        return message

    def _payload_size(self) -> int:
        code, flags, size = _HEADER.unpack_from(self._data)
        if flags & _VERSION_MASK != _VERSION or flags & _REPLY:
            raise ProtocolError(
                tr(
                    "message {code} has flags {flags:#x}: not a request of version 1",
                    code=code,
                    flags=flags,
                )
            )
        if size > MAX_PAYLOAD:
            raise ProtocolError(
                tr(
                    "message {code} has {size} bytes, more than {max_payload}",
                    code=code,
                    size=size,
                    max_payload=MAX_PAYLOAD,
                )
            )
        return int(size)


def encode_reply(message: Message, payload: bytes) -> bytes:
    """Return the reply to `message`."""
    return _HEADER.pack(message.code, _VERSION | _REPLY, len(payload)) + payload
