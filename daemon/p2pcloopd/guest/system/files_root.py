"""The part of a guest's first root that joins read-only file systems and one for the changes.

overlayfs (kernel: Documentation/filesystems/overlayfs.rst) joins them. The image's file systems,
which lie one after the other on /dev/vda, are its lower layers; the ext4 on /dev/vdb holds the
upper one. The features that would record facts about the lower layers in the upper one
(redirect_dir, metacopy, index, xino) are off: so each of the user's files is complete, and fits a
newer image.
"""

from __future__ import annotations

from collections.abc import Sequence

from p2pcloopd.guest.system.addresses import USER, Addresses
from p2pcloopd.guest.system.initramfs import HAND_OVER, Part, make_initramfs, network_part
from p2pcloopd.guest.system.kernel import Kernel

WHOLE = ("0",)
"""The place of a file system that has all of the disk."""

LAYERS = Part(
    steps=("layers", "join"),
    applets=("chmod", "hostname", "ln", "losetup", "readlink"),
    modules=("overlay", "loop"),
    # An image of another type boots without them; the guest says which one is missing.
    optional=("squashfs", "isofs", "erofs", "ext4", "btrfs", "xfs"),
)
"""Mounts the file systems of an image, and joins them; UML's kernel has ext4 built in."""


def build_files_initramfs(
    kernel: Kernel,
    places: Sequence[str] = WHOLE,
    ending: Part = HAND_OVER,
    more: Sequence[Part] = (),
    network: Addresses | None = USER,
) -> bytes:
    """Return the archive that boots a joined root with `kernel`.

    Args:
        kernel: the kernel that boots it.
        places: where the image's file systems begin on /dev/vda, in bytes, from base to top; of a
            published files overlay followed by `/upper`.
        ending: as for `build_initramfs`; so are `more` and `network`.

    Raises:
        NeedsPackageError: busybox, or a module that every such root needs, is not on this system.
    """
    joined = Part(
        steps=("joined-root",),
        settings={"PLACES": " ".join(places)},
    )
    return make_initramfs(kernel, LAYERS, joined, network_part(network), *more, ending)
