"""What a guest's disk is made of, and what of it is brought before it is read."""

from __future__ import annotations

from pathlib import Path

from p2pcloop.cli.refs import StoredRef
from p2pcloop.making.local import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import expected_touches
from p2pcloopd.block.server import TEMPORARY, BlockServerSpec


def disk_of(
    target: ImageFile | StoredRef,
    overlay: Path | None,
    home: Home,
    *,
    ahead: bool,
    fill: int | None,
) -> BlockServerSpec:
    """What is asked of the block server of a guest; where it listens is to be added.

    Args:
        overlay: keeps the changes; None: they last as long as the guest.
        ahead: read ahead by the image's profile, and note one.
        fill: see `BlockServerSpec`.

    Raises:
        StorageError: the profile could not be read.
    """
    changes = TEMPORARY if overlay is None else overlay
    if isinstance(target, ImageFile):
        return BlockServerSpec(home, target, changes, once=True, note_touches=ahead)
    return BlockServerSpec(
        home,
        target.signed,
        changes,
        once=True,
        secret=target.secret,
        profile=expected_touches(home, target.signed.manifest) if ahead else (),
        fill=fill,
        note_touches=ahead,
    )
