"""Guests that look into a files overlay and the two images it may lie on, and change the overlay.

Only a kernel reads ext4, squashfs, iso9660 and erofs, and what overlayfs made of them. Here it is
the kernel of a guest: the host mounts nothing, a stranger's file system is read only by a program
in a sandbox, and only those parts of the images are fetched that the guest looks at.

Disks: /dev/vda is the image that the overlay moves to, /dev/vdb the overlay, /dev/vdc the image
that it lay on; the answer, a tar file, is written to /dev/vdd.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from p2pcloop.making.rebase import Adoption
from p2pcloopd.guest.system.files_root import LAYERS, WHOLE
from p2pcloopd.guest.system.initramfs import Part, make_initramfs
from p2pcloopd.guest.system.kernel import Kernel

_OVERLAY = Part(
    steps=("close-overlay", "open-overlay"), applets=("dmesg", "grep", "sync", "umount")
)


def build_comparing_initramfs(
    kernel: Kernel, *, old: Sequence[str] = WHOLE, new: Sequence[str] = WHOLE
) -> bytes:
    """Return the archive of the guest that compares; `making/rebase.py` reads its answer.

    Args:
        kernel: the kernel that boots it.
        old, new: the places of the two images' file systems; see `build_files_initramfs`.

    Raises:
        NeedsPackageError: busybox or a module is not on this system.
    """
    compare = Part(
        steps=("compare",),
        applets=("find", "readlink", "sha256sum", "stat", "tar", "xargs"),
        settings={"OLD_PLACES": " ".join(old), "NEW_PLACES": " ".join(new)},
    )
    return make_initramfs(kernel, LAYERS, _OVERLAY, compare)


def build_changing_initramfs(
    kernel: Kernel, *, drop: Iterable[bytes] = (), adopt: Iterable[Adoption] = ()
) -> bytes:
    """Return the archive of the guest that changes the overlay on /dev/vdb, and unmounts its file
    system at the end.

    Args:
        kernel: the kernel that boots it.
        drop: paths of the files, links and directories to remove from the overlay.
        adopt: directories that get owner and mode of the new image.

    Raises:
        NeedsPackageError: busybox or a module is not on this system.
    """
    dropped = b"".join(b".//%s\0" % path for path in drop)
    adopted = b"".join(
        b"%d:%d\0%o\0.//%s\0" % (one.uid, one.gid, one.permissions, one.path) for one in adopt
    )
    change = Part(
        steps=("change",),
        applets=("chmod", "chown", "xargs"),
        files=(("drop", dropped), ("adopt", adopted)),
    )
    return make_initramfs(kernel, _OVERLAY, change)
