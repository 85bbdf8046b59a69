"""Real guests: the tiny image in User-Mode Linux, its disk served by qemu-storage-daemon."""

from __future__ import annotations

import hashlib
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import termios
import textwrap
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcloop.errors import GuestError, NeedsPackageError
from p2pcloopd import programs
from p2pcloopd.guest.events import Events
from p2pcloopd.guest.lifecycle import run_guest
from p2pcloopd.guest.network import frame_filter
from p2pcloopd.guest.network import slirp as network
from p2pcloopd.guest.network.slirp import user_network
from p2pcloopd.guest.running import RunningGuest
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system import initramfs, kernel, xsave
from p2pcloopd.guest.system.files_root import build_files_initramfs
from tests.support.file_systems import make_read_only
from tests.support.typed_guest import TypedGuest
from tools.tiny_image import PROMPT, SHELL_PROMPT, build_tiny_image, fill_root

pytestmark = pytest.mark.e2e

BOUND = 120.0
"""Seconds that nothing here may take; a guest needs two to five."""


@pytest.fixture(scope="module")
def tiny_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    image = tmp_path_factory.mktemp("tiny") / "tiny.img"
    build_tiny_image(image)
    return image


@pytest.fixture(autouse=True)
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A directory for temporary files that no other guest of this machine uses."""
    with tempfile.TemporaryDirectory(prefix="g-") as directory:
        monkeypatch.setattr(tempfile, "tempdir", directory)
        yield


@pytest.fixture
def image(tiny_image: Path, tmp_path: Path) -> Path:
    copy = tmp_path / "disk.img"
    copy.write_bytes(tiny_image.read_bytes())
    return copy


@pytest.fixture
def spec(image: Path) -> Iterator[GuestSpec]:
    with serve(image) as made:
        yield made


class serve:  # noqa: N801  reads as a verb
    """Serve an image over vhost-user-blk; as a context it gives the spec of a guest for it."""

    def __init__(self, image: Path, *, writable: bool = True) -> None:
        self._image = image
        self._writable = "on" if writable else "off"

    def __enter__(self) -> GuestSpec:
        # pytest's own directories are too deep for a socket's name.
        self._directory = tempfile.TemporaryDirectory(prefix="disk-")
        path = Path(self._directory.name) / "sock"
        listener = socket.socket(socket.AF_UNIX)
        listener.bind(str(path))
        listener.listen()
        export = [
            *("type=vhost-user-blk", "id=export", "node-name=disk", "addr.type=fd"),
            *(f"addr.str={listener.fileno()}", f"writable={self._writable}"),
        ]
        self._server = subprocess.Popen(
            [
                "qemu-storage-daemon",
                *("--blockdev", f"driver=file,node-name=disk,filename={self._image}"),
                "--export",
                ",".join(export),
            ],
            pass_fds=[listener.fileno()],
        )
        listener.close()
        return GuestSpec(path, memory=128 << 20, append="quiet", console=Path(os.devnull))

    def signal(self, number: signal.Signals) -> None:
        self._server.send_signal(number)

    def kill(self) -> None:
        self._server.kill()
        self._server.wait()

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._directory.cleanup()


@asynccontextmanager
async def booted(spec: GuestSpec) -> AsyncIterator[TypedGuest]:
    """A guest at its shell prompt; leaving the block waits for its end."""
    guest = TypedGuest()

    async def live(task_status: trio.TaskStatus[RunningGuest]) -> None:
        events = Events(console=guest.take)
        guest.result = await run_guest(spec, events, task_status=task_status)

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            guest.handle = await nursery.start(live)
            await guest.wait_for(SHELL_PROMPT.encode())
            yield guest


def pids_of(guest: RunningGuest) -> list[int]:
    """Every process in the guest's sandbox."""
    assert guest._boot is not None
    namespace = Path(f"/proc/{guest._boot.process.init_pid}/ns/pid").readlink()
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if (entry / "ns/pid").readlink() == namespace:
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def mapped_files(pids: list[int]) -> str:
    return "".join(Path(f"/proc/{pid}/maps").read_text() for pid in pids)


def private_directories() -> set[Path]:
    return set(Path(tempfile.gettempdir()).glob("p2pcloop-*"))


def file_system_tool(name: str, *arguments: str | Path) -> str:
    """Run a program of e2fsprogs and return what it prints."""
    command = [programs.find_program(name, "e2fsprogs"), *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=120)
    return done.stdout


@contextmanager
def python(program: str, **options: Any) -> Iterator[subprocess.Popen[bytes]]:
    command = [sys.executable, "-c", textwrap.dedent(program)]
    with subprocess.Popen(command, **options) as process:
        try:
            yield process
        finally:
            process.kill()


def is_running(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    # A zombie has ended; the process that adopted it has not asked for its status yet.
    return stat.rpartition(")")[2].split()[0] not in "ZX"


async def test_prompt_command_and_poweroff(spec: GuestSpec) -> None:
    async with booted(spec) as guest:
        assert PROMPT.encode() in guest.printed
        assert "hello 42" in await guest.sh("echo hello $((6 * 7))")
        assert f"{initramfs.READ_AHEAD_KB}\n" in await guest.sh(
            "cat /sys/block/vda/queue/read_ahead_kb"
        )
        assert "vec0" not in await guest.sh("ls /sys/class/net")
        await guest.sh("echo kept > /root/file")
        await guest.handle.send_console(b"poweroff\n")
    assert guest.result is not None
    assert guest.result.exit_code == 0
    assert guest.result.reason == "poweroff"
    assert guest.result.boot_seconds is not None
    assert 0 < guest.result.boot_seconds < guest.result.seconds
    async with booted(spec) as again:
        assert "kept" in await again.sh("cat /root/file")
        again.handle.kill()
    assert again.result is not None
    assert (again.result.exit_code, again.result.reason) == (137, "killed")


async def test_panic_is_an_error(spec: GuestSpec) -> None:
    async with booted(spec) as guest:
        await guest.handle.send_console(b"echo c > /proc/sysrq-trigger\n")
    assert guest.result is not None
    assert guest.result.reason == "panic"
    assert guest.result.exit_code != 0


async def test_interrupt_shuts_down_in_order_and_leaves_a_clean_disk(
    spec: GuestSpec, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with booted(spec) as guest:
        await guest.sh("echo kept > /root/file")
        os.kill(os.getpid(), signal.SIGINT)
    assert guest.result is not None
    assert (guest.result.exit_code, guest.result.reason) == (0, "reboot")
    assert b"The system is going down" in guest.printed
    assert "shuts down" in capsys.readouterr().err
    file_system_tool("e2fsck", "-fn", image)
    assert "needs_recovery" not in file_system_tool("dumpe2fs", "-h", image)


async def test_second_interrupt_ends_it(spec: GuestSpec) -> None:
    """One whose init is a shell, which goes on."""
    async with booted(replace(spec, append=f"quiet init=/bin/sh PS1='{SHELL_PROMPT}'")) as guest:
        await guest.sh("echo 0 > /proc/sys/kernel/ctrl-alt-del")
        await guest.wait_for(b"ENDMARK.*" + SHELL_PROMPT.encode())
        start = len(guest.printed)
        os.kill(os.getpid(), signal.SIGTERM)
        await guest.wait_for(SHELL_PROMPT.encode(), start)  # all that it does to a shell
        os.kill(os.getpid(), signal.SIGINT)
    assert guest.result is not None
    assert (guest.result.exit_code, guest.result.reason) == (137, "killed")


async def test_two_interrupts_at_once_end_it(spec: GuestSpec) -> None:
    async with booted(spec) as guest:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)
    assert guest.result is not None
    assert (guest.result.exit_code, guest.result.reason) == (137, "killed")


async def test_shutdown_before_the_guest_listens_ends_it(spec: GuestSpec) -> None:
    async def live(task_status: trio.TaskStatus[RunningGuest]) -> None:
        result = await run_guest(spec, task_status=task_status)
        assert result.reason in ("killed", "reboot", "poweroff")

    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            guest = await nursery.start(live)
            await guest.shutdown()


async def test_cancellation_leaves_no_process_and_no_file(spec: GuestSpec) -> None:
    before = private_directories()
    with trio.CancelScope() as scope:
        async with booted(replace(spec, network="user")) as guest:
            pids = pids_of(guest.handle)
            assert len(pids) > 1
            assert all(map(is_running, pids))
            scope.cancel()
    assert not any(map(is_running, pids))
    assert private_directories() <= before


async def test_guest_whose_disk_is_gone_can_be_cancelled(image: Path) -> None:
    with trio.CancelScope() as scope:
        server = serve(image)
        with server as spec:
            async with booted(spec) as guest:
                pids = pids_of(guest.handle)
                # A guest that spins for its disk may not even echo what is typed.
                await guest.handle.send_console(
                    b"while :; do echo x >>f; sync; echo rou''nd; done\n"
                )
                await guest.wait_for(b"round")
                server.kill()
                scope.cancel()
    assert not any(map(is_running, pids))


async def test_a_kernel_that_waits_for_its_disk_at_its_end_is_ended(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As 7.2 does, which resets the disk under a write and then waits for it."""
    newer = kernel.unpacked_kernel()
    if not newer.exists():
        pytest.skip("the system's kernel does not wait: tools/get-uml-kernel has a newer one")
    monkeypatch.setenv("P2PCLOOP_KERNEL", str(newer.resolve()))
    server = serve(image)
    with server as spec:
        async with booted(spec) as guest:
            # Any program may print what the kernel prints at its end.
            await guest.sh("echo; echo reboot: Power down; sleep 2")
            await guest.sh("echo x > /root/kept; sync")
            server.signal(signal.SIGSTOP)
            start = len(guest.printed)
            words = b"echo x > /root/lost; (sync &); sleep 1; poweroff -n -f\n"
            try:
                await guest.handle.send_console(words)
                await guest.wait_for(rb"reboot: (Power down|System halted)\r*\n", start)
            finally:
                server.signal(signal.SIGCONT)
        assert guest.result is not None
        assert (guest.result.exit_code, guest.result.reason) == (0, "poweroff")
    assert "kept" in file_system_tool("debugfs", "-R", "ls -l /root", image)


async def test_guest_dies_with_its_parent(spec: GuestSpec) -> None:
    program = f"""
        import trio
        from pathlib import Path
        from p2pcloopd.guest.spec import GuestSpec
        from p2pcloopd.guest.lifecycle import run_guest

        async def live(task_status):
            spec = GuestSpec(Path({str(spec.disk_socket)!r}), console=Path("/dev/null"))
            await run_guest(spec, task_status=task_status)

        async def main():
            async with trio.open_nursery() as nursery:
                guest = await nursery.start(live)
                print(guest._boot.process.init_pid, flush=True)

        trio.run(main)
    """
    with python(program, stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        init = os.pidfd_open(int(await trio.to_thread.run_sync(parent.stdout.readline)))
    with trio.fail_after(BOUND):
        await trio.lowlevel.wait_readable(init)
    os.close(init)


async def test_window_size(spec: GuestSpec) -> None:
    """What is on standard input is the guest's terminal, and its size follows."""
    program = f"""
        import os, sys
        os.login_tty(os.dup(0))
        import trio
        from pathlib import Path
        from p2pcloopd.guest.spec import GuestSpec
        from p2pcloopd.guest.lifecycle import run_guest
        spec = GuestSpec(Path({str(spec.disk_socket)!r}), append="quiet")
        sys.exit(trio.run(run_guest, spec).exit_code)
    """
    master, terminal = os.openpty()
    termios.tcsetwinsize(master, (33, 111))
    printed = b""

    async def wait_for(text: bytes) -> None:
        nonlocal printed
        while text not in printed:
            await trio.lowlevel.wait_readable(master)
            printed += os.read(master, 4096)
        printed = printed.partition(text)[2]

    with trio.fail_after(BOUND), python(program, stdin=terminal, start_new_session=False) as parent:
        os.write(master, b"stty size\r")
        await wait_for(b"33 111")
        await wait_for(SHELL_PROMPT.encode())
        termios.tcsetwinsize(master, (44, 99))
        os.write(master, b"while [ \"$(stty size)\" = '33 111' ]; do :; done; stty size\r")
        await wait_for(b"44 99")
        os.write(master, b"\x1dK")
        assert await trio.to_thread.run_sync(parent.wait) == 137
    os.close(master)
    os.close(terminal)


async def test_guests_root_finds_no_file_of_the_host(spec: GuestSpec, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's secret")
    up = "/.." * 12
    async with booted(spec) as guest:
        await guest.sh(f"mount -t hostfs none /mnt -o {up}")
        files = await guest.sh(
            "find /mnt -path /mnt/proc -prune -o -path /mnt/dev -prune -o -type f -print"
        )
        found = {line.removeprefix("/mnt") for line in files.split() if line.startswith("/mnt/")}
        uml = kernel.find_kernel().path
        # The confinement of hostfs= is escaped from (so this test sees something), to this:
        allowed = {str(path) for path in [*sandbox.program_files(uml), kernel.find_busybox()]}
        allowed |= {"/run/uml/guest/pid", "/run/xsave.so"}  # its own, as all of /run is; the shim
        assert str(uml) in found
        assert {path for path in found - allowed if not path.endswith("/initramfs.cpio")} == set()
        for path in (f"/mnt{secret}", "/mnt/etc/passwd", f"/mnt{sys.executable}"):
            assert "can't open" in await guest.sh(f"cat {path}")
        assert "can't create" in await guest.sh(f"echo x > /mnt{uml}")
        assert "can't create" in await guest.sh("echo x > /mnt/new")
        for place in ("/etc", str(tmp_path)):
            assert "failed" in await guest.sh(f"mount -t hostfs none /tmp -o {up}{place}")
        guest.handle.kill()


async def test_network(spec: GuestSpec) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.setblocking(False)
        port = listener.getsockname()[1]
        async with booted(replace(spec, network="user")) as guest:
            assert "10.0.2.15/24" in await guest.sh("ip address")
            assert "1 packets received" in await guest.sh("ping -c1 -w100 10.0.2.2")
            assert "10.0.2.3" in await guest.sh("cat /etc/resolv.conf")
            await guest.sh("ip route del local 127.0.0.0/8 table local; ip addr flush dev lo")
            await guest.sh("ip route add 127.0.0.0/8 via 10.0.2.2")
            await guest.sh("echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet")
            for address in ("10.0.2.2", "127.0.0.1"):
                assert "status 1" in await guest.sh(
                    f"nc -w 1 {address} {port} < /dev/null; echo status $?"
                )
            guest.handle.kill()
        with pytest.raises(BlockingIOError):
            listener.accept()


async def test_shim(spec: GuestSpec, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It does no harm where it is not needed, and the guest's processes compute with it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(xsave, "is_needed", lambda _: True)
    async with booted(spec) as guest:
        assert "xsave" in mapped_files(pids_of(guest.handle))
        assert "0.333333" in await guest.sh("awk 'BEGIN { print 1 / 3 }'")
        await guest.handle.send_console(b"poweroff -f\n")
    assert guest.result is not None
    assert guest.result.exit_code == 0


async def test_disk_without_a_file_system(tmp_path: Path) -> None:
    (tmp_path / "blank").write_bytes(bytes(1 << 20))
    with serve(tmp_path / "blank") as spec, trio.fail_after(BOUND):
        with pytest.raises(GuestError, match="no ext2, ext3, ext4, btrfs or xfs"):
            await run_guest(spec)


async def test_root_without_init(spec: GuestSpec) -> None:
    with trio.fail_after(BOUND), pytest.raises(GuestError, match="/no/such/init"):
        await run_guest(replace(spec, append="quiet init=/no/such/init"))


async def test_chosen_init_on_a_read_only_disk(image: Path) -> None:
    with serve(image, writable=False) as spec:
        chosen = replace(spec, append=f"quiet init=/bin/sh PS1='{SHELL_PROMPT}'")
        async with booted(chosen) as guest:
            assert "Read-only" in await guest.sh("echo x > /root/file")
            await guest.handle.send_console(b"/sbin/poweroff -f\n")
    assert guest.result is not None
    assert guest.result.reason == "poweroff"


async def test_ext2_root(image: Path, tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    other = tmp_path / "ext2.img"
    file_system_tool("debugfs", "-R", f"rdump / {tmp_path}/root", image)
    file_system_tool("mke2fs", "-q", "-t", "ext2", "-d", tmp_path / "root", other, "16M")
    with serve(other) as spec:
        async with booted(spec) as guest:
            await guest.handle.send_console(b"poweroff -f\n")
    assert guest.result is not None
    assert guest.result.reason == "poweroff"


@pytest.mark.parametrize("missing", ["linux.uml", "busybox", "bwrap", "libslirp-helper"])
async def test_missing_program_names_its_package(
    missing: str, spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = shutil.which
    monkeypatch.setattr(
        shutil, "which", lambda name, **rest: None if name == missing else find(name, **rest)
    )
    with pytest.raises(NeedsPackageError, match=missing) as caught:
        await run_guest(replace(spec, network="user", kernel=kernel.SYSTEM_KERNEL))
    assert "apt-get install" in str(caught.value.hint)


def test_tiny_image_is_deterministic(tiny_image: Path, tmp_path: Path) -> None:
    build_tiny_image(tmp_path / "again.img")
    assert (tmp_path / "again.img").read_bytes() == tiny_image.read_bytes()


async def test_layers_of_a_root_stack(tmp_path: Path) -> None:
    """Two file systems lie on the disk, the upper one not at its start; the changes on another."""
    disk, changes = tmp_path / "disk", tmp_path / "changes"
    with disk.open("wb") as file:
        for number, kind in enumerate(("squashfs", "erofs")):
            tree, part = tmp_path / f"tree{number}", tmp_path / kind
            if number == 0:
                fill_root(tree)
            (tree / "root").mkdir(parents=True, exist_ok=True)
            (tree / "root/both").write_text(f"{number}\n")
            (tree / f"root/only{number}").touch()
            make_read_only(kind, tree, part)
            begin = file.tell()
            file.write(part.read_bytes())
            file.truncate(-(-file.tell() // 4096) * 4096)
            file.seek(0, os.SEEK_END)
    changes.touch()
    os.truncate(changes, 64 << 20)
    file_system_tool("mke2fs", "-q", "-t", "ext4", changes)
    with serve(disk, writable=False) as lower, serve(changes) as upper:
        build = partial(build_files_initramfs, places=("0", f"{begin}"))
        spec = replace(lower, more_disks=(upper.disk_socket,), initramfs=build)
        async with booted(spec) as guest:
            seen = await guest.sh("cat /root/both; ls /root; touch /root/new")
            assert seen.split() == ["1", "both", "hello.deb", "only0", "only1"]
            await guest.handle.send_console(b"poweroff\n")
    assert guest.result is not None
    assert guest.result.reason == "poweroff"
    assert "new" in file_system_tool("debugfs", "-R", "ls /upper/root", changes)


@asynccontextmanager
async def lossy_network(say: Callable[[str], None], **options: Any) -> AsyncIterator[socket.socket]:
    """A guest's network that loses every fiftieth frame in each direction."""
    guest, wire = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    async def carry(source: socket.socket, target: socket.socket) -> None:
        reader = trio.socket.fromfd(source.fileno(), source.family, source.type)
        writer = trio.socket.fromfd(target.fileno(), target.family, target.type)
        with reader, writer:
            for number in itertools.count(1):
                frame = await reader.recv(65536)
                if number % 50:
                    await writer.send(frame)

    async with user_network(say, **options) as card, trio.open_nursery() as nursery:
        with guest, wire:
            nursery.start_soon(carry, card, wire)
            nursery.start_soon(carry, wire, card)
            yield guest
            nursery.cancel_scope.cancel()


async def test_data_arrives_whole_where_frames_are_lost(
    spec: GuestSpec, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(network, "user_network", lossy_network)
    # Without the filter a guest's frames reach the host's loopback: there is no other host here.
    monkeypatch.setattr(frame_filter, "install", lambda *_, **__: None)
    listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port = listeners[0].socket.getsockname()[1]
    data = kernel.find_busybox().read_bytes() * 2
    wanted = hashlib.sha256(data).hexdigest()

    async def answer(stream: trio.SocketStream) -> None:
        received = b"".join([part async for part in stream])
        given = data if received == b"give\n" else hashlib.sha256(received).hexdigest().encode()
        await stream.send_all(given)
        await stream.aclose()

    async with trio.open_nursery() as nursery, booted(replace(spec, network="user")) as guest:
        nursery.start_soon(trio.serve_listeners, answer, listeners)
        await guest.sh("ip route del local 127.0.0.0/8 table local; ip addr flush dev lo")
        await guest.sh("ip route add 127.0.0.0/8 via 10.0.2.2")
        await guest.sh("echo 1 > /proc/sys/net/ipv4/conf/all/route_localnet")
        sent = "cat /bin/busybox /bin/busybox"
        assert wanted in await guest.sh(f"{sent} | nc 127.0.0.1 {port}; echo")
        assert wanted in await guest.sh(f"echo give | nc 127.0.0.1 {port} | sha256sum")
        guest.handle.kill()
        nursery.cancel_scope.cancel()
