"""A network for a guest without privilege: libslirp, in a process of its own, over a socketpair."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager, closing
from functools import partial
from ipaddress import IPv4Network
from pathlib import Path

import trio

from p2pcloop.errors import GuestError
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.entry import plain_errors
from p2pcloopd.guest.network import own_addresses
from p2pcloopd.guest.network.forwarding import BoundPort
from p2pcloopd.guest.network.opened import LOOPBACK, OpenedPort, close_off
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.sandbox.native_output import NativeOutput
from p2pcloopd.guest.system import preload
from p2pcloopd.guest.system.addresses import (
    GUEST_ADDRESS,
    GUEST_INTERFACE,
    HOST_ADDRESS,
    MTU,
    NAMESERVER_ADDRESS,
    PREFIX_LENGTH,
)
from p2pcloopd.programs import find_program

_RESOLV_CONF = Path("/etc/resolv.conf")
_TICK_SECONDS = 0.5
"""libslirp's slow timer: TCP's retransmissions."""

_TICK = bytes(12) + b"\x08\x06" + bytes(46)
"""An ARP frame that asks and tells nothing: the filter lets it pass, and libslirp drops it."""

_PORTS_LIBRARY = Path("/run/slirp_ports.so")
_PORTS_REASON = tr("forwarded ports need a small library in libslirp's helper")

_MEMORY = 1 << 30
_PROCESSES = 16


@asynccontextmanager
async def user_network(
    say: Callable[[str], None],
    *,
    ports: Sequence[BoundPort] = (),
    opened: Sequence[OpenedPort] = (),
    resolv_conf: Path = _RESOLV_CONF,
    plugged: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[socket.socket]:
    """Run the helper that opens connections in the host's network for a guest, and yield the
    guest's end of the wire: a datagram socket of Ethernet frames.

    The guest cannot reach this machine's own addresses, but for `opened`; changes of these take
    effect at once.
    The helper reads what a stranger's guest sends, so it sees only its libraries and `resolv_conf`.

    Args:
        say: called if the helper ends before the block is left; the guest then has no network.
        ports: of this machine, which lead into the guest.
        opened: of this machine, which the guest can connect to.
        resolv_conf: names the name servers that answer the guest.
        plugged: returns once the guest's card is plugged in; the helper starts then. A client of
            `ports` waits: what the helper sends earlier is lost, and libslirp sends it again only
            after six seconds.

    Raises:
        NeedsPackageError: libslirp-helper or bubblewrap is not installed, or a C compiler that
            `ports` need.
        GuestError: the helper does not start.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        async with uplink(
            *(theirs.fileno(), ours, partial(close_off, theirs, opened), say),
            ports=ports,
            loopback=any(port.address == LOOPBACK for port in opened),
            resolv_conf=resolv_conf,
            plugged=plugged,
        ):
            yield ours


@asynccontextmanager
async def uplink(
    fd: int,
    wire: socket.socket,
    close_off: Callable[[list[IPv4Network]], None],
    say: Callable[[str], None],
    *,
    ports: Sequence[BoundPort] = (),
    loopback: bool = False,
    resolv_conf: Path = _RESOLV_CONF,
    plugged: Callable[[], Awaitable[None]] | None = None,
) -> AsyncIterator[None]:
    """Run the helper on a wire of Ethernet frames.

    Args:
        fd: its end of the wire: a datagram socket, or a tap.
        wire: sends frames to that end.
        close_off: puts the filter of frames on `fd`; called with this machine's own networks.
        say: called if the helper ends before the block is left.
        ports: as for `user_network`; so are `resolv_conf`, `plugged` and the errors.
        loopback: whether the helper's alias leads to this machine's loopback; the filter then
            decides what reaches it.
    """
    with plain_errors():
        helper = await trio.to_thread.run_sync(_helper, fd, resolv_conf, ports, loopback)
        fds = [fd, *(port.sock.fileno() for port in ports)]
        async with trio.open_nursery() as nursery:
            await nursery.start(own_addresses.follow_own_networks, close_off)
            if plugged is None:
                await nursery.start(_run, helper, fds, wire, say)
            else:
                nursery.start_soon(_run_later, helper, fds, wire, say, plugged)
            yield
            nursery.cancel_scope.cancel()


async def _run(
    helper: sandbox.Sandbox,
    fds: Sequence[int],
    wire: socket.socket,
    say: Callable[[str], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run the helper until it ends, which is told, or until cancelled."""
    with closing(NativeOutput()) as native:
        async with sandbox.running(helper, pass_fds=fds, output=native.write_end) as process:
            native.close_write_end()
            task_status.started()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(tick, wire)
                await _report_end(process, native, say)
                nursery.cancel_scope.cancel()


async def _run_later(
    helper: sandbox.Sandbox,
    fds: Sequence[int],
    wire: socket.socket,
    say: Callable[[str], None],
    plugged: Callable[[], Awaitable[None]],
) -> None:
    """Run the helper from when the guest's card is plugged in."""
    await plugged()
    try:
        await _run(helper, fds, wire, say)
    except (GuestError, OSError) as err:  # the guest runs, and goes on without one
        say(tr("has no network: {err}", err=err))


async def tick(wire: socket.socket) -> None:
    """Send a frame now and then. The helper gives libslirp no time of its own: its timers are
    looked at only when a frame or data arrives, so what was lost at the end of a transfer would
    never be sent again."""
    while True:
        await trio.sleep(_TICK_SECONDS)
        try:
            wire.send(_TICK, socket.MSG_DONTWAIT)
        except BlockingIOError:  # it has frames to look at
            continue
        except OSError:  # it has ended
            return


async def _report_end(
    process: sandbox.SandboxedProcess, native: NativeOutput, say: Callable[[str], None]
) -> None:
    await native.collect()
    code = await process.wait()
    said = f": {printable(native.last_words)}" if native.tail else ""
    say(
        tr(
            "has no network any more: its helper ended (exit status {code}){said}",
            code=code,
            said=said,
        )
    )


def _helper(
    fd: int,
    resolv_conf: Path,
    ports: Sequence[BoundPort],
    loopback: bool,
) -> sandbox.Sandbox:
    program = find_program("libslirp-helper", "libslirp-helper")
    command = [
        *(str(program), f"--fd={fd}", "--disable-ipv6", f"--mtu={MTU}"),
        *([] if loopback else ["--disable-host-loopback"]),
        *(f"--net=10.0.2.0/{PREFIX_LENGTH}", f"--host={HOST_ADDRESS}"),
        *(f"--dhcp-start={GUEST_ADDRESS}", f"--dhcp-dns={NAMESERVER_ADDRESS}"),
    ]
    visible = sandbox.program_files(program)
    if resolv_conf.exists():
        visible[_RESOLV_CONF] = resolv_conf.resolve()
    environment = {}
    if ports:
        visible[_PORTS_LIBRARY] = preload.compiled("slirp_ports", _PORTS_REASON)
        words = " ".join(port.word for port in ports)
        environment = {"LD_PRELOAD": str(_PORTS_LIBRARY), "P2PCLOOP_PORTS": words}
    return sandbox.prepare(
        command,
        visible=visible,
        memory=_MEMORY,
        processes=_PROCESSES,
        environment=environment,
        network=sandbox.Network(shared=True),
    )


def uml_parameter(fd: int, interface: str = GUEST_INTERFACE) -> str:
    """Return the kernel parameter that makes the socket `fd` a network card of the guest.

    The card itself has the MTU, so that no program of the image has to set it. With `vec=1` frames
    are read and written many at a time, and wait where the helper is busy; else they are lost.
    """
    return f"{interface}:transport=fd,fd={fd},mtu={MTU},vec=1"
