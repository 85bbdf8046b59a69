"""The part of a guest's first root that joins read-only file systems and one for the changes.

overlayfs (kernel: Documentation/filesystems/overlayfs.rst): the image's file systems, which lie one
after the other on /dev/vda, are its lower layers; the ext4 on /dev/vdb has the upper one. What
overlayfs would note about the lower layers in the upper one (redirect_dir, metacopy, index, xino)
stays off: each of the user's files then stands alone, and may be put over a newer image.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress

from p2pcloop.errors import NeedsPackageError
from p2pcloopd.guest.kernel import Kernel, load_modules

APPLETS = ("chmod", "hostname", "ln", "losetup", "mkdir", "readlink", "tr")

_FILE_SYSTEMS = {"squashfs": "squashfs", "iso9660": "isofs", "erofs": "erofs"}
"""Type for `mount`, and module; ext4 is built in."""

_ALWAYS = ("overlay", "loop")

_SCRIPT = """\
load() {
    for module in "$@"; do
        [ -e /sys/module/$module ] || insmod /modules/$module.ko ||
            fail "the module $module does not load"
    done
}

magic() {
    dd if=$1 bs=1 skip=$2 count=$3 2>/dev/null | od -An -tx1 | tr -d ' \\n'
}

# Tells as p2pcloop/formats/filesystem.py does.
file_system_on() {
    if [ "$(magic $1 0 4)" = 68737173 ]; then echo squashfs
    elif [ "$(magic $1 32769 5)" = 4344303031 ]; then echo iso9660
    elif [ "$(magic $1 1024 4)" = e2e1f5e0 ]; then echo erofs
    elif [ "$(magic $1 1080 2)" = 53ef ]; then echo ext4
    fi
}

mount_layer() {
    device=/dev/vda
    if [ $2 != 0 ]; then
        load @LOOP@
        device=$(losetup -f)
        losetup -r -o $2 $device /dev/vda || fail "no loop device at byte $2 of the disk"
    fi
    type=$(file_system_on $device)
    case $type in
        ext4) options=ro,noload ;;
@CASES@
        '') fail "the disk holds no file system that is known at byte $2" ;;
        *) fail "this kernel has no $type, which the disk holds" ;;
    esac
    mkdir -p $1
    mount -t $type -o $options $device $1 || fail "the image's $type does not mount"
}

disk_is_there /dev/vdb
number=0 layers=
for offset in @OFFSETS@; do
    mount_layer /image/$number $offset
    layers=/image/$number${layers:+:$layers}
    number=$((number + 1))
done
load @OVERLAY@
mkdir /changes
mount -t ext4 -o rw,discard /dev/vdb /changes || fail "the overlay's file system does not mount"
mkdir -p /changes/upper /changes/work
mount -t overlay -o "$mode,index=off,metacopy=off,redirect_dir=off,xino=off,\
lowerdir=$layers,upperdir=/changes/upper,workdir=/changes/work" overlay /root ||
    fail "image and overlay cannot be joined"

is_there() {
    [ -e $1 ] || [ -L $1 ]
}

# What a system expects to be able to write to, and what is mounted below.
if [ $mode = rw ]; then
    for name in dev etc home proc run sys tmp var; do
        is_there /root/$name || mkdir /root/$name
    done
    [ -L /root/tmp ] || [ -k /root/tmp ] || chmod 1777 /root/tmp
    # KNOPPIX of the CD's time had these on a RAM disk.
    if [ $type = iso9660 ] || is_there /root/ramdisk; then
        is_there /root/ramdisk || mkdir /root/ramdisk
        for name in etc home tmp var; do
            case $(readlink /root/$name) in
                /ramdisk/* | ramdisk/*) mkdir -p /root/ramdisk/$name ;;
                *) is_there /root/ramdisk/$name || ln -s ../$name /root/ramdisk/$name ;;
            esac
        done
    fi
fi
name=
[ -L /root/etc ] || [ -L /root/etc/hostname ] || [ ! -f /root/etc/hostname ] ||
    read -r name < /root/etc/hostname
hostname "${name:-p2pcloop}"
"""


def files_modules(kernel: Kernel) -> dict[str, list[tuple[str, bytes]]]:
    """Return what such a root may need to load, in the order of insertion: for "overlay", for
    "loop", and for each type of read-only file system that the kernel can mount.

    Raises:
        NeedsPackageError: the kernel has no overlay or loop.
    """
    found = {name: load_modules(kernel, [name]) for name in _ALWAYS}
    for name, module in _FILE_SYSTEMS.items():
        # An image of another type boots all the same; the guest says what is missing.
        with suppress(NeedsPackageError):
            found[name] = load_modules(kernel, [module])
    return found


def files_script(offsets: Sequence[int], modules: Mapping[str, Sequence[str]]) -> str:
    """Return the part of /init that mounts such a root at /root.

    Args:
        offsets: where the image's file systems begin, in bytes, from base to top.
        modules: names of what `files_modules` returned.
    """
    cases = [
        f"        {name}) options=ro; load {' '.join(modules[name])} ;;"
        for name in _FILE_SYSTEMS
        if name in modules
    ]
    values = {
        "OFFSETS": " ".join(map(str, offsets)),
        "CASES": "\n".join(cases),
        **{name.upper(): " ".join(modules[name]) for name in _ALWAYS},
    }
    script = _SCRIPT
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    return script
