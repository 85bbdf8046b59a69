"""The guest's first root: inserts what the disk needs, mounts the disk, hands over to its init."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

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

READ_AHEAD_KB = 16
"""What the guest reads ahead on its disk (measured: docs/performance.md). Kernels set up to 8192 on
virtio-blk, which drags megabytes over the wire for each miss."""

_SEED_SIZE = 64
_MODULES = ("virtio_blk",)
_APPLETS = (
    *("sh", "cat", "dd", "insmod", "ip", "mount", "od", "poweroff", "rm", "sleep"),
    "switch_root",
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

mode=rw init=
for word in $(cat /proc/cmdline); do
    case $word in
        ro|rw) mode=$word ;;
        init=*) init=${word#init=} ;;
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
"""
"""What every first root begins with: `fail`, and disks that can be waited for."""

HAND_OVER = """\
if [ -z "$init" ]; then
    for candidate in /sbin/init /etc/init /bin/init /bin/sh; do
        # Absolute links point into the root that is not ours yet.
        if [ -e /root$candidate ] || [ -L /root$candidate ]; then
            init=$candidate
            break
        fi
    done
fi
[ -e "/root$init" ] || [ -L "/root$init" ] || fail "the root file system has no ${init:-init}"

if [ -e /sys/class/net/@INTERFACE@ ]; then
    ip address add @ADDRESS@/@PREFIX@ dev @INTERFACE@
    ip link set @INTERFACE@ up
    ip route add default via @GATEWAY@
    resolv=/root/etc/resolv.conf
    if [ $mode = rw ] && [ -d /root/etc ] && [ ! -e $resolv ] && [ ! -L $resolv ]; then
        echo "nameserver @NAMESERVER@" > $resolv
    fi
fi

for directory in dev proc sys; do
    [ -d /root/$directory ] && mount --move /$directory /root/$directory
done
# What the kernel does not know it hands to init, although UML has used it.
unset mem hostfs uml_dir umid
[ "$1" != noreboot ] || shift
exec switch_root /root "$init" "$@"
"""
"""Hands over to the init of the root that is mounted at /root."""

_MOUNT_ROOT = """\
disk_is_there /dev/vda
[ "$(cat /sys/block/vda/ro)" = 0 ] || mode=ro
# What the guest deletes leaves the overlay, and so is not published.
options=$mode
[ $mode = ro ] || options=rw,discard

# The magic number of ext2, ext3 and ext4: bytes 1080 and 1081 of the device.
if [ "$(dd if=/dev/vda bs=2 skip=540 count=1 2>/dev/null | od -An -tx1)" != " 53 ef" ]; then
    fail "the disk holds no ext2, ext3 or ext4 file system"
fi
# A read-only disk cannot replay its journal.
mount -t ext4 -o $options /dev/vda /root ||
    { [ $mode = ro ] && mount -t ext4 -o ro,noload /dev/vda /root; } ||
    fail "the root file system does not mount"
"""


def build_initramfs(kernel: Kernel) -> bytes:
    """Return the archive that boots the file system on /dev/vda with `kernel`.

    Raises:
        NeedsPackageError: busybox or a module is not on this system.
    """
    return make_initramfs(kernel, _MOUNT_ROOT + HAND_OVER)


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
            *(newc.symlink(f"bin/{applet}", "busybox") for applet in (*_APPLETS, *applets)),
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
