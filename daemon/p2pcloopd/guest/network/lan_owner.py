"""The process that a LAN belongs to, from its first guest to its last.

    p2pcloopd.guest.network.lan_owner ADDRESS        an abstract Unix address, without its null byte

The LAN is a network namespace in a sandbox: a bridge with a tap for each guest, nftables, and
dnsmasq. A further tap leads to a libslirp helper outside, as the wire of `--net user` does. All of
it is held by processes and descriptors: if this process is killed, sandbox and helper end with it,
and the namespace ends with the last of its guests.
"""

from __future__ import annotations

import array
import errno
import os
import signal
import socket
import sys
from collections import deque
from collections.abc import AsyncIterator
from contextlib import ExitStack, asynccontextmanager, closing, suppress
from dataclasses import asdict
from functools import partial
from pathlib import Path

import trio

from p2pcloop.errors import BusyError, GuestError, P2pcloopError, UsageError
from p2pcloop.protocol.control import (
    ControlReceiver,
    Event,
    Failure,
    RemoteControlError,
    Request,
    encode,
)
from p2pcloop.store.guests import is_guest_name
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.accepting import accept
from p2pcloopd.entry import run
from p2pcloopd.guest.network import frame_filter, own_addresses
from p2pcloopd.guest.network.choice import LAN_PROGRAMS
from p2pcloopd.guest.network.forwarding import MOST
from p2pcloopd.guest.network.lan import credentials
from p2pcloopd.guest.network.lan_plan import SLOTS, LanPlan, Slot, choose_network
from p2pcloopd.guest.network.lan_ports import LanPorts
from p2pcloopd.guest.network.namespace_taps import TapMaker
from p2pcloopd.guest.network.slirp import uplink
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.sandbox.native_output import NativeOutput
from p2pcloopd.guest.system.addresses import MTU, NAMESERVER_ADDRESS, USER
from p2pcloopd.guest.system.kernel import find_busybox
from p2pcloopd.guest.system.scripts import script
from p2pcloopd.programs import find_program

_BACKLOG = 256
_FIRST_GUEST_SECONDS = 20
_FAREWELL_SECONDS = 1
_MEMORY, _PROCESSES, _TMPFS = 256 << 20, 64, 1 << 20
_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE")
_CHUNK = 1 << 12
_RIGHTS = socket.CMSG_SPACE(MOST * array.array("i").itemsize)


def main() -> int:
    """Listen, go into the background, and own the LAN until it has no guest any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        try:
            listener.bind(b"\0" + os.fsencode(sys.argv[1]))
        except OSError as err:
            if err.errno == errno.EADDRINUSE:  # another guest's is a moment ahead
                return 0
            raise
        listening, tells = os.pipe()
        if pid := os.fork():
            os.close(tells)
            if os.read(listening, 1):
                return 0
            # Before that it tells on this standard error why it cannot own a LAN.
            return abs(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])) or 1
        os.close(listening)
        # By the process that goes on: a socket tells its clients which process listened.
        listener.listen(_BACKLOG)
        complaints = _go_into_background()
        try:
            maker = TapMaker()
        except OSError as err:
            os.write(
                complaints,
                tr("a process for its taps is refused: {why}\n", why=err.strerror).encode(),
            )
            return GuestError.exit_code
        os.close(complaints)
        os.write(tells, b"\n")
        os.close(tells)
        with maker:
            return run(partial(_own, listener, maker))


def _go_into_background() -> int:
    """Need nothing of the guest's process any more but its standard error, which is returned: it
    waits until no process has that."""
    complaints = os.dup(sys.stderr.fileno())
    null = os.open(os.devnull, os.O_RDWR)
    os.dup2(null, sys.stderr.fileno())
    os.close(null)
    os.chdir("/")
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    return complaints


async def _own(listener: socket.socket, maker: TapMaker) -> int:
    """Serve guests until the last one has left; tell them why if it ends before."""
    listener.setblocking(False)
    guests = trio.socket.from_stdlib_socket(listener)
    try:
        plan = choose_network(own_addresses.routed_networks())
        async with _services(plan) as (process, control, native):
            lan = _Lan(plan, maker, control, process, native)
            await lan.set_up()
            async with lan.outside(), trio.open_nursery() as nursery:
                nursery.start_soon(lan.watch)
                await lan.serve(guests)
                nursery.cancel_scope.cancel()
    except (P2pcloopError, OSError) as err:
        error = err if isinstance(err, P2pcloopError) else GuestError(tr("no LAN: {err}", err=err))
        await _turn_away(guests, error)
        return error.exit_code
    return 0


async def _turn_away(guests: trio.socket.SocketType, error: P2pcloopError) -> None:
    """Answer the guests that wait for a LAN which does not come to be. Their requests say nothing
    now, and are not waited for: a Unix socket keeps an answer also where its sender has closed."""
    with trio.move_on_after(_FAREWELL_SECONDS), suppress(OSError):
        while True:
            with await accept(guests) as connection, suppress(OSError):  # it may have gone
                await connection.send(encode(Failure(0, error)))


@asynccontextmanager
async def _services(
    plan: LanPlan,
) -> AsyncIterator[tuple[sandbox.SandboxedProcess, trio.SocketStream, NativeOutput]]:
    """Run the sandbox of a LAN: its process, the other end of lan.sh's CONTROL, and its output."""
    ours, theirs = socket.socketpair()
    native = NativeOutput()
    fds = [theirs.fileno()]
    with ours, theirs, closing(native):
        boxed, pipes = await trio.to_thread.run_sync(_sandbox, plan, theirs.fileno())
        try:
            fds += pipes
            started = sandbox.running(boxed, pass_fds=fds, output=native.write_end)
            async with started as process:
                native.close_write_end()
                theirs.close()
                ours.setblocking(False)
                control = trio.SocketStream(trio.socket.from_stdlib_socket(ours))
                yield process, control, native
        finally:
            for fd in pipes:
                os.close(fd)


def _sandbox(plan: LanPlan, control: int) -> tuple[sandbox.Sandbox, list[int]]:
    """The sandbox of a LAN, and the descriptors that it reads its rules and settings from."""
    programs = [find_program(name, LAN_PROGRAMS[name]) for name in ("nft", "dnsmasq")]
    busybox = find_busybox()
    visible: dict[Path, Path] = {}
    for program in programs:
        visible |= sandbox.program_files(program)
    pipes = [sandbox.readable(text.encode()) for text in (plan.rules(), plan.server_settings())]
    uplink_address = f"{USER.guest}/{USER.prefix_length}"
    words = [str(busybox), *map(str, programs), str(control), *map(str, pipes), str(MTU)]
    words += [f"{plan.gateway}/{plan.network.prefixlen}", uplink_address, USER.gateway]
    boxed = sandbox.prepare(
        [str(busybox), "sh", "-c", script("lan"), "lan", *words],
        visible=visible,
        memory=_MEMORY,
        processes=_PROCESSES,
        tmpfs={"/run": _TMPFS},
        network=sandbox.Network(capabilities=_CAPABILITIES),
    )
    return boxed, pipes


class _Lan:
    """A LAN whose sandbox runs."""

    def __init__(
        self,
        plan: LanPlan,
        maker: TapMaker,
        control: trio.SocketStream,
        process: sandbox.SandboxedProcess,
        native: NativeOutput,
    ) -> None:
        self._plan = plan
        self._process = process
        self._native = native
        self._maker = maker
        self._control = control
        self._free = deque(SLOTS)
        self._guests: dict[str, Slot] = {}
        self._connections: set[trio.socket.SocketType] = set()
        self._members: set[trio.socket.SocketType] = set()
        self._news: list[str] = []
        self._first, self._last = trio.Event(), trio.Event()
        self._telling = trio.Lock()
        self._ports = LanPorts(maker.dial)

    async def set_up(self) -> None:
        """Go into the namespace, and make the way to the outside.

        Raises:
            GuestError: the services do not start, or no tap can be made.
        """
        await self._hear("bridge")
        assert self._process.init_pid is not None
        self._maker.enter(self._process.init_pid)
        self._tap, self._frames = self._maker.uplink()
        with suppress(trio.BrokenResourceError):  # they have ended: next is told why
            await self._control.send_all(b"uplink\n")
        await self._hear("ready")

    async def _hear(self, word: str) -> None:
        """Wait until lan.sh tells something."""
        said = b""
        with suppress(trio.BrokenResourceError):
            said = await self._control.receive_some(_CHUNK)
        if said != f"{word}\n".encode():
            raise GuestError(
                tr("the services of the LAN do not start {end}", end=await self._end())
            )

    async def _end(self) -> str:
        """Wait for the end of the services, and tell how it came."""
        await self._native.collect()
        code = await self._process.wait()
        said = f": {printable(self._native.last_words)}" if self._native.tail else ""
        return tr("(exit status {code}){said}", code=code, said=said)

    @asynccontextmanager
    async def outside(self) -> AsyncIterator[None]:
        """Run the helper that makes the guests' connections outside."""
        close_off = partial(frame_filter.install_on_tap, self._tap, NAMESERVER_ADDRESS)
        try:
            async with uplink(self._tap, self._frames, close_off, self.tell):
                yield
        finally:
            os.close(self._tap)
            self._frames.close()

    async def watch(self) -> None:
        """Tell the guests if the services end, and raise an error."""
        ended = tr("the services of its LAN have ended {end}", end=await self._end())
        self.tell(ended)
        raise GuestError(ended)

    def tell(self, text: str) -> None:
        """Tell the users of all guests something about the LAN, also of those that come later."""
        self._news.append(text)
        for connection in self._members:
            _tell(connection, text)

    async def serve(self, listener: trio.socket.SocketType) -> None:
        """Take guests in until the last one has left; then `listener` is closed."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._accept, listener, nursery)
            with trio.move_on_after(_FIRST_GUEST_SECONDS):
                await self._first.wait()
            if self._connections:
                await self._last.wait()
            nursery.cancel_scope.cancel()  # first: a closed listener would be an error of `_accept`
            # At once, so that a guest that comes now has a LAN of its own made.
            listener.close()

    async def _accept(self, listener: trio.socket.SocketType, nursery: trio.Nursery) -> None:
        while True:
            connection = await accept(listener)
            nursery.start_soon(self._attend, connection)

    async def _attend(self, connection: trio.socket.SocketType) -> None:
        """Serve one guest until its process ends or lets go of its card."""
        with connection:
            if credentials(connection).user != os.geteuid():
                return
            self._connections.add(connection)
            self._first.set()
            try:
                await self._have_guest(connection)
            except (ConnectionError, RemoteControlError):
                pass
            except P2pcloopError as err:
                with suppress(OSError):
                    await connection.send(encode(Failure(0, err)))
            finally:
                self._connections.discard(connection)
                if not self._connections:
                    self._last.set()

    async def _have_guest(self, connection: trio.socket.SocketType) -> None:
        """Give a guest a card, and keep its place until it has left.

        Raises:
            UsageError: there is no place, or it asks for something else.
            GuestError: no card can be made.
        """
        guest, ports, listeners = await _request_of_guest(connection)
        with ExitStack() as stack:
            for listener in listeners:
                stack.enter_context(listener)
            number, tap = self._take_place()
            await self._keep_place(connection, guest, number, tap, ports, listeners)
        await self._name_guests()

    async def _keep_place(
        self,
        connection: trio.socket.SocketType,
        guest: str,
        number: int,
        tap: int,
        ports: list[int],
        listeners: list[socket.socket],
    ) -> None:
        slot = self._plan.slot(number)
        try:
            # The descriptor is not kept here: the card ends with the guest.
            with os.fdopen(tap, "rb", buffering=0), suppress(ConnectionError):
                self._guests[guest] = slot
                await self._name_guests()
                facts = {
                    "mac": slot.mac,
                    "mtu": MTU,
                    "addresses": asdict(self._plan.addresses(slot)),
                }
                rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [tap]))
                await connection.sendmsg([encode(Event(0, "card", facts))], [rights])
                self._members.add(connection)
                for text in self._news:
                    _tell(connection, text)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._ports.lead, listeners, slot.address, ports)
                with suppress(ConnectionError):
                    while await connection.recv(_CHUNK):
                        pass
                nursery.cancel_scope.cancel()
        finally:
            self._members.discard(connection)
            self._free.append(number)
            if self._guests.get(guest) == slot:
                del self._guests[guest]

    def _take_place(self) -> tuple[int, int]:
        """A free place, and the tap of it."""
        for _ in range(len(self._free)):
            number = self._free.popleft()
            try:
                return number, self._maker.card(self._plan.slot(number).interface)
            except BusyError:  # a killed guest still lets go of its card
                self._free.append(number)
            except BaseException:
                self._free.append(number)
                raise
        raise UsageError(
            tr("each of the LAN's {slots_count} addresses has a guest", slots_count=len(SLOTS)),
            hint="end a guest, or boot this one in another LAN: `--net lan:NAME`",
        )

    async def _name_guests(self) -> None:
        """Have dnsmasq know the guests by their names."""
        async with self._telling:
            lines = [*self._plan.hosts(self._guests), "."]
            with suppress(trio.BrokenResourceError):
                await self._control.send_all("".join(f"{line}\n" for line in lines).encode())
                if await self._control.receive_some(_CHUNK):
                    return
            # The services have ended: `watch` tells it, and ends all of this.
            await trio.sleep_forever()


def _tell(connection: trio.socket.SocketType, text: str) -> None:
    # One that does not read is about to end.
    with suppress(OSError):
        os.write(connection.fileno(), encode(Event(0, "told", {"text": text})))


async def _request_of_guest(
    connection: trio.socket.SocketType,
) -> tuple[str, list[int], list[socket.socket]]:
    """The guest's name, ports of its own, and for each a socket of this machine leading there."""
    receiver, fds = ControlReceiver(), list[int]()
    try:
        while True:
            data, messages, _, _ = await connection.recvmsg(
                _CHUNK, _RIGHTS, socket.MSG_CMSG_CLOEXEC
            )
            fds += [fd for *_, rights in messages for fd in _descriptors(rights)]
            match receiver.receive(data) if data else [None]:
                case [Request(_, "join", {"guest": str(name), "ports": list(ports)})] if (
                    is_guest_name(name) and len(ports) == len(fds)
                ):
                    return name, [int(port) for port in ports], list(map(_socket, fds))
                case []:
                    continue
            raise UsageError("this LAN's process understands no such request")
    except BaseException:
        for fd in fds:
            os.close(fd)
        raise


def _socket(fd: int) -> socket.socket:
    return socket.socket(fileno=fd)


def _descriptors(rights: bytes) -> array.array[int]:
    fds = array.array("i")
    fds.frombytes(rights[: len(rights) - len(rights) % fds.itemsize])
    return fds


if __name__ == "__main__":
    sys.exit(main())
