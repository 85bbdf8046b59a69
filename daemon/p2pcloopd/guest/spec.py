"""What a guest is asked to be."""

from __future__ import annotations

import os
import re
import shlex
import stat
from collections.abc import Awaitable, Callable
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from p2pcloop.errors import UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.store.guests import Waiting
from p2pcloop.units import format_size
from p2pcloop.words import tr
from p2pcloopd.guest.system.initramfs import build_initramfs
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.vm import Firmware, Vm

if TYPE_CHECKING:
    from p2pcloopd.guest.channel.display_session import Session
    from p2pcloopd.guest.channel.waking import Waking
    from p2pcloopd.guest.display.spec import Display
    from p2pcloopd.guest.machine.resume import Resume
    from p2pcloopd.guest.network.card import Card
    from p2pcloopd.guest.network.forwarding import BoundPort
    from p2pcloopd.guest.network.opened import OpenedPort
    from p2pcloopd.guest.ports import PortsUser
    from p2pcloopd.guest.progress import Progress

CopyDisk = Callable[[Path], Awaitable[Path]]
"""Copies the changes of a guest's disk into a folder, while it is stopped: an overlay."""

_STDIN = 0

MIN_MEMORY = 64 << 20
"""Below this a kernel with its initramfs does not come up."""

MAX_APPEND = 2048
"""Bytes of additional kernel parameters; UML's command line holds 4096 with ours."""


def last_allowed_cpu() -> int:
    """Return the CPU that a guest is pinned to by default.

    A guest is one CPU's work, which moves between processes: on one CPU it is faster. This is the
    last one, since the first CPUs get most of a machine's interrupts.
    """
    return max(os.sched_getaffinity(0))


def machine_memory() -> int:
    """Return the bytes of this machine's memory, in which a guest's memory lies."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


@dataclass(frozen=True, slots=True)
class GuestSpec:
    """What to boot and how.

    Attributes:
        disk_socket: the socket of a server of /dev/vda, of vhost-user-blk for UML and of NBD for
            QEMU.
        memory: bytes of the guest's RAM.
        network: `user` lets the guest open connections to the outside; with `none` it has no
            network card but `card`.
        card: on a tap of this machine, or None; with network `none`.
        kernel: a kernel for the machine, as `find_kernel` or `find_stock_kernel` take it, or as
            they returned it.
        append: more kernel parameters, quoted as for a shell.
        console: `stdio`, or a file for the guest's output.
        progress: tells of a boot in one line, in place of what the guest prints before its first
            prompt; None shows that. For console `stdio` on a terminal.
        waiting: tells what the guest's reads wait for, or None.
        read_only: mount the root read-only (a read-only disk always is).
        cpu: the only CPU that the guest runs on, or None for any.
        more_disks: sockets of further disks: /dev/vdb and so on.
        initramfs: makes the guest's first root for a kernel.
        ports_socket: a vhost-user socket of a console device with ports, or None; for UML.
        ports_user: has ports in each boot of the guest, or None; for QEMU.
        forwarded: ports of this machine that lead into the guest; with network `user`.
        opened: ports of this machine that the guest can connect to; with network `user`.
        display: an X server for the guest, or None; its initramfs has the part `display_part`.
        session: what runs on the display, or None.
        reboot: whether a guest that reboots is started again; else a reboot ends it.
        vm: the machine.
        firmware: boots the disk by its own boot loader, on QEMU: then nothing of this system's is
            in the guest, neither kernel nor first root. None for the others.
        copy_disk: of its block server; None where the guest has none of its own.
        waking: what a guest is told that goes on where it was suspended; None for one that boots.
        resume: what it goes on with that was suspended, on QEMU; None for a guest that boots. When
            it reboots, it boots.
    """

    disk_socket: Path
    memory: int = 512 << 20
    network: Literal["user", "none"] = "none"
    card: Card | None = None
    kernel: Path | Kernel | None = None
    append: str = ""
    console: Literal["stdio"] | Path = "stdio"
    progress: Progress | None = None
    waiting: Callable[[], Waiting | None] = lambda: None
    read_only: bool = False
    cpu: int | None = field(default_factory=last_allowed_cpu)
    more_disks: tuple[Path, ...] = ()
    initramfs: Callable[[Kernel], bytes] = build_initramfs
    reboot: bool = False
    ports_socket: Path | None = None
    forwarded: tuple[BoundPort, ...] = ()
    opened: tuple[OpenedPort, ...] = ()
    display: Display | None = None
    session: Session | None = None
    vm: Vm = "uml"
    firmware: Firmware | None = None
    ports_user: PortsUser | None = None
    copy_disk: CopyDisk | None = None
    waking: Waking | None = None
    resume: Resume | None = None

    @property
    def disks(self) -> tuple[Path, ...]:
        """The sockets of all disks, /dev/vda first."""
        return self.disk_socket, *self.more_disks

    @property
    def ports_path(self) -> Path:
        """Where the socket of a console device with ports is, beside that of the disk; see
        `ports_socket`."""
        return self.disk_socket.with_name("ports")

    def check(self) -> None:
        """Refuse a guest that cannot run.

        Raises:
            UsageError: too little or too much memory, no socket, a CPU that is not ours, or bad
                parameters.
        """
        if self.memory < MIN_MEMORY:
            raise UsageError(
                tr("{memory} of memory are too few for a guest", memory=format_size(self.memory)),
                hint=tr("give at least {min_memory}M", min_memory=MIN_MEMORY >> 20),
            )
        if self.memory > machine_memory():
            raise UsageError(
                tr(
                    "{memory} of memory for a guest are more than this machine has",
                    memory=format_size(self.memory),
                ),
                hint=tr("give at most {machine_memory}M", machine_memory=machine_memory() >> 20),
            )
        for socket in filter(None, (*self.disks, self.ports_socket)):
            if not (socket.exists() and stat.S_ISSOCK(socket.stat().st_mode)):
                raise UsageError(tr("{socket} is not a socket that serves a device", socket=socket))
        allowed = os.sched_getaffinity(0)
        if self.cpu is not None and self.cpu not in allowed:
            raise UsageError(
                tr("this process may not run on CPU {cpu}", cpu=self.cpu),
                hint=tr("allowed are {str}", str=", ".join(map(str, sorted(allowed)))),
            )
        self.append_words()

    def append_words(self) -> list[str]:
        """Return the additional kernel parameters one by one, as `split_append` does."""
        return split_append(self.append)


def split_append(append: str) -> list[str]:
    """Return kernel parameters one by one, quoted as the kernel wants it.

    Args:
        append: quoted as for a shell.

    Raises:
        UsageError: unbalanced quotes, control characters, a double quote inside a parameter (the
            kernel knows no escape), or too many bytes.
    """
    if len(append.encode()) > MAX_APPEND or not append.isprintable():
        raise UsageError(
            tr(
                "kernel parameters must be printable and at most {max_append} bytes long",
                max_append=MAX_APPEND,
            )
        )
    try:
        words = shlex.split(append)
    except ValueError as err:
        raise UsageError(tr("kernel parameters {append!r}: {err}", append=append, err=err)) from err
    if any('"' in word for word in words):
        raise UsageError(
            tr("a kernel parameter cannot hold a double quote: {append!r}", append=append)
        )
    return [re.sub(r"^([^=]*=)?(.* .*)$", r'\1"\2"', word) for word in words]


def terminal_type(spec: GuestSpec) -> list[str]:
    """The user's TERM, as a word for a kernel: it hands it to init, and systemd hands it to the
    console's login. Nothing where the guest is not at the user's terminal."""
    kind = os.environ.get("TERM", "")
    if spec.console == "stdio" and os.isatty(_STDIN) and re.fullmatch(r"[\w.+-]{1,32}", kind):
        return [f"TERM={kind}"]
    return []
