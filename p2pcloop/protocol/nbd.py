"""The server's side of the NBD protocol (fixed newstyle): bytes in, events out.

No socket, clock or log here. The owner of the connection sends `GREETING` first, and then:

    match server.next_event():
        NEED_DATA   receive into `server.receive_buffer()`, then `server.received(count)`
        Reply       send its bytes
        START_TLS   shake hands; all further bytes go through TLS
        Choice      only where it was wanted: get the export ready, or call `refuse`
        NEGOTIATED  the negotiation is over, requests follow
        Request     carry it out; answer with a reply of `server.replies`
        DISCONNECT  answer the requests in flight, then close

A `Request` has been checked whole: its range lies in the device and is not empty, its flags belong
to its command, and a read-only export gets no changes. If a request fails a check, the event is the
`Reply` that refuses it. Requests may be answered in any order.

Memory: `INPUT_SIZE` for input, and one buffer of at most `Export.max_payload` for a WRITE of more
than `MAX_INPUT_PAYLOAD`; a buffer of up to `MAX_KEPT_PAYLOAD` is kept for the next such WRITE. A
payload is copied at most once; of a large one only the part that arrived together with its header.

Source: doc/proto.md of NetworkBlockDevice/nbd.
"""

from __future__ import annotations

import enum
from collections.abc import Callable
from typing import ClassVar, Final, NamedTuple

from p2pcloop.protocol import nbd_wire as wire
from p2pcloop.protocol.nbd_export import (
    Agreed,
    Export,
    Exports,
    Refused,
    check_request,
)
from p2pcloop.protocol.nbd_options import Then, answer_option, chosen_export
from p2pcloop.protocol.nbd_reply import Replies
from p2pcloop.protocol.nbd_wire import LocalProtocolError, RemoteProtocolError
from p2pcloop.words import tr

MAX_INPUT_PAYLOAD: Final = 128 << 10
"""Bytes up to which the payload of a WRITE is passed on in the input buffer itself."""

INPUT_SIZE: Final = 2 * MAX_INPUT_PAYLOAD
"""Any item that starts in the first half of the buffer fits."""

MAX_KEPT_PAYLOAD: Final = 1 << 20

MAX_OPTION: Final = 8 << 10
"""Bytes of one option: a name of 4096 bytes and a list of information requests fit."""

MAX_SKIPPED_OPTION: Final = 64 << 10
"""Bytes up to which an option is skipped and refused; for a larger one the client is dropped."""

GREETING: Final = wire.GREETING.pack(
    wire.INIT_MAGIC, wire.OPTION_MAGIC, wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES
)


class Signal(enum.Enum):
    """Events without data."""

    NEED_DATA = enum.auto()
    START_TLS = enum.auto()
    NEGOTIATED = enum.auto()
    DISCONNECT = enum.auto()


class Reply(NamedTuple):
    """Bytes to send as they are."""

    data: bytes


class Choice(NamedTuple):
    """The client asks to be served an export of this name; it is answered at the next call."""

    name: bytes


class Request(NamedTuple):
    """A checked request.

    Attributes:
        command: `nbd_wire.CMD_READ`, `_WRITE`, `_FLUSH`, `_TRIM`, `_CACHE`, `_WRITE_ZEROES` or
            `_BLOCK_STATUS`, the last one only if structured replies were agreed on.
        flags: `nbd_wire.CMD_FLAG_FUA`, `_NO_HOLE`, `_DF`, `_REQ_ONE`, `_FAST_ZERO`, each only with
            commands that know it.
        cookie: goes into the reply.
        offset: bytes; 0 for a flush.
        length: bytes; 0 for a flush.
        payload: of a WRITE, `length` bytes, else empty. The server's own memory: valid until the
            next call of `next_event` or `receive_buffer`.
    """

    command: int
    flags: int
    cookie: int
    offset: int
    length: int
    payload: memoryview


Event = Reply | Choice | Request | Signal


class _State(enum.Enum):
    CLIENT_FLAGS = enum.auto()
    OPTION = enum.auto()
    OPTION_DATA = enum.auto()
    START_TLS = enum.auto()
    NEGOTIATED = enum.auto()
    REQUEST = enum.auto()
    PAYLOAD = enum.auto()
    SKIP = enum.auto()
    CLOSED = enum.auto()
    BROKEN = enum.auto()


# The states and those that may follow. SKIP skips the data of a refused item and returns to the
# state before. Every breach of the protocol leads to BROKEN.
_NEXT: Final[dict[_State, tuple[_State, ...]]] = {
    _State.CLIENT_FLAGS: (_State.OPTION,),
    _State.OPTION: (_State.OPTION_DATA, _State.SKIP),
    _State.OPTION_DATA: (_State.OPTION, _State.START_TLS, _State.NEGOTIATED, _State.CLOSED),
    _State.START_TLS: (_State.OPTION,),
    _State.NEGOTIATED: (_State.REQUEST,),
    _State.REQUEST: (_State.PAYLOAD, _State.SKIP, _State.CLOSED),
    _State.PAYLOAD: (_State.REQUEST,),
    _State.SKIP: (_State.OPTION, _State.REQUEST),
    _State.CLOSED: (),
    _State.BROKEN: (),
}

_AFTER_OPTION: Final = {
    Then.NEXT_OPTION: _State.OPTION,
    Then.TLS: _State.START_TLS,
    Then.TRANSMISSION: _State.NEGOTIATED,
    Then.END: _State.CLOSED,
}

_NO_PAYLOAD: Final = memoryview(b"")


class NbdServer:
    """The protocol state of one connection; the module's docstring tells its use.

    Attributes:
        replies: makes the replies to requests as agreed; not before NEGOTIATED.
    """

    def __init__(self, exports: Exports, *, choices: bool = False) -> None:
        """Begin a connection.

        Args:
            exports: what clients can ask for.
            choices: `Choice` is an event before an export is given, so that it can be got ready.
        """
        self._exports = exports
        self._choices = choices
        self._announced = False
        self._refused: str | None = None
        self._export = Export(0, read_only=True)  # until one is chosen
        self._state = _State.CLIENT_FLAGS
        self._input = memoryview(bytearray(INPUT_SIZE))
        self._start = 0
        self._end = 0
        self.replies = Replies(structured=False)
        self._agreed = Agreed()
        self._option = (0, 0)
        # PAYLOAD: the WRITE whose data are arriving; those of a large one go to `_payload`.
        self._write = Request(0, 0, 0, 0, 0, _NO_PAYLOAD)
        self._payload = _NO_PAYLOAD
        self._payload_end = 0
        # SKIP: bytes still to skip, the refusal to send after them, and the state to return to.
        self._skip = 0
        self._refusal = Reply(b"")
        self._resume = _State.OPTION

    @property
    def chosen(self) -> bytes:
        """The name under which the client asked for its export; not before NEGOTIATED."""
        return self._agreed.name

    def receive_buffer(self) -> memoryview:
        """The buffer for the next bytes of the connection; never empty."""
        if self._state in (_State.CLOSED, _State.BROKEN):
            raise LocalProtocolError("the connection is over: nothing is to be received")
        if self._gathers_payload():
            return self._payload[self._payload_end : self._write.length]
        start, end = self._start, self._end
        if start == end:
            self._start = self._end = 0
        elif start >= INPUT_SIZE // 2:
            self._input[: end - start] = self._input[start:end]
            self._start, self._end = 0, end - start
        return self._input[self._end :]

    def received(self, count: int) -> None:
        """Note that the first `count` bytes of `receive_buffer()` were received."""
        own = self._gathers_payload()
        room = self._write.length - self._payload_end if own else INPUT_SIZE - self._end
        if not 0 < count <= room:
            raise LocalProtocolError(f"{count} bytes received where there was room for {room}")
        if own:
            self._payload_end += count
        else:
            self._end += count

    def refuse(self, why: str) -> None:
        """Refuse the export of the last `Choice`, with text for people."""
        if not self._announced:
            raise LocalProtocolError("the client has asked for no export")
        self._refused = why

    def next_event(self) -> Event:
        """The next event of the bytes received so far; NEED_DATA if there is none.

        Raises:
            RemoteProtocolError: the client broke the protocol; the connection is of no more use.
        """
        try:
            while True:
                event = self._STEPS[self._state](self)
                if event is not None:
                    return event
        except RemoteProtocolError:
            self._state = _State.BROKEN
            raise

    def _enter(self, state: _State) -> None:
        assert state in _NEXT[self._state], (self._state, state)
        self._state = state

    def _take(self, count: int) -> memoryview | None:
        """The next `count` bytes of the input, or None if not all of them were received yet."""
        start = self._start
        if self._end - start < count:
            return None
        self._start = start + count
        return self._input[start : start + count]

    def _refuse(self, refusal: bytes, skip: int) -> Event | None:
        """Send `refusal` after the `skip` bytes of data of the item have been skipped."""
        if not skip:
            return Reply(refusal)
        self._skip, self._refusal, self._resume = skip, Reply(refusal), self._state
        self._enter(_State.SKIP)
        return None

    def _pass_over(self) -> Event:
        count = min(self._skip, self._end - self._start)
        self._start += count
        self._skip -= count
        if self._skip:
            return Signal.NEED_DATA
        self._enter(self._resume)
        return self._refusal

    def _parse_client_flags(self) -> Event | None:
        if (data := self._take(wire.CLIENT_FLAGS.size)) is None:
            return Signal.NEED_DATA
        (flags,) = wire.CLIENT_FLAGS.unpack(data)
        if flags & ~(wire.FLAG_FIXED_NEWSTYLE | wire.FLAG_NO_ZEROES):
            raise RemoteProtocolError(tr("unknown client flags {flags:#x}", flags=flags))
        self._agreed.no_zeroes = bool(flags & wire.FLAG_NO_ZEROES)
        self._enter(_State.OPTION)
        return None

    def _parse_option(self) -> Event | None:
        if (data := self._take(wire.OPTION.size)) is None:
            return Signal.NEED_DATA
        magic, option, length = wire.OPTION.unpack(data)
        if magic != wire.OPTION_MAGIC:
            raise RemoteProtocolError("an option does not start with IHAVEOPT")
        if length > MAX_OPTION:
            if length > MAX_SKIPPED_OPTION or option == wire.OPT_EXPORT_NAME:
                raise RemoteProtocolError(
                    tr("option {option} has {length} bytes of data", option=option, length=length)
                )
            return self._refuse(wire.option_reply(option, wire.REP_ERR_TOO_BIG), length)
        self._option = option, length
        self._enter(_State.OPTION_DATA)
        return None

    def _parse_option_data(self) -> Event:
        option, length = self._option
        if self._end - self._start < length:
            return Signal.NEED_DATA
        if self._choices and not self._announced:
            data = bytes(self._input[self._start : self._start + length])
            name = chosen_export(self._exports, self._agreed, option, data)
            if name is not None:
                self._announced = True
                return Choice(name)
        taken = self._take(length)
        assert taken is not None, "all of it is there"
        exports = self._exports if self._refused is None else Refused(self._exports, self._refused)
        self._announced, self._refused = False, None
        reply, then = answer_option(exports, self._agreed, option, bytes(taken))
        self._enter(_AFTER_OPTION[then])
        return Reply(reply)

    def _start_tls(self) -> Event:
        if self._end > self._start:
            # An attacker on the way may have put it there; it must not count as said under TLS.
            raise RemoteProtocolError("the client sent more before the TLS handshake")
        self._agreed = Agreed(no_zeroes=self._agreed.no_zeroes, tls=True)
        self._enter(_State.OPTION)
        return Signal.START_TLS

    def _begin_transmission(self) -> Event:
        self._enter(_State.REQUEST)
        assert self._agreed.export is not None, "an option that chooses none leads elsewhere"
        self._export = self._agreed.export
        self.replies = Replies(structured=self._agreed.structured)
        return Signal.NEGOTIATED

    def _parse_request(self) -> Event | None:
        start = self._start
        if self._end - start < wire.REQUEST.size:
            return Signal.NEED_DATA
        self._start = start + wire.REQUEST.size
        request = wire.REQUEST.unpack_from(self._input, start)
        magic, flags, command, cookie, offset, length = request
        if magic != wire.REQUEST_MAGIC:
            raise RemoteProtocolError(tr("a request starts with {magic:#010x}", magic=magic))
        if command == wire.CMD_DISC:
            self._enter(_State.CLOSED)
            return None
        writes = command == wire.CMD_WRITE
        if writes and length > (largest := self._export.max_payload):
            raise RemoteProtocolError(
                tr(
                    "a WRITE of {length} bytes: the limit is {largest}",
                    length=length,
                    largest=largest,
                )
            )
        refusal = check_request(self._export, self._agreed, command, flags, offset, length)
        if refusal is not None:
            reply = self.replies.error(cookie, *refusal)
            return self._refuse(reply, length if writes else 0)
        request = Request(command, flags, cookie, offset, length, _NO_PAYLOAD)
        if not writes:
            return request
        self._begin_payload(request)
        return None

    def _begin_payload(self, write: Request) -> None:
        self._write = write
        self._enter(_State.PAYLOAD)
        if not self._gathers_payload():
            return
        if len(self._payload) < write.length:
            self._payload = memoryview(bytearray(write.length))
        first = self._input[self._start : min(self._end, self._start + write.length)]
        self._payload[: len(first)] = first
        self._payload_end = len(first)
        self._start += len(first)

    def _gathers_payload(self) -> bool:
        return self._state is _State.PAYLOAD and self._write.length > MAX_INPUT_PAYLOAD

    def _parse_payload(self) -> Event:
        length = self._write.length
        if length <= MAX_INPUT_PAYLOAD:
            if (data := self._take(length)) is None:
                return Signal.NEED_DATA
        elif self._payload_end < length:
            return Signal.NEED_DATA
        else:
            data = self._payload[:length]
            if length > MAX_KEPT_PAYLOAD:
                self._payload = _NO_PAYLOAD
        self._enter(_State.REQUEST)
        return self._write._replace(payload=data)

    def _disconnect(self) -> Event:
        return Signal.DISCONNECT

    def _broken(self) -> Event:
        raise LocalProtocolError("the client broke the protocol: no more events")

    _STEPS: ClassVar[dict[_State, Callable[[NbdServer], Event | None]]] = {
        _State.CLIENT_FLAGS: _parse_client_flags,
        _State.OPTION: _parse_option,
        _State.OPTION_DATA: _parse_option_data,
        _State.START_TLS: _start_tls,
        _State.NEGOTIATED: _begin_transmission,
        _State.REQUEST: _parse_request,
        _State.PAYLOAD: _parse_payload,
        _State.SKIP: _pass_over,
        _State.CLOSED: _disconnect,
        _State.BROKEN: _broken,
    }
