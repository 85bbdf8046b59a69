"""Guests that look into a files overlay and the two images it may lie on, and change the overlay.

Only a kernel reads ext4, squashfs, iso9660 and erofs alike, with what overlayfs made of them. Here
it is a guest's: nothing is mounted on the host, nothing of a stranger's file system is read by a
program that may do more than a guest may, and of the images only what is looked at is fetched.

Disks: /dev/vda the image that the overlay moves to, /dev/vdb the overlay, /dev/vdc the image that
it lay on, /dev/vdd takes the answer, a tar file.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2pcloop.making.rebase import Adoption
from p2pcloopd.guest.files_root import LAYER_APPLETS, WHOLE, layer_functions
from p2pcloopd.guest.initramfs import make_initramfs
from p2pcloopd.guest.kernel import Kernel

_APPLETS = (
    *LAYER_APPLETS,
    *("chmod", "chown", "dmesg", "find", "grep", "readlink", "sha256sum", "stat", "sync", "tar"),
    *("umount", "xargs"),
)

_OPEN_OVERLAY = """\
disk_is_there /dev/vda
disk_is_there /dev/vdb
mkdir /changes
mount -t ext4 -o rw,discard /dev/vdb /changes || fail "the overlay's file system does not mount"
mkdir -p /changes/upper /lists
"""

_CLOSE = """\
cd /
umount /changes || fail "the overlay's file system is in use"
if dmesg | grep -qE 'I/O error|(SQUASHFS|EXT4-fs) error|erofs:.*(corrupt|fail)'; then
    fail "a disk could not be read or written: $(dmesg | grep -m 1 -E 'error|corrupt|fail')"
fi
sync
poweroff -f
sleep 60
"""

_COMPARE = """\
disk_is_there /dev/vdc
disk_is_there /dev/vdd

# open_image NAME DISK PLACE...: joins what a guest of this image has below its overlay.
open_image() {
    mkdir /$1
    view=/$1 device_of_image=$2
    shift 2
    mount_layers /layers$view $device_of_image "$@"
    case $layers in
        *:*) mount -t overlay -o ro,lowerdir=$layers overlay $view ;;
        *) mount -o bind $layers $view ;;
    esac || fail "the layers of an image cannot be joined"
}
open_image new /dev/vda @NEW@
open_image old /dev/vdc @OLD@

# Paths begin with .// and have no other double slash: so they end where the next one begins.
cd /changes/upper || fail "the overlay has no files"
find .// -type d -print0 > /lists/directories
find .// ! -type d -print0 > /lists/others

# A directory hides what lies below it if a file of a layer below does not show through.
mkdir /probe /merged
mount -t tmpfs probe /probe
cd /probe
xargs -0 -r mkdir -p < /lists/directories
xargs -0 -r sh -c 'for d; do : > "$d/.p2pcloop"; done' sh < /lists/directories
mount -t overlay -o ro,lowerdir=/changes/upper:/probe overlay /merged ||
    fail "the overlay's files cannot be looked at"
cd /merged
xargs -0 -r sh -c 'for d; do [ -e "$d/.p2pcloop" ] || printf "%s\\0" "$d"; done' sh \
    < /lists/directories > /lists/opaque
cd /
umount /merged

# What the overlay hides of an image, all of it; and what it has in common with it.
for image in old new; do
    cd /$image
    cat /lists/others /lists/opaque |
        xargs -0 -r sh -c 'find "$@" -print0 2>/dev/null' sh > /lists/$image
    xargs -0 -r sh -c 'find "$@" -maxdepth 0 -print0 2>/dev/null' sh \
        < /lists/directories >> /lists/$image
done

# describe DIRECTORY NAME LIST: writes NAME.stat and NAME.hash of what there is of the list.
describe() {
    cd $1
    xargs -0 -r stat -c '%f %u %g %t %T %s %n' < $3 > /lists/$2.stat 2>/dev/null
    : > /lists/regular
    xargs -0 -r sh -c 'for f; do
        if [ -L "$f" ]; then
            hash=$(readlink -n "$f" | sha256sum)
            printf "%s  %s\\n" "${hash%% *}" "$f"
        elif [ -f "$f" ]; then
            printf "%s\\0" "$f" >&3
        fi
    done' sh < $3 > /lists/$2.hash 3> /lists/regular
    xargs -0 -r sha256sum < /lists/regular >> /lists/$2.hash
}
describe /old old /lists/old
describe /new new /lists/new
# Of its own files, those that may be what the new image has, too.
describe /changes/upper upper /lists/new
cd /changes/upper
cat /lists/directories /lists/others |
    xargs -0 -r stat -c '%f %u %g %t %T %s %n' > /lists/upper.stat
cd /lists
tar -cf - opaque old.stat old.hash new.stat new.hash upper.stat upper.hash > /dev/vdd ||
    fail "the answer has no room"
"""

_CHANGE = """\
cd /changes/upper
xargs -0 -r rm -rf < /drop || fail "files of the overlay cannot be dropped"
xargs -0 -r -n 3 sh -c 'chown -h "$1" "$3" && chmod "$2" "$3"' sh < /adopt ||
    fail "directories of the overlay cannot be changed"
"""


def build_comparing_initramfs(
    kernel: Kernel, *, old: Sequence[str] = WHOLE, new: Sequence[str] = WHOLE
) -> bytes:
    """Return the archive of the guest that compares; what it answers, `making/rebase.py` reads.

    Args:
        kernel: what it is for.
        old, new: the places of the two images' file systems; see `build_files_initramfs`.

    Raises:
        NeedsPackageError: busybox or a module is not on this system.
    """
    functions, modules = layer_functions(kernel)
    compare = _COMPARE
    for name, places in (("@OLD@", old), ("@NEW@", new)):
        compare = compare.replace(name, " ".join(places))
    script = functions + _OPEN_OVERLAY + compare + _CLOSE
    return make_initramfs(kernel, script, applets=_APPLETS, modules=modules)


def build_changing_initramfs(
    kernel: Kernel, *, drop: Iterable[bytes] = (), adopt: Iterable[Adoption] = ()
) -> bytes:
    """Return the archive of the guest that changes the overlay on /dev/vdb, and leaves its file
    system as one that was unmounted.

    Args:
        kernel: what it is for.
        drop: paths whose files, links and directories the overlay is to hold no more.
        adopt: directories that get the owner and the mode that the new image gives them.

    Raises:
        NeedsPackageError: busybox or a module is not on this system.
    """
    dropped = b"".join(b".//%s\0" % path for path in drop)
    adopted = b"".join(
        b"%d:%d\0%o\0.//%s\0" % (one.uid, one.gid, one.permissions, one.path) for one in adopt
    )
    return make_initramfs(
        kernel,
        _OPEN_OVERLAY + _CHANGE + _CLOSE,
        applets=_APPLETS,
        files=[("drop", dropped), ("adopt", adopted)],
    )
