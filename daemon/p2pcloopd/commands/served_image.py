"""The image that `block` and `netboot` serve."""

from __future__ import annotations

from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import expected_touches
from p2pcloopd.block.spec import BlockServerSpec


def served_image(
    target: ImageFile | StoredRef, home: Home, command: str, *, prefetch: bool
) -> BlockServerSpec:
    """Return what serves an image, read-only, and let go of the connection that found it.

    Args:
        command: of the user.
        prefetch: prefetch by the image's profile.

    Raises:
        UsageError, MismatchError: the image is private, and its secret is missing or wrong.
        StorageError: the profile could not be read.
    """
    if isinstance(target, ImageFile):
        return BlockServerSpec(home, target, command=command)
    target.client.close()
    target.check_secret()
    signed = target.signed
    touches = expected_touches(home, signed.manifest, boots=True) if prefetch else ()
    return BlockServerSpec(home, signed, secret=target.secret, command=command, profile=touches)
