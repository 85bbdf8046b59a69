"""The guest's first root: inserts what the disk needs, mounts the disk, hands over to its init."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from importlib import resources

from p2pcloop.errors import NeedsPackageError
from p2pcloop.formats import newc
from p2pcloopd.guest.addresses import (
    GUEST_ADDRESS,
    GUEST_INTERFACE,
    HOST_ADDRESS,
    NAMESERVER_ADDRESS,
    PREFIX_LENGTH,
)
from p2pcloopd.guest.kernel import Kernel, find_busybox, load_modules

FAILURE_MARK = "p2pcloop: cannot boot: "
"""Begins the console line that says why the initramfs gave up; it powers off after it."""

START_MARK = "p2pcloop: starts "
"""Begins the console line that says which init is handed over to."""

AUTOLOGIN = "p2pcloop.autologin"
"""A word of the kernel's command line: root is logged in at the console, for this boot."""

READ_AHEAD_KB = 16
"""What the guest reads ahead on its disk (measured: docs/performance.md). Kernels set up to 8192 on
virtio-blk, which drags megabytes over the wire for each miss."""

_SEED_SIZE = 64
_MODULES = ("virtio_blk",)
_APPLETS = (
    *("sh", "awk", "cat", "chmod", "cut", "dd", "grep", "insmod", "ip", "ln", "ls", "mkdir"),
    *("mknod", "mount", "od", "poweroff", "readlink", "rm", "sed", "sleep", "switch_root", "tr"),
)

_HEAD = """\
#!/bin/sh
export PATH=/bin
# Words of the kernel's command line are not patterns.
set -f

fail() {
    echo "@FAILURE_MARK@$*"
    poweroff -f
    sleep 60
}

mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev

# UML's watchdog needs a program on the host: an init that opens it gets a kernel warning.
rm -f /dev/watchdog /dev/watchdog0
# Without it all who boot one image would begin with the same random numbers.
cat /seed > /dev/urandom

mode=rw init= autologin= root_flags=
for word in $(cat /proc/cmdline); do
    case $word in
        ro|rw) mode=$word ;;
        init=*) init=${word#init=} ;;
        rootflags=*) root_flags=,${word#rootflags=} ;;
        @AUTOLOGIN@) autologin=yes ;;
    esac
done

for module in @MODULES@; do
    insmod /modules/$module.ko || fail "the module $module does not load"
done

disk_is_there() {
    tries=0
    until [ -b $1 ]; do
        tries=$((tries + 1))
        [ $tries -le 100 ] || fail "there is no disk $1"
        sleep 0.1
    done
    echo @READ_AHEAD_KB@ > /sys/block/${1#/dev/}/queue/read_ahead_kb
}

magic() {
    dd if=$1 bs=$4 skip=$2 count=$3 2>/dev/null | od -An -tx1 | tr -d ' \\n'
}

# Tells as p2pcloop/formats/filesystem.py does.
file_system_on() {
    if [ "$(magic $1 540 1 2)" = 53ef ]; then echo ext4
    elif [ "$(magic $1 0 4 1)" = 68737173 ]; then echo squashfs
    elif [ "$(magic $1 0 4 1)" = 58465342 ]; then echo xfs
    elif [ "$(magic $1 8200 1 8)" = 5f42485266535f4d ]; then echo btrfs
    elif [ "$(magic $1 32769 5 1)" = 4344303031 ]; then echo iso9660
    elif [ "$(magic $1 256 1 4)" = e2e1f5e0 ]; then echo erofs
    fi
}

# without_journal TYPE: how to mount what cannot be written, and whose journal cannot be replayed.
without_journal() {
    case $1 in
        ext4) echo ro,noload ;;
        btrfs) echo ro,rescue=nologreplay ;;
        xfs) echo ro,norecovery ;;
        *) echo ro ;;
    esac
}
"""
"""What every first root begins with: `fail`, disks that can be waited for, and what is on them."""

_NETWORK = """\
if [ -e /sys/class/net/@INTERFACE@ ]; then
    ip address add @ADDRESS@/@PREFIX@ dev @INTERFACE@
    ip link set @INTERFACE@ up
    ip route add default via @GATEWAY@
    resolv=/root/etc/resolv.conf
    if [ $mode = rw ] && [ -d /root/etc ] && [ ! -e $resolv ] && [ ! -L $resolv ]; then
        echo "nameserver @NAMESERVER@" > $resolv
    fi
fi
"""
"""Sets up the network card, where there is one."""

_HAND_OVER = """\
choose_init
check_program "$init" "$init"
arrange_login
echo "@START_MARK@$init${kind:+ ($kind)}"

for directory in dev proc sys; do
    [ -d /root/$directory ] && mount --move /$directory /root/$directory
done
# What the kernel does not know it hands to init, although UML has used it.
unset mem hostfs uml_dir umid
[ "$1" != noreboot ] || shift
exec switch_root /root "$init" "$@"
"""

_MOUNT_ROOT = """\
disk_is_there /dev/vda
[ "$(cat /sys/block/vda/ro)" = 0 ] || mode=ro
# What the guest deletes leaves the overlay, and so is not published.
options=$mode
[ $mode = ro ] || options=rw,discard

type=$(file_system_on /dev/vda)
case $type in
    ext4|btrfs|xfs) ;;
    '') fail "the disk holds no ext2, ext3, ext4, btrfs or xfs file system" ;;
    *) fail "the disk holds $type, whose changes can only be kept as files" ;;
esac
# A read-only disk cannot replay its journal.
mount -t $type -o $options$root_flags /dev/vda /root ||
    { [ $mode = ro ] && mount -t $type -o $(without_journal $type)$root_flags /dev/vda /root; } ||
    fail "the root file system ($type) does not mount"
"""


def hand_over() -> str:
    """Return the script that hands over to the init of the root that is mounted at /root: it looks
    at that init first (init.sh), and sees to a login on the console (logins.sh)."""
    here = resources.files("p2pcloopd.guest")
    parts = [here.joinpath(name).read_text() for name in ("init.sh", "logins.sh")]
    return "".join(parts) + _HAND_OVER


@dataclass(frozen=True, slots=True)
class Ending:
    """What a first root does once the guest's root is mounted at /root.

    Attributes:
        script: for busybox's shell, behind that which sets up the network.
        applets: of busybox, that it uses besides those that every first root has.
        modules: that it inserts itself, with what they need: `@ENDING_MODULES@` in the script.
        files: names and content of what it takes along.
    """

    script: str
    applets: tuple[str, ...] = ()
    modules: tuple[str, ...] = ()
    files: tuple[tuple[str, bytes], ...] = ()


def build_initramfs(kernel: Kernel, ending: Ending | None = None) -> bytes:
    """Return the archive that boots the file system on /dev/vda with `kernel`.

    Args:
        kernel: what it is for.
        ending: what follows once the root is there; None: it is handed over to its init.

    Raises:
        NeedsPackageError: busybox or a module is not on this system.
    """
    return end_initramfs(kernel, _MOUNT_ROOT, ending)


def end_initramfs(
    kernel: Kernel,
    script: str,
    ending: Ending | None,
    *,
    applets: Sequence[str] = (),
    modules: Sequence[tuple[str, bytes]] = (),
) -> bytes:
    """Return an archive whose /init does what `script` says, then what the ending does; the rest
    as for `make_initramfs`."""
    ending = ending or Ending(hand_over())
    more = load_modules(kernel, ending.modules) if ending.modules else []
    text = ending.script.replace("@ENDING_MODULES@", " ".join(name for name, _ in more))
    return make_initramfs(
        kernel,
        script + _NETWORK + text,
        applets=(*applets, *ending.applets),
        modules=[*modules, *more],
        files=ending.files,
    )


def make_initramfs(
    kernel: Kernel,
    script: str,
    *,
    applets: Sequence[str] = (),
    modules: Iterable[tuple[str, bytes]] = (),
    files: Iterable[tuple[str, bytes]] = (),
) -> bytes:
    """Return an archive whose /init waits for no disk yet and goes on with `script`.

    Args:
        kernel: what it is for.
        script: for busybox's shell; on top of it, `fail WHY` and `disk_is_there DEVICE`.
        applets: of busybox, besides those that every first root has.
        modules: names and content of further modules; /modules/NAME.ko, not inserted yet.
        files: names and content of further files.

    Raises:
        NeedsPackageError: busybox or a module is not on this system.
    """
    inserted = load_modules(kernel, _MODULES)
    init = _fill_in(_HEAD + script, [name for name, _ in inserted])
    return newc.build_archive(
        [
            *map(newc.directory, ("bin", "dev", "modules", "proc", "root", "sys")),
            # The kernel opens it for init before anything is mounted.
            newc.char_device("dev/console", 5, 1),
            newc.regular_file("bin/busybox", _busybox(), 0o755),
            *(
                newc.symlink(f"bin/{applet}", "busybox")
                for applet in dict.fromkeys((*_APPLETS, *applets))
            ),
            *(newc.regular_file(f"modules/{name}.ko", data) for name, data in inserted),
            *(newc.regular_file(f"modules/{name}.ko", data) for name, data in modules),
            *(newc.regular_file(name, data) for name, data in files),
            newc.regular_file("seed", os.urandom(_SEED_SIZE)),
            newc.regular_file("init", init, 0o755),
        ]
    )


def _busybox() -> bytes:
    try:
        return find_busybox().read_bytes()
    except OSError as err:
        raise NeedsPackageError(
            f"{err.filename} cannot be read: {err.strerror}", hint="apt-get install busybox-static"
        ) from err


def _fill_in(script: str, modules: list[str]) -> bytes:
    values = {
        "FAILURE_MARK": FAILURE_MARK,
        "START_MARK": START_MARK,
        "AUTOLOGIN": AUTOLOGIN,
        "MODULES": " ".join(modules),
        "READ_AHEAD_KB": str(READ_AHEAD_KB),
        "INTERFACE": GUEST_INTERFACE,
        "ADDRESS": GUEST_ADDRESS,
        "PREFIX": str(PREFIX_LENGTH),
        "GATEWAY": HOST_ADDRESS,
        "NAMESERVER": NAMESERVER_ADDRESS,
    }
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script.encode()
