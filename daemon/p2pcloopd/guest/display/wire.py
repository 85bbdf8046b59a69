"""The X server of a guest: Xvnc, in a sandbox on this machine.

The guest reaches it over a wire of its own, a second network card. At the other end of that wire
is libslirp's helper, in the same sandbox as the server. The sandbox has a network of its own, in
which there is nothing but the server's port. So the wire leads nowhere else, whatever the guest
sends. It works for guests with any network, and with none.

The server reads what the programs of a stranger's image send. So it sees its own files only. The
socket at which viewers connect is bound outside of the sandbox, and handed in.
"""

from __future__ import annotations

import socket
import tempfile
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager, closing
from pathlib import Path

import trio

from p2pcloop.errors import GuestError
from p2pcloop.store.socket_path import socket_folder
from p2pcloop.text import printable
from p2pcloopd.entry import plain_errors
from p2pcloopd.guest.display.access import authority_file, password_file
from p2pcloopd.guest.display.spec import Display
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

_SHELL = Path("/bin/sh")
_KEYBOARDS = Path("/usr/share/X11/xkb")
_AUTHORITY, _PASSWORD = Path("/run/authority"), Path("/run/password")

_MEMORY = 1 << 30
"""Bytes that the server may map: its own, and the windows and pictures of the guest's programs."""

_PROCESSES = 32
_SCRATCH = 1 << 20
_START_SECONDS = 20

_COMMON_OPTIONS = (
    # With GLX, programs of the guest map a whole compiler (libLLVM) to draw in software. Memory
    # cannot be shared with a guest.
    *("-extension", "GLX", "-extension", "MIT-SHM"),
    *("-noreset", "-s", "0", "-fp", "built-ins"),
    *("-listen", "tcp", "-nolisten", "unix", "-nolisten", "local", "-nolisten", "inet6"),
)
"""What every server has. It would end, or begin anew, when its last client goes; `-s 0` leaves the
screen on."""


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
        tempfile.TemporaryDirectory(prefix="p2pcloop-", dir=socket_folder()) as folder,
    ):
        ends = wire.fileno(), when_ready.fileno()
        boxed = await trio.to_thread.run_sync(_boxed, display, Path(folder), *ends)
        fds = [*ends, display.listener.fileno()]
        async with sandbox.running(boxed, pass_fds=fds, output=native.write_end) as process:
            native.close_write_end()
            when_ready.close()
            is_ready = await _wait_until_ready(ready)
            if not is_ready:
                process.kill()
            await native.collect()
            code = await process.wait()
    said = f": {printable(native.last_words)}" if native.tail else ""
    if not is_ready:
        raise GuestError(f"the X server of the guest's display does not start{said}")
    say(f"has no display any more: its X server ended (exit status {code}){said}")


async def _wait_until_ready(ready: socket.socket) -> bool:
    """Whether the server serves its clients; it has ended, or hangs, if not."""
    with trio.move_on_after(_START_SECONDS):
        await trio.lowlevel.wait_readable(ready)
        return bool(ready.recv(16))
    return False


def check_programs() -> tuple[Path, Path, Path]:
    """Return the X server, the helper at the end of its wire, and the compiler of its keyboards.

    Raises:
        NeedsPackageError: one of them is not installed.
    """
    return (
        find_program("Xtigervnc", "tigervnc-standalone-server"),
        find_program("libslirp-helper", "libslirp-helper"),
        find_program("xkbcomp", "x11-xkb-utils"),
    )


def _boxed(display: Display, folder: Path, wire: int, when_ready: int) -> sandbox.Sandbox:
    """Put the sandbox of server and helper together.

    Args:
        display: as the user wants it.
        folder: for the display's secrets; no other user can enter it.
        wire: the helper's end of the wire.
        when_ready: the server writes there once it serves its clients.
    """
    server, helper, keyboard_compiler = check_programs()
    busybox = find_busybox()
    secrets = {
        _AUTHORITY: authority_file(display.cookie),
        _PASSWORD: password_file(display.password),
    }
    visible = {
        **sandbox.program_files(server),
        **sandbox.program_files(helper),
        **sandbox.program_files(keyboard_compiler),
        **_written(secrets, folder),
        _SHELL: busybox,
        _KEYBOARDS: _KEYBOARDS,
    }
    options = [
        *("-displayfd", str(when_ready), "-auth", str(_AUTHORITY), *_COMMON_OPTIONS),
        *("-geometry", display.geometry, "-depth", "24"),
        # With -inetd its standard input is a socket that listens.
        *("-inetd", "-desktop", display.title, "-AlwaysShared"),
        *("-SecurityTypes", "TLSVnc,VncAuth", "-PasswordFile", str(_PASSWORD)),
    ]
    start = [str(busybox), "sh", "-c", script("display"), "display"]
    words = [str(display.listener.fileno()), _helper_command(helper, wire)]
    return sandbox.prepare(
        [*start, *words, str(server), ":0", *options],
        visible=visible,
        memory=_MEMORY,
        processes=_PROCESSES,
        tmpfs={"/tmp": _SCRATCH},  # noqa: S108  inside
        loopback=True,
    )


def _written(files: Mapping[Path, bytes], folder: Path) -> dict[Path, Path]:
    """Write files for this user alone; return where each lies, by its place in the sandbox."""
    places = {inside: folder / inside.name for inside in files}
    for inside, place in places.items():
        place.touch(mode=0o600)
        place.write_bytes(files[inside])
    return places


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
