"""The description of what a block server is to serve."""

from __future__ import annotations

import os
import socket
from dataclasses import field
from pathlib import Path
from typing import TYPE_CHECKING

from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.formats.overlay_remains import Remains
from p2pcloop.formats.profile import Touch
from p2pcloop.frozen import dataclass
from p2pcloop.image.merged import DEFAULT_CACHE_SIZE
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home

if TYPE_CHECKING:
    from p2pcloop.formats.machine_state import Part
    from p2pcloopd.block.memory_file import MemoryFile
    from p2pcloopd.block.nbd_tls import NbdTls

TEMPORARY = "temporary"

MIN_FILES_SIZE = 64 << 20
"""Bytes that hold the file system's journal and leave room for files."""


@dataclass(frozen=True, slots=True)
class FilesOverlay:
    """A second device, which takes a guest's writes instead of the image's.

    Attributes:
        size: bytes of the device if the overlay has to be made.
        vhost_user: a listening socket for its front end, or None.
        nbd: a listening socket for NBD clients, or None.
    """

    size: int
    vhost_user: socket.socket | None = None
    nbd: socket.socket | None = None


@dataclass(frozen=True, slots=True)
class DevicesPart:
    """The part of an image's device that QEMU wrote of a guest's devices.

    Attributes:
        part: where it is.
        file: the descriptor of an empty file in memory, which gets it.
    """

    part: Part
    file: int

    @property
    def touch(self) -> Touch:
        """It is what a resume reads first."""
        return Touch(self.part.blocks.start, len(self.part.blocks), 0)


@dataclass(frozen=True, slots=True)
class MemoryPart:
    """The part of an image's device that is a resumed guest's memory: what is behind its disk.

    Attributes:
        offset: its first byte on the device; a multiple of 4096.
        length: bytes, a multiple of 4096.
        file: shows it to the guest's machine.
        devices: what else the machine needs, from this part's end; None if it has that.
        whole_profile: whether the guest waits for all that its profile names, and not only for what
            it needs to answer.
    """

    offset: int
    length: int
    file: MemoryFile
    devices: DevicesPart | None = None
    whole_profile: bool = False


@dataclass(frozen=True, slots=True)
class Inherited:
    """What a block server has of its parent, which starts another one if it is killed.

    Attributes:
        remains: of the overlay.
        predecessors: how many were killed before.
        guest: the number of the process that runs the guest.
        pushes: an end of `memory_push.push_sockets`, of a guest with a memory part; else None.
    """

    remains: Remains
    predecessors: int
    guest: int
    pushes: socket.socket | None = None


@dataclass(frozen=True, slots=True)
class BlockServerSpec:
    """The image, its overlay, and where both are served.

    Attributes:
        home: the node whose store and p2pcloopd are used.
        image: a local image file, or the manifest of an image in the store.
        overlay: the file that takes the writes, made if it does not exist; "temporary" keeps them
            until the end only; None serves read-only.
        vhost_user: a listening socket or a path for a vhost-user-blk front end, or None.
        nbd: a listening socket, `unix:PATH` or `HOST:PORT` for NBD clients, or None.
        nbd_tls: how NBD clients must start TLS, or None.
        for_guest: whether it serves a guest of this process, as of `boot`.
        command: the command of the user that serves, where that is not for a guest.
        cache_size: bytes of decoded chunks that are kept in memory.
        secret: the secret of a private image.
        profile: the touches to prefetch, in this order.
        fill: bytes a second of backfill in idle time, 0 for no limit; None for no backfill.
        record_touches: whether the first read of each block is recorded, for a profile.
        waiting: a file that has a line while the guest waits for bytes, or None.
        fetched: a file that tells how many bytes came for the guest, or None.
        timeline: a file that tells when the guest's reads waited, or None.
        files: the guest's second device, which then takes the writes instead of the image's; None
            if the overlay lies over the image's own blocks.
        memory: the part of the image that is a resumed guest's memory, or None.
        inherited: from its parent, if another one is started when it is killed.
        leftovers: folders and files that are deleted if the process that runs the guest was killed.
    """

    home: Home
    image: ImageFile | SignedManifest
    overlay: Path | str | None = None
    vhost_user: socket.socket | Path | None = None
    nbd: socket.socket | str | None = None
    nbd_tls: NbdTls | None = None
    for_guest: bool = False
    command: str = "block"
    cache_size: int = DEFAULT_CACHE_SIZE
    secret: bytes | None = field(default=None, repr=False)
    profile: tuple[Touch, ...] = ()
    fill: int | None = None
    record_touches: bool = False
    waiting: Path | None = None
    fetched: Path | None = None
    timeline: Path | None = None
    files: FilesOverlay | None = None
    memory: MemoryPart | None = None
    inherited: Inherited | None = None
    leftovers: tuple[Path, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Return the image's names, the shortest first: NBD clients may ask for it by each."""
        if isinstance(self.image, SignedManifest):
            name = self.image.manifest.name
            return name.label, str(name)
        # Names of the protocol are UTF-8, those of files any bytes.
        return (os.fsencode(self.image.path.name).decode("utf-8", "replace"),)

    @property
    def mode(self) -> str:
        """The mode of the overlay, "block" or "files"."""
        return "block" if self.files is None else "files"
