"""The guest's first root: the archive from which a kernel starts, before it has a disk.

Its /init (resources/init.sh) runs steps: shell scripts of resources/, which are the same for every
guest. What differs is in /settings, which `make_initramfs` writes. A normal boot inserts the driver
of the disk, mounts the disk, and hands over to its init.
"""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import field, replace

from p2pcloop.errors import NeedsPackageError
from p2pcloop.formats import newc
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.guest.system.addresses import (
    GUEST_INTERFACE,
    PC_CARD,
    PC_DISPLAY_CARD,
    PC_DISPLAY_INTERFACE,
    PC_INTERFACE,
    USER,
    Addresses,
)
from p2pcloopd.guest.system.kernel import Kernel, Kind, find_busybox, load_modules
from p2pcloopd.guest.system.scripts import script

FAILURE_MARK = "p2pcloop: cannot boot: "
"""Begins the console line that says why the initramfs gave up; it powers off after it."""

START_MARK = "p2pcloop: starts "
"""Begins the console line that says which init is handed over to."""

ADDRESS_MARK = "p2pcloop: the network card has the address "
"""Begins the console line that tells the address that a DHCP server gave."""

AUTOLOGIN = "p2pcloop.autologin"
"""A word of the kernel's command line: root is logged in at the console, for this boot."""

READ_AHEAD_KB = 16
"""KiB that the guest reads ahead on its disk (docs/measurements/2026-11-guest-kernel.md). The
kernel's own choice is up to 8192 on virtio-blk: each miss would fetch megabytes."""

CHANNEL_MODULE = "virtio_console"
"""Drives the channel to the agent. A guest whose kernel lacks it runs no commands of the host."""

BELL_CONSOLE = 15
"""The number of the console at which the agent waits until it is needed: most guests run no command
of the host, and need not have the driver with its queues and buffers."""

_SEED_SIZE = 64


@dataclass(frozen=True, slots=True)
class Part:
    """What a first root has of scripts, and what these need.

    Attributes:
        steps: names of scripts in resources/, which /init runs in their order, each once.
        scripts: names of further ones that the steps use.
        applets: programs of busybox.
        modules: modules of the kernel; `load NAME` inserts one, with those that it needs.
        optional: modules that the first root does without where the kernel has none.
        settings: variables of the steps, in upper case.
        files: names and content of further files; those in bin/ are programs.
    """

    steps: tuple[str, ...]
    scripts: tuple[str, ...] = ()
    applets: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    settings: Mapping[str, str] = field(default_factory=dict)
    files: tuple[tuple[str, bytes], ...] = ()


_COMMON = Part(
    steps=("disks",),
    applets=(
        *("sh", "cat", "dd", "insmod", "mkdir", "mount", "od", "poweroff", "rm", "sleep", "tr"),
        "umount",
    ),
    settings={
        "DISK": "/dev/vda",
        "FAILURE_MARK": FAILURE_MARK,
        "AUTOLOGIN_WORD": AUTOLOGIN,
        "READ_AHEAD_KB": str(READ_AHEAD_KB),
    },
)
"""What all first roots have."""

DRIVERS: Mapping[Kind, tuple[str, ...]] = {
    "uml": ("virtio_blk",),
    "pc": ("virtio_pci", "virtio_blk"),
}
"""What drives the disks of a guest. User-Mode Linux has virtio without a bus."""

PC_HASHES = ("crc32c_generic", "xxhash_generic", "sha256_generic", "blake2b_generic")
"""What the modules of file systems ask for by the names of the hashes, and modules.dep does not
list."""

MACHINES: Mapping[Kind, Part] = {
    "uml": Part(
        steps=(),
        settings={"CONSOLE": "4 1", "BELL": f"/dev/tty{BELL_CONSOLE}", "SERIAL_CONSOLE": ""},
    ),
    "pc": Part(
        steps=("pc",),
        applets=("ip", "ls", "mknod"),
        # What a kernel lacks is told once an image needs it.
        optional=("virtio_net", "virtio_rng", "ext4", "btrfs", "xfs", *PC_HASHES),
        settings={
            "CONSOLE": "4 64",
            "BELL": "",
            "HASHES": " ".join(PC_HASHES),
            "SERIAL_CONSOLE": "ttyS0",
            "INTERFACE": PC_INTERFACE,
            "DISPLAY_CARD": PC_DISPLAY_INTERFACE,
            "PC_CARDS": f"{PC_CARD}={PC_INTERFACE} {PC_DISPLAY_CARD}={PC_DISPLAY_INTERFACE}",
        },
    ),
}
"""What first roots of guests have for their machine. CONSOLE is the device number of the console
that the user sees, BELL where the agent waits, SERIAL_CONSOLE the console's name for the kernel
where that is a serial line."""


def network_part(addresses: Addresses | None) -> Part:
    """What sets up the network card, where there is one.

    Args:
        addresses: what the card gets; None asks by DHCP.
    """
    settings = {"INTERFACE": GUEST_INTERFACE, "ADDRESS": "", "GATEWAY": "", "NAMESERVER": ""}
    applets = ("grep", "ip", "readlink", "true")
    if addresses is None:
        return Part(
            ("programs", "name-server", "network"),
            ("lease",),
            (*applets, "chmod", "udhcpc"),
            settings=settings | {"ADDRESS_MARK": ADDRESS_MARK},
        )
    settings["ADDRESS"] = f"{addresses.guest}/{addresses.prefix_length}"
    settings |= {"GATEWAY": addresses.gateway, "NAMESERVER": addresses.nameserver}
    return Part(("programs", "name-server", "network"), applets=applets, settings=settings)


DISK_ROOT = Part(
    steps=("disk-root",),
    # Kernels that have them as modules; else they are built in.
    optional=("ext4", "btrfs", "xfs"),
)
"""Mounts the file system of the disk at /root."""

CPUINFO = "cpuinfo"
"""The step that mends /proc/cpuinfo, for an init or a command of the image."""

HAND_OVER = Part(
    steps=(CPUINFO, "programs", "logins", "channel", "hand-over"),
    scripts=("agent", "become"),
    applets=(
        *("awk", "chmod", "chroot", "env", "grep", "ln", "ls", "mknod", "readlink", "sed"),
        *("setsid", "switch_root"),
    ),
    optional=(CHANNEL_MODULE,),
    settings={"START_MARK": START_MARK},
)
"""Hands over to the init of the root at /root: looks at that init first, sees to a login on the
console, and starts the agent, which runs commands of the host beside the init."""


def build_initramfs(
    kernel: Kernel,
    ending: Part = HAND_OVER,
    more: Sequence[Part] = (),
    network: Addresses | None = USER,
) -> bytes:
    """Return the archive that boots the file system on /dev/vda with `kernel`.

    Args:
        kernel: the kernel that boots it.
        ending: what follows once the root is mounted at /root.
        more: what comes before that.
        network: as for `network_part`.

    Raises:
        NeedsPackageError: busybox or a module is not on this system.
    """
    return make_initramfs(kernel, DISK_ROOT, network_part(network), *more, ending)


def make_initramfs(kernel: Kernel, *parts: Part, drivers: Sequence[str] | None = None) -> bytes:
    """Return an archive whose /init runs the steps of some parts, one after the other.

    Args:
        kernel: the kernel that boots it.
        parts: what it has besides that which every first root has. A setting of a later one counts.
        drivers: modules that are inserted before the steps, for a bare machine; None for a guest,
            which has what its machine needs.

    Raises:
        NeedsPackageError: busybox or a module is not on this system.
    """
    # The machine's settings come last, and count; its steps are the first.
    machine = Part(()) if drivers is not None else MACHINES[kernel.kind]
    drivers = DRIVERS[kernel.kind] if drivers is None else drivers
    first = Part(machine.steps, modules=tuple(drivers), settings={"DRIVERS": " ".join(drivers)})
    all_parts = (first, _COMMON, *parts, replace(machine, steps=()))
    applets = dict.fromkeys(applet for part in all_parts for applet in part.applets)
    modules = _module_files(kernel, all_parts)
    scripts = dict.fromkeys(name for part in all_parts for name in (*part.steps, *part.scripts))
    return newc.build_archive(
        [
            *map(newc.directory, ("bin", "dev", "lib", "modules", "proc", "root", "sys")),
            # The kernel opens it for init before anything is mounted.
            newc.char_device("dev/console", 5, 1),
            newc.regular_file("bin/busybox", _busybox(), 0o755),
            *(newc.symlink(f"bin/{applet}", "busybox") for applet in applets),
            *(newc.regular_file(name, data) for name, data in modules.items()),
            *(newc.regular_file(f"lib/{name}.sh", script(name).encode()) for name in scripts),
            *(_further_file(name, data) for part in parts for name, data in part.files),
            newc.regular_file("settings", _settings(all_parts)),
            newc.regular_file("seed", os.urandom(_SEED_SIZE)),
            newc.regular_file("init", script("init").encode(), 0o755),
        ]
    )


def _further_file(name: str, data: bytes) -> newc.Entry:
    return newc.regular_file(name, data, 0o755 if name.startswith("bin/") else 0o644)


def _module_files(kernel: Kernel, parts: Iterable[Part]) -> dict[str, bytes]:
    """Name and content of the modules, and of the files that tell their order (init.sh)."""
    orders = {name: load_modules(kernel, [name]) for part in parts for name in part.modules}
    for name in (name for part in parts for name in part.optional):
        with suppress(NeedsPackageError):
            orders[name] = load_modules(kernel, [name])
    files = {f"modules/{name}.ko": data for order in orders.values() for name, data in order}
    for name, order in orders.items():
        files[f"modules/{name}.order"] = " ".join(each for each, _ in order).encode() + b"\n"
    return files


def _settings(parts: Iterable[Part]) -> bytes:
    """Assignments for the shell: the settings of the parts, and STEPS."""
    steps = dict.fromkeys(step for part in parts for step in part.steps)
    settings = {name: value for part in parts for name, value in part.settings.items()}
    settings["STEPS"] = " ".join(steps)
    lines = (f"{name}={shlex.quote(value)}\n" for name, value in settings.items())
    return "".join(lines).encode()


def _busybox() -> bytes:
    try:
        return find_busybox().read_bytes()
    except OSError as err:
        raise NeedsPackageError(
            tr("{path} cannot be read: {why}", path=err.filename, why=err.strerror),
            hint="apt-get install busybox-static",
        ) from err
