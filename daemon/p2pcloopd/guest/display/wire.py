"""The X server of a guest, in a sandbox on this machine, and the guest's way to it.

The guest reaches it over a wire of its own, a second network card. At the other end of that wire
is libslirp's helper, in the same sandbox as the server. The sandbox has a network of its own, in
which there is nothing but the server's port. So the wire leads nowhere else, whatever the guest
sends. It works for guests with any network, and with none.

The server reads what the programs of a stranger's image send. So it sees its own files only, and
has no socket of the host's network, with which it could make connections. This process takes the
viewers, and carries their connections to a Unix socket, which is handed in. A server that shows a
window reaches the user's display in the same way (relay.py).
"""

from __future__ import annotations

import os
import socket
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager, closing, contextmanager
from functools import partial
from pathlib import Path

import trio

from p2pcloop.errors import GuestError
from p2pcloop.protocol.rfb import is_past_handshake
from p2pcloop.store.temporary_folder import temporary_folder
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.entry import plain_errors
from p2pcloopd.guest.display.relay import relay
from p2pcloopd.guest.display.servers import OUTER_SOCKET, XServer, find_server
from p2pcloopd.guest.display.spec import Display
from p2pcloopd.guest.display.web import page_files, serve_web
from p2pcloopd.guest.network import frame_filter, slirp
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.sandbox.native_output import NativeOutput
from p2pcloopd.guest.system.addresses import (
    DISPLAY_ADDRESS,
    DISPLAY_GUEST_ADDRESS,
    DISPLAY_INTERFACE,
    DISPLAY_NETWORK,
    DISPLAY_UNUSED_ADDRESS,
    MTU,
    X_PORT,
)
from p2pcloopd.guest.system.kernel import find_busybox
from p2pcloopd.guest.system.scripts import script
from p2pcloopd.programs import find_program

_STDIN = 0
_SHELL = Path("/bin/sh")
_KEYBOARDS = Path("/usr/share/X11/xkb")

_MEMORY = 1 << 30
"""Bytes that the server may map: its own, and the windows and pictures of the guest's programs."""

_PROCESSES = 32
_SCRATCH = 1 << 20
_START_SECONDS = 20


@asynccontextmanager
async def display_wire(
    display: Display, say: Callable[[str], None]
) -> AsyncIterator[socket.socket]:
    """Run a guest's X server, and yield the guest's end of the wire to it: a datagram socket of
    Ethernet frames. The guest's programs must show the display's cookie.

    The server starts while the block runs: it is ready long before a guest has programs.

    Args:
        display: as the user wants it.
        say: called if the server ends before the block is left.

    Raises:
        NeedsPackageError: a program of the display is not installed.
        GuestError: the server does not start.
    """
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    frame_filter.install_single(theirs, DISPLAY_ADDRESS, X_PORT)
    with ours, plain_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_serve, display, theirs, say)
            nursery.start_soon(slirp.tick, ours)
            if display.web is not None and display.listener is not None:
                vnc = display.listener.getsockname()
                nursery.start_soon(serve_web, display.web, display.token, vnc)
            yield ours
            nursery.cancel_scope.cancel()


async def _serve(display: Display, wire: socket.socket, say: Callable[[str], None]) -> None:
    """Run the server and the helper, whose end of the wire is `wire`, until cancelled."""
    ready, when_ready = socket.socketpair()
    native = NativeOutput()
    with (
        wire,
        closing(native),
        ready,
        when_ready,
        _readable(find_server(display).secrets) as secrets,
    ):
        async with _outer_display(display) as sockets, _viewers(display) as viewers:
            standard_input = _STDIN if viewers is None else viewers.fileno()
            ends = wire.fileno(), when_ready.fileno(), standard_input
            boxed = await trio.to_thread.run_sync(_boxed, display, ends, secrets, sockets)
            fds = [*ends, *secrets.values()]
            async with sandbox.running(boxed, pass_fds=fds, output=native.write_end) as process:
                native.close_write_end()
                when_ready.close()
                if viewers is not None:
                    viewers.close()  # the server has it: with its end, no viewer is taken any more
                is_ready = await _wait_until_ready(ready)
                if not is_ready:
                    process.kill()
                await native.collect()
                code = await process.wait()
    said = f": {printable(native.last_words)}" if native.tail else ""
    if not is_ready:
        raise GuestError(tr("the X server of the guest's display does not start{said}", said=said))
    say(
        tr(
            "has no display any more: its X server ended (exit status {code}){said}",
            code=code,
            said=said,
        )
    )


@asynccontextmanager
async def _outer_display(display: Display) -> AsyncIterator[Mapping[Path, Path]]:
    """Yield the socket at which a server that shows a window reaches the user's display."""
    if display.host is None:
        yield {}
        return
    with temporary_folder() as folder, socket.socket(socket.AF_UNIX) as listener:
        path = folder / "outer"
        listener.bind(str(path))
        listener.listen()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(partial(relay, with_fds=True), listener, display.host.address)
            yield {OUTER_SOCKET: path}
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def _viewers(display: Display) -> AsyncIterator[socket.socket | None]:
    """Yield the socket at which the server takes viewers, which come to `display.listener`; None
    for a window. As it listens, the kernel lets no holder of it connect it to anything."""
    if display.listener is None:
        yield None
        return
    with temporary_folder() as folder, socket.socket(socket.AF_UNIX) as inner:
        path = str(folder / "viewers")
        inner.bind(path)
        inner.listen()
        async with trio.open_nursery() as nursery:
            viewers = partial(relay, is_past_handshake=is_past_handshake)
            nursery.start_soon(viewers, display.listener, path)
            yield inner
            nursery.cancel_scope.cancel()


async def _wait_until_ready(ready: socket.socket) -> bool:
    """Whether the server serves its clients; it has ended, or hangs, if not."""
    with trio.move_on_after(_START_SECONDS):
        await trio.lowlevel.wait_readable(ready)
        return bool(ready.recv(16))
    return False


def check_programs(display: Display) -> tuple[XServer, Path, Path]:
    """Return the X server, the helper at the end of its wire, and the compiler of its keyboards.

    Raises:
        NeedsPackageError: one of them is not installed, or noVNC for a display in a browser.
    """
    if display.web is not None:
        page_files()
    return (
        find_server(display),
        find_program("libslirp-helper", "libslirp-helper"),
        find_program("xkbcomp", "x11-xkb-utils"),
    )


def _boxed(
    display: Display,
    ends: tuple[int, int, int],
    secrets: Mapping[Path, int],
    sockets: Mapping[Path, Path],
) -> sandbox.Sandbox:
    """Put the sandbox of server and helper together.

    Args:
        display: as the user wants it.
        ends: the helper's end of the wire, where the server writes once it serves its clients, and
            its standard input.
        secrets: descriptors of the server's files, by their places in the sandbox.
        sockets: of the host, by their places in the sandbox.
    """
    wire, when_ready, viewers = ends
    server, helper, keyboard_compiler = check_programs(display)
    busybox = find_busybox()
    visible = {
        **sandbox.program_files(server.program),
        **sandbox.program_files(helper),
        **sandbox.program_files(keyboard_compiler),
        **sockets,
        _SHELL: busybox,
        _KEYBOARDS: _KEYBOARDS,
    }
    start = [str(busybox), "sh", "-c", script("display"), "display"]
    words = [str(busybox), str(viewers), _helper_command(helper, wire)]
    words += [word for place, fd in secrets.items() for word in (str(fd), str(place))]
    words += ["--"]
    words += [str(server.program), ":0", "-displayfd", str(when_ready), *server.options]
    return sandbox.prepare(
        [*start, *words],
        visible=visible,
        memory=_MEMORY,
        processes=_PROCESSES,
        tmpfs={"/run": _SCRATCH, "/tmp": _SCRATCH},  # noqa: S108  inside
        environment=server.environment,
        network=sandbox.Network(loopback=True),
    )


@contextmanager
def _readable(files: Mapping[Path, bytes]) -> Iterator[dict[Path, int]]:
    """Descriptors from which the files of a sandbox are read: none lies on this machine's disk,
    where it would be left if this process was killed."""
    fds = {place: sandbox.readable(data) for place, data in files.items()}
    try:
        yield fds
    finally:
        for fd in fds.values():
            os.close(fd)


def _helper_command(program: Path, wire: int) -> str:
    words = [
        *(str(program), f"--fd={wire}", "--disable-ipv6", f"--mtu={MTU}"),
        *(f"--net={DISPLAY_NETWORK}", f"--host={DISPLAY_ADDRESS}"),
        *(f"--dhcp-start={DISPLAY_GUEST_ADDRESS}", f"--dhcp-dns={DISPLAY_UNUSED_ADDRESS}"),
    ]
    return " ".join(words)


def uml_parameter(fd: int) -> str:
    """Return the kernel parameter that makes the socket `fd` the guest's card for its display."""
    return slirp.uml_parameter(fd, DISPLAY_INTERFACE)
