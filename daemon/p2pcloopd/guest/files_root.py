"""The part of a guest's first root that joins read-only file systems and one for the changes.

overlayfs (kernel: Documentation/filesystems/overlayfs.rst): the image's file systems, which lie one
after the other on /dev/vda, are its lower layers; the ext4 on /dev/vdb has the upper one. What
overlayfs would note about the lower layers in the upper one (redirect_dir, metacopy, index, xino)
stays off: each of the user's files then stands alone, and may be put over a newer image.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

from p2pcloop.errors import NeedsPackageError
from p2pcloopd.guest.initramfs import Ending, end_initramfs
from p2pcloopd.guest.kernel import Kernel, load_modules

LAYER_APPLETS = ("losetup",)
_APPLETS = (*LAYER_APPLETS, "hostname")

_FILE_SYSTEMS = {"squashfs": "squashfs", "iso9660": "isofs", "erofs": "erofs"}
"""Type for `mount`, and module; ext4 is built in."""

_ALWAYS = ("overlay", "loop")

WHOLE = ("0",)
"""The place of a file system that has all of the disk."""

_LAYERS = """\
load() {
    for module in "$@"; do
        [ -e /sys/module/$module ] || insmod /modules/$module.ko ||
            fail "the module $module does not load"
    done
}

# mount_layers DIRECTORY DISK PLACE...: mounts what begins at these bytes, base first, and sets
# `layers` as overlayfs wants it, and `types` to what they are. BYTE/upper is a layer in a folder.
mount_layers() {
    parent=$1 disk=$2 layers= types=
    shift 2
    for place in "$@"; do
        byte=${place%%/*} device=$disk
        if [ $byte != 0 ]; then
            load @LOOP@
            device=$(losetup -f)
            losetup -r -o $byte $device $disk || fail "no loop device for byte $byte of $disk"
        fi
        type=$(file_system_on $device)
        case $type in
            ext4 | btrfs | xfs) options=$(without_journal $type) ;;
@CASES@
            '') fail "the image holds no file system that is known at byte $byte" ;;
            *) fail "this kernel has no $type, which the image holds" ;;
        esac
        mkdir -p $parent/$byte
        mount -t $type -o $options $device $parent/$byte || fail "the image's $type does not mount"
        layers=$parent/$place${layers:+:$layers}
        types="$types $type"
    done
    load @OVERLAY@
}

"""

_MOUNT_ROOT = """\
disk_is_there /dev/vda
disk_is_there /dev/vdb
mount_layers /image /dev/vda @PLACES@
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
    if [ "${types#*iso9660}" != "$types" ] || is_there /root/ramdisk; then
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


def build_files_initramfs(
    kernel: Kernel, places: Sequence[str] = WHOLE, ending: Ending | None = None
) -> bytes:
    """Return the archive that boots a joined root with `kernel`.

    Args:
        kernel: what it is for.
        places: where the image's file systems begin on /dev/vda, in bytes, from base to top; of a
            published files overlay followed by `/upper`.
        ending: as for `build_initramfs`.

    Raises:
        NeedsPackageError: busybox, or a module that every such root needs, is not on this system.
    """
    functions, modules = layer_functions(kernel)
    mount_root = _MOUNT_ROOT.replace("@PLACES@", " ".join(places))
    return end_initramfs(kernel, functions + mount_root, ending, applets=_APPLETS, modules=modules)


def layer_functions(kernel: Kernel) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the shell functions that mount the layers of an image, and the modules they load.

    Raises:
        NeedsPackageError: as for `build_files_initramfs`.
    """
    found = {name: load_modules(kernel, [name]) for name in _ALWAYS}
    for name, module in _FILE_SYSTEMS.items():
        # An image of another type boots all the same; the guest says what is missing.
        with suppress(NeedsPackageError):
            found[name] = load_modules(kernel, [module])
    names = {need: " ".join(name for name, _ in modules) for need, modules in found.items()}
    indent = " " * 12
    values = {
        "CASES": "\n".join(
            f"{indent}{name}) options=ro; load {names[name]} ;;"
            for name in _FILE_SYSTEMS
            if name in names
        ),
        **{name.upper(): names[name] for name in _ALWAYS},
    }
    functions = _LAYERS
    for name, value in values.items():
        functions = functions.replace(f"@{name}@", value)
    return functions, [module for modules in found.values() for module in modules]
