"""The state of one vhost-user connection, on the side of the back end.

Source: QEMU's `docs/interop/vhost-user.rst`. `Session.handle` notes a message and says what it
changes; the owner of the socket carries that out and then sends `Session.reply`. The session keeps
the descriptors that are in use, as opaque numbers; `take_unused` names those to be closed.

A session is all that is needed to go on serving a front end: another process that is given it, its
descriptors and the rings' `used.idx` can take over.
"""

from __future__ import annotations

import enum
import struct
from collections.abc import Callable
from dataclasses import dataclass, field

from p2pcloop.protocol.vhost_state import (
    Effect,
    MemoryChanged,
    Region,
    RingChanged,
    Vring,
    parse_regions,
)
from p2pcloop.protocol.vhost_user import (
    Code,
    Message,
    ProtocolError,
    RefusedError,
    encode_reply,
)
from p2pcloop.words import tr

F_PROTOCOL_FEATURES = 1 << 30
"""The feature bit for protocol features; with it rings start disabled."""

MAX_CONFIG = 256
"""Bytes of configuration space that a front end may ask for."""

_U64 = struct.Struct("<Q")
_STATE = struct.Struct("<II")
_ADDRESSES = struct.Struct("<IIQQQQ")
_CONFIG = struct.Struct("<III")
_RING_INDEX, _NO_FD = 0xFF, 0x100


class ProtocolFeature(enum.IntFlag):
    """The protocol features that are offered: with them UML survives a restart of the back end."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9


# An int: the complement of an IntFlag has no bits but the flags that it knows.
OFFERED = int(
    ProtocolFeature.MQ
    | ProtocolFeature.REPLY_ACK
    | ProtocolFeature.BACKEND_REQ
    | ProtocolFeature.CONFIG
)


@dataclass(slots=True)
class Session:
    """The state of one connection.

    Attributes:
        offered: feature bits of the device and its queues.
        config: the device's configuration space.
        vrings: one for each queue that is offered.
        features, protocol_features: those that the front end accepted.
        regions: guest memory.
        request_fd: the channel for our requests. We send none, but the front end notices by it
            that this process has ended.
        unused: descriptors that are not in use any more; see `take_unused`.
    """

    offered: int
    config: bytes
    vrings: tuple[Vring, ...]
    features: int = 0
    protocol_features: int = 0
    regions: tuple[Region, ...] = ()
    request_fd: int | None = None
    unused: list[int] = field(default_factory=list)

    def handle(self, message: Message) -> Effect:
        """Check a message, apply it to the state, and return its effect.

        Raises:
            RefusedError: it cannot be applied; nothing was changed.
        """
        self.unused += message.fds
        if message.code not in _HANDLERS:
            raise RefusedError(tr("request {code} is not supported", code=message.code))
        size, handler = _HANDLERS[Code(message.code)]
        if size is not None and len(message.payload) != size:
            raise RefusedError(
                tr(
                    "{name} with {payload_count} bytes",
                    name=Code(message.code).name,
                    payload_count=len(message.payload),
                )
            )
        return handler(self, message)

    def reply(self, message: Message, *, refused: bool = False) -> bytes | None:
        """Return the answer to a message that was handled, or None if it wants none.

        Raises:
            ProtocolError: it was refused, and the protocol has no answer for that.
        """
        acknowledge = message.needs_reply and self.protocol_features & ProtocolFeature.REPLY_ACK
        if refused and message.code == Code.GET_CONFIG:
            return encode_reply(message, b"")  # of no length: how that request is refused
        if refused and (message.code in _ANSWERS or not acknowledge):
            raise ProtocolError(tr("a request {code} that cannot be answered", code=message.code))
        if message.code in _ANSWERS:
            payload = _ANSWERS[Code(message.code)](self, message)
        elif acknowledge:
            payload = _U64.pack(refused)
        else:
            return None
        return encode_reply(message, payload)

    def take_unused(self) -> list[int]:
        """Return descriptors that are not in use any more; the caller closes them."""
        unused, self.unused = self.unused, []
        return unused

    def take_all(self) -> list[int]:
        """Return every descriptor of the session, which is over."""
        kept = [region.fd for region in self.regions] + [self.request_fd]
        for vring in self.vrings:
            kept += [vring.kick, vring.call, vring.err]
        return self.take_unused() + [fd for fd in kept if fd is not None]

    def replace_fd(self, message: Message, old: int | None) -> int:
        """Take a message's one descriptor into use instead of `old`."""
        if len(message.fds) != 1:
            raise RefusedError(
                tr("{fds_count} descriptors where one belongs", fds_count=len(message.fds))
            )
        self.unused.remove(message.fds[0])
        if old is not None:
            self.unused.append(old)
        return message.fds[0]

    def vring(self, index: int) -> Vring:
        """Return a queue that exists."""
        if index >= len(self.vrings):
            raise RefusedError(
                tr("queue {index} of {vrings_count}", index=index, vrings_count=len(self.vrings))
            )
        return self.vrings[index]

    def still_vring(self, index: int) -> Vring:
        """Return a queue that is not being served, and so may be laid out anew."""
        vring = self.vring(index)
        if vring.running:
            raise RefusedError(tr("queue {index} is running", index=index))
        return vring


def _set_features(session: Session, message: Message) -> Effect:
    (features,) = _U64.unpack(message.payload)
    if features & ~session.offered:
        raise RefusedError(
            tr("features {features:#x} were not offered", features=features & ~session.offered)
        )
    session.features = features
    for vring in session.vrings:
        vring.enabled |= not features & F_PROTOCOL_FEATURES
    return None


def _set_protocol_features(session: Session, message: Message) -> Effect:
    (features,) = _U64.unpack(message.payload)
    if features & ~OFFERED:
        raise RefusedError(
            tr("protocol features {features:#x} were not offered", features=features & ~OFFERED)
        )
    session.protocol_features = features
    return None


def _set_memory(session: Session, message: Message) -> Effect:
    regions = parse_regions(message)
    session.unused = [fd for fd in session.unused if fd not in message.fds]
    session.unused += [region.fd for region in session.regions]
    session.regions = regions
    return MemoryChanged()


def _set_vring_num(session: Session, message: Message) -> Effect:
    index, size = _STATE.unpack(message.payload)
    session.still_vring(index).size = size
    return None


def _set_vring_base(session: Session, message: Message) -> Effect:
    index, base = _STATE.unpack(message.payload)
    if base > 0xFFFF:
        raise RefusedError(tr("{base} is no index of a split ring", base=base))
    session.still_vring(index).base = base
    return None


def _set_vring_addr(session: Session, message: Message) -> Effect:
    index, _, *addresses, _ = _ADDRESSES.unpack(message.payload)
    descriptors, used, available = addresses
    vring = session.still_vring(index)
    vring.addresses = (descriptors, used, available)
    return None


def _get_vring_base(session: Session, message: Message) -> Effect:
    index, _ = _STATE.unpack(message.payload)
    session.vring(index).started = False
    return RingChanged(index)


def _set_vring_enable(session: Session, message: Message) -> Effect:
    index, enabled = _STATE.unpack(message.payload)
    session.vring(index).enabled = bool(enabled)
    return RingChanged(index)


def _set_vring_kick(session: Session, message: Message) -> Effect:
    (value,) = _U64.unpack(message.payload)
    vring = session.vring(value & _RING_INDEX)
    if value & _NO_FD:
        raise RefusedError("a queue without a kick descriptor: nothing is polled here")
    vring.kick = session.replace_fd(message, vring.kick)
    vring.started = True
    return RingChanged(value & _RING_INDEX)


def _set_vring_call(session: Session, message: Message) -> Effect:
    vring, fd = _other_fd(session, message, "call")
    vring.call = fd
    return None


def _set_vring_err(session: Session, message: Message) -> Effect:
    vring, fd = _other_fd(session, message, "err")
    vring.err = fd
    return None


def _other_fd(session: Session, message: Message, name: str) -> tuple[Vring, int | None]:
    """Take an optional descriptor of a queue into use."""
    (value,) = _U64.unpack(message.payload)
    vring = session.vring(value & _RING_INDEX)
    old: int | None = getattr(vring, name)
    if not value & _NO_FD:
        return vring, session.replace_fd(message, old)
    if old is not None:
        session.unused.append(old)
    return vring, None


def _set_request_fd(session: Session, message: Message) -> Effect:
    session.request_fd = session.replace_fd(message, session.request_fd)
    return None


def _check_config(_session: Session, message: Message) -> Effect:
    payload = message.payload
    offset, size, _ = _CONFIG.unpack_from(payload) if len(payload) >= _CONFIG.size else (0, 0, 0)
    if not 0 < size <= MAX_CONFIG - offset or len(payload) != _CONFIG.size + size:
        raise RefusedError(
            tr("{size} bytes of configuration space at {offset}", size=size, offset=offset)
        )
    return None


def _no_effect(_session: Session, _message: Message) -> Effect:
    return None


def _config(session: Session, message: Message) -> bytes:
    offset, size, flags = _CONFIG.unpack_from(message.payload)
    data = session.config.ljust(MAX_CONFIG, b"\0")[offset : offset + size]
    return _CONFIG.pack(offset, size, flags) + data


def _vring_base(session: Session, message: Message) -> bytes:
    index, _ = _STATE.unpack(message.payload)
    return _STATE.pack(index, session.vrings[index].base)


_HANDLERS: dict[Code, tuple[int | None, Callable[[Session, Message], Effect]]] = {
    Code.GET_FEATURES: (0, _no_effect),
    Code.SET_FEATURES: (_U64.size, _set_features),
    Code.SET_OWNER: (0, _no_effect),
    Code.SET_MEM_TABLE: (None, _set_memory),
    Code.SET_VRING_NUM: (_STATE.size, _set_vring_num),
    Code.SET_VRING_ADDR: (_ADDRESSES.size, _set_vring_addr),
    Code.SET_VRING_BASE: (_STATE.size, _set_vring_base),
    Code.GET_VRING_BASE: (_STATE.size, _get_vring_base),
    Code.SET_VRING_KICK: (_U64.size, _set_vring_kick),
    Code.SET_VRING_CALL: (_U64.size, _set_vring_call),
    Code.SET_VRING_ERR: (_U64.size, _set_vring_err),
    Code.GET_PROTOCOL_FEATURES: (0, _no_effect),
    Code.SET_PROTOCOL_FEATURES: (_U64.size, _set_protocol_features),
    Code.GET_QUEUE_NUM: (0, _no_effect),
    Code.SET_VRING_ENABLE: (_STATE.size, _set_vring_enable),
    Code.SET_BACKEND_REQ_FD: (0, _set_request_fd),
    Code.GET_CONFIG: (None, _check_config),
}
"""The handler of each message, and the length of its payload if that is fixed."""

_ANSWERS: dict[Code, Callable[[Session, Message], bytes]] = {
    Code.GET_FEATURES: lambda session, _: _U64.pack(session.offered),
    Code.GET_PROTOCOL_FEATURES: lambda _session, _message: _U64.pack(OFFERED),
    Code.GET_QUEUE_NUM: lambda session, _: _U64.pack(len(session.vrings)),
    Code.GET_VRING_BASE: _vring_base,
    Code.GET_CONFIG: _config,
}
"""The payload of the reply, for messages that are questions."""
