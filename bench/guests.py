"""Guests of the foreign servers: User-Mode Linux on one processor, ended by SIGKILL."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, BenchError
from bench.processes import Argument, run, tail
from p2pcloop.formats import newc
from p2pcloop.protocol import virtio_blk
from p2pcloopd.guest.system import xsave
from p2pcloopd.guest.system.initramfs import build_initramfs
from p2pcloopd.guest.system.kernel import Kernel, find_kernel, load_modules
from p2pcloopd.guest.system.kernel_words import kernel_words
from tools.console import Console, ConsoleError

LOGIN = "login:"
PROMPT = r"(?:root@\w+:~|tiny)# "
"""A shell's, whatever the guest is called."""
LIMIT = 120.0


def vhost_disk(socket: Path) -> str:
    """The kernel parameter for a vhost-user-blk disk."""
    return f"virtio_uml.device={socket}:{virtio_blk.DEVICE_ID}"


def boot_initramfs(bench: Bench) -> Path:
    """The archive that p2pcloop's own guests boot a virtio disk with, as a file."""
    path = bench.work / "boot.cpio"
    path.write_bytes(build_initramfs(find_kernel()))
    return path


def reads_initramfs(bench: Bench) -> Path:
    """The archive whose /init is the reader of guest_reads.c."""
    program = bench.work / "guest_reads"
    source = Path(__file__).with_name("guest_reads.c")
    run(["gcc", "-static", "-O2", "-Wall", "-o", program, source])
    entries = [newc.directory("dev"), newc.char_device("dev/console", 5, 1)]
    for name, data in load_modules(find_kernel(), ["virtio_blk"]):
        entries.append(newc.regular_file(f"{name}.ko", data))
    entries.append(newc.regular_file("init", program.read_bytes(), 0o755))
    path = bench.work / "reads.cpio"
    path.write_bytes(newc.build_archive(entries))
    return path


@contextmanager
def guest(
    bench: Bench, arguments: Sequence[Argument], log: Path, inside: Sequence[str] = ()
) -> Iterator[Console]:
    """Run a guest, pinned, with its console; it is killed when the context is left.

    Args:
        inside: words before its command (`nsenter ...`), for one in namespaces of its own.
    """
    kernel = find_kernel()
    # UML's watcher of the terminal's size leaves its process group and outlives it: only the end
    # of a process namespace ends all of it.
    argv = [*inside, "bwrap", "--unshare-pid", "--die-with-parent", "--dev-bind", "/", "/"]
    argv += ["taskset", "-c", str(bench.cpu), str(kernel.path), "mem=512M", f"uml_dir={bench.work}"]
    argv += ["con=null", "con1=fd:0,fd:1", "console=tty1", "noreboot", *kernel_words(kernel)]
    argv += map(str, arguments)
    console = Console(
        argv, log=log, errors=log.with_suffix(".err"), env=environment(kernel), patience=0
    )
    try:
        with console:
            yield console
    except ConsoleError as err:
        raise BenchError(f"guest: {err}: {tail(log)}") from err


def boot_seconds(bench: Bench, arguments: Sequence[Argument], log: Path, start: float) -> float:
    """Boot to the login prompt; seconds since `start` (time.monotonic)."""
    with guest(bench, arguments, log) as console:
        console.expect(LOGIN, LIMIT)
        return time.monotonic() - start


def disk_arguments(socket: Path, initramfs: Path) -> list[Argument]:
    """Kernel parameters of a boot from a vhost-user disk."""
    return [vhost_disk(socket), f"initrd={initramfs}", "root=/dev/vda", "rw"]


def environment(kernel: Kernel) -> dict[str, str]:
    """The variables that a kernel needs on this machine."""
    environment = dict(os.environ)
    if xsave.is_needed(kernel):
        environment["LD_PRELOAD"] = str(xsave.compiled_shim())
    return environment


def pinned_cpu() -> int:
    """The processor for guests: the last one this process may use."""
    return max(os.sched_getaffinity(0))
