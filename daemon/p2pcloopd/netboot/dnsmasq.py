"""dnsmasq at an interface of this machine, in a sandbox: it is reached by every machine of a LAN.

It needs ports below 1024 of the host's network, so it is root in it, with three capabilities, and
sees nothing of the host's files. It ends with the process that started it, and its leases with it.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Mapping
from pathlib import Path

import trio

from p2pcloop.errors import BusyError, GuestError, P2pcloopError
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.sandbox import syscall_filter
from p2pcloopd.guest.system.kernel import find_busybox
from p2pcloopd.guest.system.scripts import script
from p2pcloopd.netboot.plan import TFTP_FOLDER
from p2pcloopd.programs import find_program

_CAPABILITIES = ("CAP_NET_ADMIN", "CAP_NET_RAW", "CAP_NET_BIND_SERVICE")
_FAMILIES = (socket.AF_UNIX, socket.AF_INET, socket.AF_INET6, socket.AF_NETLINK)
_TASKS = 64
_START_SECONDS = 20
MIN_PAUSE, MAX_PAUSE = 1, 60
"""Seconds between its end and its next start."""

_LINES = 4
_MAX_LINE = 4096


async def serve_dnsmasq(
    settings: str,
    tftp: Mapping[str, Path],
    told: Callable[[str], None],
    *,
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Run dnsmasq until cancelled; if it ends later on, start it again, with a growing pause.

    Machines that run do not need it: their disks go on meanwhile.

    Args:
        settings: its configuration.
        tftp: what it serves by TFTP, by name.
        told: gets a line when it has ended, and when it serves again.
        task_status: started once it serves for the first time.

    Raises:
        NeedsPackageError: a program is missing.
        BusyError: a port is taken.
        GuestError: it does not start.
    """
    serves = 0
    pause = MIN_PAUSE

    def started() -> None:
        nonlocal serves
        if not serves:
            task_status.started()
        elif pause > MIN_PAUSE:
            told(tr("machines can start again"))
        serves += 1

    while True:
        begun = trio.current_time()
        error = await run_dnsmasq(settings, tftp, started)
        if not serves:
            raise error
        if trio.current_time() - begun > MAX_PAUSE:
            pause = MIN_PAUSE
        told(
            tr(
                "no machine can start, and those that run go on. Next try in {pause} s: {error}",
                pause=pause,
                error=error,
            )
        )
        await trio.sleep(pause)
        pause = min(2 * pause, MAX_PAUSE)


async def run_dnsmasq(
    settings: str, tftp: Mapping[str, Path], started: Callable[[], None]
) -> P2pcloopError:
    """Run dnsmasq to its end; return why it ended, or did not start.

    Args:
        settings, tftp: as for `serve_dnsmasq`.
        started: called once it serves.
    """
    boxed = _sandbox(configuration := sandbox.readable(settings.encode()), tftp)
    read_end, write_end = os.pipe()
    output = _Output(read_end)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(output.follow)
            try:
                async with sandbox.running(
                    boxed, pass_fds=[configuration], output=write_end
                ) as process:
                    os.close(write_end)  # `follow` ends with the last writer
                    write_end = -1
                    with trio.move_on_after(_START_SECONDS):
                        await output.started.wait()
                    if output.serves:
                        started()
                        await process.wait()
            except P2pcloopError as err:
                return err
            finally:
                if write_end >= 0:
                    os.close(write_end)
    finally:
        os.close(configuration)
    return output.error()


class _Output:
    """What dnsmasq prints."""

    def __init__(self, read_end: int) -> None:
        self._stream = trio.lowlevel.FdStream(read_end)
        self._lines: list[str] = []
        self.started = trio.Event()
        self.serves = False

    async def follow(self) -> None:
        """Read until it ends."""
        rest = b""
        async with self._stream:
            async for data in self._stream:
                *lines, rest = (rest + data).split(b"\n")
                rest = rest[-_MAX_LINE:]
                for line in lines:
                    self._take(line.decode(errors="replace"))
        self.started.set()

    def _take(self, line: str) -> None:
        self._lines = [*self._lines, line][-_LINES:]
        if ": started, version" in line:
            self.serves = True
            self.started.set()

    def error(self) -> P2pcloopError:
        """Why it does not run."""
        said = printable(" / ".join(self._lines)) or tr("it says nothing")
        if "in use" in said:
            return BusyError(
                tr("DHCP or TFTP cannot be served: {said}", said=said),
                hint="`ss -ulpn` names the program that has port 67, 69 or 4011: end it, or have it"
                " serve another interface",
            )
        return GuestError(tr("dnsmasq does not serve: {said}", said=said))


def _sandbox(configuration: int, tftp: Mapping[str, Path]) -> sandbox.Sandbox:
    dnsmasq, busybox = find_program("dnsmasq", "dnsmasq-base"), find_busybox()
    words = ["--unshare-ipc", "--unshare-pid", "--unshare-uts", "--unshare-cgroup-try"]
    words += ["--die-with-parent", "--new-session", "--clearenv", "--cap-drop", "ALL"]
    for name in _CAPABILITIES:
        words += ["--cap-add", name]
    # It looks up interfaces in /proc/net, and is the only process that it sees there.
    words += ["--proc", "/proc", "--remount-ro", "/proc", "--dev", "/dev", "--tmpfs", "/run"]
    for path in (*sandbox.program_files(dnsmasq), busybox):
        words += ["--ro-bind", str(path), str(path)]
    for name, path in tftp.items():
        words += ["--ro-bind", str(path), f"{TFTP_FOLDER}/{name}"]
    words += ["--remount-ro", "/", "--chdir", "/", "--"]
    words += [str(busybox), "sh", "-c", script("gate"), "gate", str(_TASKS)]
    words += [str(dnsmasq), "-k", "-C", f"/proc/self/fd/{configuration}", "--pid-file=/run/pid"]
    start = [str(find_program("bwrap", "bubblewrap"))]
    return sandbox.Sandbox([], start, words, syscall_filter.build(*_FAMILIES))
