"""An NBD export, the agreement with a client, and the requests that it allows.

Source: doc/proto.md of NetworkBlockDevice/nbd.
"""

from __future__ import annotations

from typing import Final, NamedTuple, Protocol

from p2pcloop.frozen import dataclass
from p2pcloop.protocol import nbd_wire as wire
from p2pcloop.units import BLOCK_SIZE

MAX_PAYLOAD: Final = 32 << 20
"""The largest READ or WRITE, as the specification recommends ("Size constraints")."""

_ALLOWED_FLAGS: Final = {
    wire.CMD_READ: wire.CMD_FLAG_FUA | wire.CMD_FLAG_DF,
    wire.CMD_WRITE: wire.CMD_FLAG_FUA,
    wire.CMD_FLUSH: wire.CMD_FLAG_FUA,
    wire.CMD_TRIM: wire.CMD_FLAG_FUA,
    wire.CMD_CACHE: wire.CMD_FLAG_FUA,
    wire.CMD_WRITE_ZEROES: (wire.CMD_FLAG_FUA | wire.CMD_FLAG_NO_HOLE | wire.CMD_FLAG_FAST_ZERO),
    wire.CMD_BLOCK_STATUS: wire.CMD_FLAG_FUA | wire.CMD_FLAG_REQ_ONE,
}
_CHANGES: Final = (wire.CMD_WRITE, wire.CMD_TRIM, wire.CMD_WRITE_ZEROES)


@dataclass(frozen=True, slots=True)
class Export:
    """A device that is served; as `Exports`, the only one.

    Attributes:
        size: bytes of the device.
        read_only: changes are refused.
        names: under which clients may ask for it.
        tls: nothing is listed or served before TLS was started (FORCEDTLS).
        max_payload: bytes of the largest READ or WRITE.
    """

    size: int
    read_only: bool
    names: tuple[str, ...] = ("",)
    tls: bool = False
    max_payload: int = MAX_PAYLOAD

    def find(self, name: bytes) -> Export | str:
        """See `Exports.find`."""
        if name in [known.encode() for known in self.names]:
            return self
        return f"no export {quoted(name)}: served are {', '.join(map(repr, self.names))}"


class Exports(Protocol):
    """The devices that a server has, by their names."""

    @property
    def names(self) -> tuple[str, ...]:
        """What is listed; there may be more."""

    @property
    def tls(self) -> bool:
        """See `Export.tls`."""

    def find(self, name: bytes) -> Export | str:
        """The export of a name, or text for people why there is none; changes nothing."""


@dataclass(frozen=True, slots=True)
class Refused:
    """`Exports` of which none is given, for a reason."""

    exports: Exports
    why: str

    @property
    def names(self) -> tuple[str, ...]:
        """See `Exports.names`."""
        return self.exports.names

    @property
    def tls(self) -> bool:
        """See `Exports.tls`."""
        return self.exports.tls

    def find(self, name: bytes) -> Export | str:
        """See `Exports.find`."""
        del name
        return self.why


def quoted(name: bytes) -> str:
    """A client's name of an export, for messages."""
    return repr(name[:64].decode("utf-8", "replace"))


@dataclass(slots=True)
class Agreed:
    """The options that a client negotiated; they count for its requests.

    Attributes:
        no_zeroes: no padding behind the answer to EXPORT_NAME.
        tls: TLS was started; earlier agreements do not count.
        structured: READ is answered in chunks.
        block_status: `base:allocation` may be asked for.
        context_name: the export's name with which that was selected.
        export: what was chosen, under `name`; None before that.
    """

    no_zeroes: bool = False
    tls: bool = False
    structured: bool = False
    block_status: bool = False
    context_name: bytes = b""
    export: Export | None = None
    name: bytes = b""


class Refusal(NamedTuple):
    """Why a request is refused: an NBD error, and text for people."""

    error: int
    message: str


def transmission_flags(export: Export, agreed: Agreed) -> int:
    """The flags for clients. All connections share one device, hence CAN_MULTI_CONN."""
    flags = wire.HAS_FLAGS | wire.SEND_FLUSH | wire.SEND_FUA | wire.SEND_CACHE | wire.CAN_MULTI_CONN
    if agreed.structured:
        flags |= wire.SEND_DF
    if export.read_only:
        return flags | wire.READ_ONLY
    return flags | wire.SEND_TRIM | wire.SEND_WRITE_ZEROES | wire.SEND_FAST_ZERO


def check_request(
    export: Export, agreed: Agreed, command: int, flags: int, offset: int, length: int
) -> Refusal | None:
    """The refusal of a request, or None ("Request types", "Error values")."""
    allowed = _ALLOWED_FLAGS.get(command)
    if allowed is None or (command == wire.CMD_BLOCK_STATUS and not agreed.block_status):
        return Refusal(wire.EINVAL, f"command {command} is not known or was not agreed on")
    if flags & ~allowed or (flags & wire.CMD_FLAG_DF and not agreed.structured):
        return Refusal(wire.EINVAL, f"flags {flags:#x} are not known for command {command}")
    if command == wire.CMD_FLUSH:
        return Refusal(wire.EINVAL, "a FLUSH of a range") if offset or length else None
    if export.read_only and command in _CHANGES:
        return Refusal(wire.EPERM, "the export is read-only")
    refusal = _check_range(export, command, offset, length)
    return refusal or _check_cost(export, command, flags, offset, length)


def _check_range(export: Export, command: int, offset: int, length: int) -> Refusal | None:
    if not length:
        return Refusal(wire.EINVAL, "a range is empty")
    if offset + length > export.size:
        writes = command in (wire.CMD_WRITE, wire.CMD_WRITE_ZEROES)
        error = wire.ENOSPC if writes else wire.EINVAL
        return Refusal(error, f"a range ends beyond the {export.size} bytes of the export")
    return None


def _check_cost(
    export: Export, command: int, flags: int, offset: int, length: int
) -> Refusal | None:
    if command == wire.CMD_READ and length > export.max_payload:
        error = wire.EOVERFLOW if flags & wire.CMD_FLAG_DF else wire.EINVAL
        return Refusal(error, f"a READ of {length} bytes: the limit is {export.max_payload}")
    if flags & wire.CMD_FLAG_FAST_ZERO:
        # Zeros are written if no room may be freed; so are parts of blocks.
        whole_blocks = (offset + length) // BLOCK_SIZE - -(-offset // BLOCK_SIZE)
        if flags & wire.CMD_FLAG_NO_HOLE or whole_blocks < 1:
            return Refusal(wire.ENOTSUP, "these zeros would take as long as a WRITE of them")
    return None
