"""QEMU's own ways to move a running guest over a link: precopy, and a snapshot that is copied.

The guest is that of `p2pcloop boot --vm qemu`: the same kernel, first root, machine and processor,
with a serial console. Its disk is a qcow2 over the raw image. It was booted once and lies there as
a snapshot, so that each round begins with the same guest.
"""

from __future__ import annotations

import itertools
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from bench.guests import LIMIT, PROMPT
from bench.harness import BenchError
from bench.links.network import Host
from bench.links.rig import Boot, Contender, Rig, TookTooLongError, listening, overlay_on
from bench.processes import Argument, run, tail
from p2pcloop.protocol.qmp import QmpReceiver, Refusal, Return, encode_command
from p2pcloopd.guest.machine.qemu_command import CPU, MACHINE
from p2pcloopd.guest.system.initramfs import build_initramfs
from p2pcloopd.guest.system.kernel_words import kernel_words
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel
from tools.console import Console, ConsoleError

_NBD_PORT, _HTTP_PORT, _MIGRATION_PORT = 10811, 10812, 10813
_SNAPSHOT = "up"
_RECEIVE_SIZE = 65536


@dataclass(frozen=True, slots=True)
class _Guest:
    """What each QEMU needs of the guest: files of this machine."""

    kernel: Path
    initramfs: Path
    words: str

    @classmethod
    def of(cls, folder: Path) -> _Guest:
        kernel = find_stock_kernel()
        initramfs = folder / "qemu.cpio"
        initramfs.write_bytes(build_initramfs(kernel))
        words = " ".join(["console=ttyS0", "root=/dev/vda", "rw", *kernel_words(kernel)])
        return cls(kernel.path, initramfs, words)


class _Qmp:
    """QEMU's monitor, one command at a time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(LIMIT)
        self._socket.connect(str(path))
        self._receiver = QmpReceiver()
        self._numbers = itertools.count()
        self.execute("qmp_capabilities")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def execute(self, name: str, **arguments: object) -> object:
        """Run a command; events in between are dropped."""
        number = next(self._numbers)
        self._socket.sendall(encode_command(number, name, arguments))
        while data := self._socket.recv(_RECEIVE_SIZE):
            for message in self._receiver.receive(data):
                if isinstance(message, Refusal):
                    raise BenchError(f"QEMU: {name}: {message.text}")
                if isinstance(message, Return) and message.number == number:
                    value: object = message.value
                    return value
        raise BenchError(f"QEMU ended during {name}")

    def human(self, line: str) -> None:
        """Run a command of the human monitor, which says something only if it fails."""
        if said := str(self.execute("human-monitor-command", **{"command-line": line})).strip():
            raise BenchError(f"QEMU: {line}: {said}")

    def wait_for_migration(self, limit: float) -> None:
        """Wait until the guest runs at the other end: what is typed there before is lost."""
        end = time.monotonic() + limit
        while True:
            told = self.execute("query-migrate")
            status = told["status"] if isinstance(told, dict) else ""
            if status == "completed":
                return
            if status == "failed":
                raise BenchError("QEMU: the migration failed")
            if time.monotonic() > end:
                raise TookTooLongError
            time.sleep(0.02)


def _command(guest: _Guest, disk: Sequence[str], monitor: Path) -> list[Argument]:
    """QEMU with the disk that a node `disk` is."""
    return [
        *("qemu-system-x86_64", "-nodefaults", "-no-user-config", "-display", "none"),
        *("-machine", MACHINE, "-accel", "tcg", "-cpu", CPU, "-smp", "1", "-m", "512M"),
        *("-kernel", guest.kernel, "-initrd", guest.initramfs, "-append", guest.words),
        *("-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console"),
        *("-qmp", f"unix:{monitor},server=on,wait=off"),
        *(word for blockdev in disk for word in ("-blockdev", blockdev)),
        *("-device", "virtio-blk-pci,drive=disk", "-device", "virtio-rng-pci"),
    ]


@contextmanager
def _running(
    rig: Rig, host: Host, command: Sequence[Argument], place: Path, name: str
) -> Iterator[Console]:
    log, errors = place / f"{name}.log", place / f"{name}.err"
    pinned = ["taskset", "-c", str(rig.bench.cpu)]
    argv = [*host.inside, *pinned, *map(str, command)]
    try:
        with Console(argv, log=log, errors=errors, patience=0) as console:
            yield console
    except ConsoleError as err:
        raise BenchError(f"QEMU: {err}: {tail(errors)}") from err


def _snapshot(rig: Rig, guest: _Guest, folder: Path) -> Path:
    """Boot the guest on the seeder to its prompt, and keep it as a snapshot in its disk."""
    disk, monitor = folder / "guest.qcow2", folder / "qmp"
    run(["qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", rig.bench.image, disk])
    with _running(rig, rig.seeder, _command(guest, [_own(disk)], monitor), folder, "boot") as shown:
        shown.expect(PROMPT, 5 * LIMIT)
        time.sleep(1.0)
        with _Qmp(monitor) as qmp:
            qmp.human(f"savevm {_SNAPSHOT}")
    return disk


def _own(disk: Path) -> str:
    return f"driver=qcow2,node-name=disk,file.driver=file,file.filename={disk}"


@contextmanager
def _disk_of_snapshot(rig: Rig, disk: Path, log: Path) -> Iterator[str]:
    """Serve the disk as it was at the snapshot; the reader's blockdev of it, called `far`."""
    argv: list[Argument] = [
        "qemu-nbd",
        "-f",
        "qcow2",
        "-r",
        "-t",
        "-l",
        f"snapshot.name={_SNAPSHOT}",
    ]
    argv += ["-e", "4", "-b", rig.seeder.address, "-p", str(_NBD_PORT), disk]
    with listening(rig.seeder, argv, _NBD_PORT, log):
        address = f"server.type=inet,server.host={rig.seeder.address},server.port={_NBD_PORT}"
        yield f"driver=nbd,node-name=far,read-only=on,{address}"


@contextmanager
def _precopy(rig: Rig, shared: Path) -> Iterator[Boot]:
    guest, size = _Guest.of(shared), rig.bench.image.stat().st_size
    disk = _snapshot(rig, guest, shared)
    uri = f"tcp:{rig.reader.address}:{_MIGRATION_PORT}"
    with _disk_of_snapshot(rig, disk, shared / "nbd.log") as far, ExitStack() as rounds:

        def boot(place: Path, limit: float) -> AbstractContextManager[Console]:
            own, over = place / "source.qcow2", overlay_on("far", place, size)
            run(["cp", "--sparse=always", disk, own])
            stack = rounds.enter_context(ExitStack())
            source = [*_command(guest, [_own(own)], place / "source.qmp"), "-loadvm", _SNAPSHOT]
            stack.enter_context(_running(rig, rig.seeder, source, place, "source"))
            _wait_for(place / "source.qmp")
            qmp = stack.enter_context(_Qmp(place / "source.qmp"))
            qmp.execute("migrate-set-parameters", **{"downtime-limit": 2000})
            target = [*_command(guest, [far, over], place / "target.qmp"), "-incoming", uri]

            @contextmanager
            def moved() -> Iterator[Console]:
                with stack, _running(rig, rig.reader, target, place, "target") as console:
                    while not rig.reader.listens(_MIGRATION_PORT):
                        time.sleep(0.01)
                    qmp.execute("migrate", uri=uri)
                    qmp.wait_for_migration(limit)
                    yield console

            return moved()

        yield boot


@contextmanager
def _copied(rig: Rig, shared: Path) -> Iterator[Boot]:
    guest = _Guest.of(shared)
    disk = _snapshot(rig, guest, shared)
    served = shared / "served"
    served.mkdir()
    disk.rename(served / "guest.qcow2")
    argv: list[Argument] = ["busybox", "httpd", "-f", "-p", f"{rig.seeder.address}:{_HTTP_PORT}"]
    argv += ["-h", served]
    base: list[Argument] = ["qemu-nbd", "-f", "raw", "-r", "-t", "-e", "4"]
    base += ["-b", rig.seeder.address, "-p", str(_NBD_PORT + 10), rig.bench.image]
    url = f"http://{rig.seeder.address}:{_HTTP_PORT}/guest.qcow2"
    backing = f"nbd://{rig.seeder.address}:{_NBD_PORT + 10}"
    with (
        listening(rig.seeder, argv, _HTTP_PORT, shared / "httpd.log"),
        listening(rig.seeder, base, _NBD_PORT + 10, shared / "nbd.log"),
    ):

        @contextmanager
        def boot(place: Path, limit: float) -> Iterator[Console]:
            own = place / "guest.qcow2"
            run([*rig.reader.inside, "curl", "-s", "-o", own, url], limit=limit + 60)
            run(["qemu-img", "rebase", "-u", "-F", "raw", "-b", backing, own])
            command = [*_command(guest, [_own(own)], place / "qmp"), "-loadvm", _SNAPSHOT]
            with _running(rig, rig.reader, command, place, "target") as console:
                yield console

        yield boot


def _wait_for(path: Path) -> None:
    end = time.monotonic() + LIMIT
    while not path.exists():
        if time.monotonic() > end:
            raise BenchError(f"QEMU made no {path.name}")
        time.sleep(0.01)


PRECOPY = Contender(
    "qemu-precopy", "QEMU's migrate of all memory, its disk over NBD from the seeder", _precopy
)
COPIED = Contender(
    "qemu-snapshot", "savevm on the seeder, the qcow2 copied by HTTP, then loadvm", _copied
)
