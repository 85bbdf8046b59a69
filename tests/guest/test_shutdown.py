"""Ctrl-Alt-Del and how a hostile guest answers it; the guest is played by a socket and `sleep`."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
import trio
import trio.testing

from p2pcloop.errors import GuestError
from p2pcloopd.guest import lifecycle, running
from p2pcloopd.guest.channel.waking import Waking
from p2pcloopd.guest.console.console import Pty
from p2pcloopd.guest.console.prompts import PromptWatch
from p2pcloopd.guest.events import Events
from p2pcloopd.guest.machine import mconsole
from p2pcloopd.guest.machine import uml as machine
from p2pcloopd.guest.machine.machine import Machine
from p2pcloopd.guest.quiet_start import QuietStart
from p2pcloopd.guest.sandbox.bubblewrap import SandboxedProcess
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.initramfs import ADDRESS_MARK, FAILURE_MARK, START_MARK
from p2pcloopd.guest.transcript import Transcript
from tests.support.waiting import BOUND


@pytest.fixture
def directory(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the guest has its socket; short, as unix sockets want it."""
    with tempfile.TemporaryDirectory(prefix="p2pg") as name:
        monkeypatch.setattr(machine, "MANAGEMENT_SOCKET", Path(name, "guest/mconsole"))
        (Path(name) / "guest").mkdir()
        yield Path(name)


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(["/bin/sleep", "60"]) as popen:
        yield popen
        popen.kill()


@pytest.fixture
def pty() -> Iterator[Pty]:
    made = Pty()
    yield made
    made.close()


async def test_a_terminal_that_takes_nothing_does_not_hold_up_the_guests_end(
    tmp_path: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    class Stuck:
        async def show_all(self) -> None:
            await trio.sleep_forever()

    spec = GuestSpec(tmp_path / "vda", console=tmp_path / "console")
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            attended = lifecycle._Attended(spec, Events(), None, stack, nursery)
            attended._quiet = cast(QuietStart, Stuck())
            with trio.fail_after(lifecycle.SHUTDOWN_SECONDS / 2):
                await attended._shut_down()
            assert attended._guest.killed  # it did not run yet
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("changes", "address"),
    [({}, ["192.0.2.7"]), ({"firmware": "uefi"}, []), ({"waking": Waking(0.0)}, [])],
    ids=["our initramfs", "by firmware", "resumed"],
)
async def test_only_our_initramfs_tells_the_guests_address(
    tmp_path: Path, changes: dict[str, Any], address: list[str]
) -> None:
    spec = GuestSpec(tmp_path / "vda", console=tmp_path / "console", **changes)
    told: list[str] = []
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            events = Events(address=told.append)
            attended = lifecycle._Attended(spec, events, None, stack, nursery)
            attended._transcript().take(f"{ADDRESS_MARK}192.0.2.7/24\n".encode())
            nursery.cancel_scope.cancel()
    assert told == address


@pytest.mark.parametrize(
    ("answer", "killed"),
    [(bytes(12), False), (b"\x01\0\0\0" + bytes(8), True), (b"?", True), (b"\xff" * 12, True)],
    ids=["done", "refused", "too short", "says more than it has"],
)
async def test_an_answer_that_is_none_ends_the_guest(
    directory: Path, process: subprocess.Popen[bytes], pty: Pty, answer: bytes, killed: bool
) -> None:
    guest = running.RunningGuest()
    guest.runs_as(machine.UmlBoot(SandboxedProcess(process, process.pid), pty, directory))
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as console:
        await console.bind(str(directory / "guest" / "mconsole"))
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.shutdown)
                _, sender = await console.recvfrom(1024)
                await console.sendto(answer, sender)
    assert guest.killed is killed
    assert not killed or process.wait(BOUND) == -signal.SIGKILL


async def test_a_kernel_that_does_not_listen_yet_is_told_once_it_does(
    directory: Path, process: subprocess.Popen[bytes], pty: Pty
) -> None:
    guest = running.RunningGuest()
    guest.runs_as(machine.UmlBoot(SandboxedProcess(process, process.pid), pty, directory))
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as console:
        with trio.fail_after(BOUND):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(guest.shutdown)
                await trio.testing.wait_all_tasks_blocked()
                guest.heard()  # of the kernel's first lines
                await trio.testing.wait_all_tasks_blocked()
                await console.bind(str(directory / "guest" / "mconsole"))
                guest.heard()
                _, sender = await console.recvfrom(1024)
                await console.sendto(bytes(12), sender)
    assert not guest.killed
    assert process.poll() is None


async def test_keys_that_were_pressed_before_the_prompt_are_pressed_again_at_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pressed: list[str] = []
    again = trio.Event()

    async def press(_root: Path, _socket: Path, _reply: Path, command: str) -> str:
        pressed.append(command)
        if len(pressed) == 2:
            again.set()
        await trio.lowlevel.checkpoint()
        return ""

    monkeypatch.setattr(mconsole, "send_command", press)
    spec = GuestSpec(tmp_path / "vda", console=tmp_path / "console")
    with ExitStack() as stack:
        async with trio.open_nursery() as nursery:
            attended = lifecycle._Attended(spec, Events(), None, stack, nursery)
            watch = PromptWatch()
            nursery.start_soon(attended._press_again, watch)
            process = cast(SandboxedProcess, _NoProcess())
            attended._guest._boot = machine.UmlBoot(process, cast(Pty, None), tmp_path)
            await attended._shut_down()
            assert pressed == ["cad"]
            watch.take(b"vm login: ")
            with trio.fail_after(BOUND):
                await again.wait()
            nursery.cancel_scope.cancel()


class _NoProcess:
    init_pid = 0


class _EndsAtOnce:
    """A machine whose kernel has printed something and ends."""

    def __init__(self, process: subprocess.Popen[bytes], printed: str) -> None:
        self._process = process
        self._printed = printed.encode()

    async def start(self, *_: object) -> machine.UmlBoot:
        pty = Pty()
        os.write(pty.slave, self._printed)
        pty.close_slave()
        return machine.UmlBoot(SandboxedProcess(self._process, self._process.pid), pty, Path("/"))


@pytest.mark.parametrize(
    ("asked", "printed", "reason"),
    [
        (True, "", "poweroff"),
        (True, "Linux version 6.1\n", "poweroff"),
        (True, f"{START_MARK}/sbin/init\nKernel panic - not syncing", "panic"),
        (True, f"{FAILURE_MARK}no root\n", "cannot boot: no root"),
        (False, "", "did not start"),
    ],
    ids=["silent", "early", "later", "no root", "not asked"],
)
async def test_a_guest_that_is_shut_down_before_its_init_starts_has_not_crashed(
    tmp_path: Path, asked: bool, printed: str, reason: str
) -> None:
    class Asks:
        def started(self, guest: running.RunningGuest) -> None:
            guest.shutdown_asked = asked

    spec = GuestSpec(tmp_path / "vda", console=tmp_path / "console")
    with ExitStack() as stack, subprocess.Popen(["/bin/false"]) as process:  # noqa: ASYNC220
        async with trio.open_nursery() as nursery:
            attended = lifecycle._Attended(spec, Events(), None, stack, nursery)
            kernel = cast(Machine, _EndsAtOnce(process, printed))
            try:
                end = await attended._boot(kernel, cast(trio.TaskStatus[Any], Asks()))
            except GuestError as err:
                assert reason in str(err)
            else:
                assert (end.reason, end.exit_code) == (reason, 0 if reason == "poweroff" else 1)


@pytest.mark.parametrize("place", ["guest/mconsole", "guest"])
async def test_a_link_in_the_sockets_place_is_not_followed(
    place: str, directory: Path, process: subprocess.Popen[bytes], pty: Pty
) -> None:
    """An absolute link would be looked up from the host's root, not the guest's."""
    (directory / "guest").rmdir()
    (directory / "other").mkdir()
    path = directory / place
    path.parent.mkdir(exist_ok=True)
    path.symlink_to(directory / "other" / ("mconsole" if "/" in place else ""))
    guest = running.RunningGuest()
    guest.runs_as(machine.UmlBoot(SandboxedProcess(process, process.pid), pty, directory))
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as another:
        another.bind(str(directory / "other/mconsole"))
        another.setblocking(False)
        with trio.fail_after(BOUND):
            await guest.shutdown()
        with pytest.raises(BlockingIOError):
            another.recv(1024)
    assert guest.killed


async def test_what_was_asked_before_the_kernel_runs_holds_when_it_does(
    directory: Path, process: subprocess.Popen[bytes], pty: Pty
) -> None:
    """Before its first start, and between a reboot's two kernels."""
    guest = running.RunningGuest()
    assert not await guest.shutdown()
    guest.runs_as(machine.UmlBoot(SandboxedProcess(process, process.pid), pty, directory))
    assert process.wait(BOUND) == -signal.SIGKILL


DOWN = b"reboot: Power down\r\n"


class _Sandbox:
    """A kernel's process that ends only if it is killed."""

    init_pid = 0

    def __init__(self) -> None:
        self.killed = trio.Event()

    def kill(self) -> None:
        self.killed.set()


@pytest.fixture
async def down(
    directory: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[machine.UmlBoot, _Sandbox, Transcript]]:
    """A kernel that runs, with its management console; and what it has printed."""
    monkeypatch.setattr(machine.UmlBoot, "_root", directory)
    monkeypatch.setattr(machine, "MANAGEMENT_SOCKET", Path("/guest/mconsole"))
    sandbox = _Sandbox()
    boot = machine.UmlBoot(cast(SandboxedProcess, sandbox), cast(Pty, None), directory)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as console:
        console.bind(str(directory / "guest/mconsole"))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(boot.attend)
            yield boot, sandbox, Transcript(trio.current_time)
            nursery.cancel_scope.cancel()


def printed(boot: machine.UmlBoot, transcript: Transcript, text: bytes) -> None:
    transcript.take(text)
    boot.heard(transcript)


async def test_a_kernel_that_is_down_and_does_not_end_is_ended(
    down: tuple[machine.UmlBoot, _Sandbox, Transcript],
    directory: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    """However long it took to remove its management console."""
    boot, sandbox, transcript = down
    printed(boot, transcript, DOWN)
    await trio.sleep(100)
    assert not sandbox.killed.is_set()
    (directory / "guest/mconsole").unlink()
    with trio.fail_after(BOUND):
        await sandbox.killed.wait()
    assert boot.ending(transcript, 137) == (0, "poweroff")
    assert boot.ending(transcript, 139) == (139, "crash")


async def test_a_program_that_prints_the_kernels_last_words_ends_no_guest(
    down: tuple[machine.UmlBoot, _Sandbox, Transcript],
    directory: Path,
    autojump_clock: trio.testing.MockClock,
) -> None:
    boot, sandbox, transcript = down
    printed(boot, transcript, DOWN)
    await trio.sleep(100)
    printed(boot, transcript, b"more\r\n" * 4096)
    await trio.sleep(2)
    (directory / "guest/mconsole").unlink()
    await trio.sleep(100)
    assert not sandbox.killed.is_set()
    assert boot.ending(transcript, 137) == (137, "crash")


def test_a_sandbox_that_has_ended_tells_nothing(tmp_path: Path) -> None:
    assert mconsole.is_there(tmp_path / "gone", Path("/run/uml/mconsole"))
    assert not mconsole.is_there(tmp_path, Path("/run/uml/mconsole"))
