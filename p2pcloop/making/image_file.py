"""What is known of a local image file: its kind, and where in it the image lies.

Apart from how that is found out (local.py), since most commands get no file, and need only know.
"""

from __future__ import annotations

from dataclasses import field
from pathlib import Path

from p2pcloop.formats.extents import Extents
from p2pcloop.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Part:
    """A device that lies in an image file.

    Attributes:
        name: its path on the CD, "partition 1" of a disk; "" if it is the image file itself.
        kind: "cloop" or "raw".
        extents: its places in the image file.
    """

    name: str
    kind: str
    extents: Extents


@dataclass(frozen=True, slots=True)
class ImageFile:
    """An image file and its kind.

    Attributes:
        path: absolute; of a container that of its unpacked copy.
        kind: "cloop", "iso", "disk" (with partitions), "raw", "overlay" or "profile", or one of
            `formats.containers.CONTAINERS`, which has to be unpacked before it is opened.
        size: bytes of the file.
        inside: the parts of a CD image or a disk that are the image.
        given: the user's file, if `path` is an unpacked copy of its content.
        packed: the containers that were unpacked, the outer one first.
        notes: remarks for the user on how it was read.
        doubt: why it may be no image, or "". A doubtful file is published only if the user
            insists.
        is_device: it is a block device.
    """

    path: Path
    kind: str
    size: int
    inside: tuple[Part, ...] = ()
    given: Path | None = None
    packed: tuple[str, ...] = ()
    notes: tuple[str, ...] = field(default=(), compare=False)
    doubt: str = field(default="", compare=False)
    is_device: bool = field(default=False, compare=False)

    @property
    def name(self) -> Path:
        """The name that the user gave."""
        return self.given or self.path

    @property
    def source(self) -> Path:
        """The path of the image: two partitions of a disk are two images."""
        return self.name / self.inside[0].name if self.kind == "disk" else self.name

    @property
    def parts(self) -> tuple[Part, ...]:
        """The parts that are the image, from base to top; or all of the file."""
        return self.inside or (Part("", self.kind, Extents([(0, self.size)])),)

    @property
    def can_stay(self) -> bool:
        """Whether it is of a kind that is seeded in place."""
        return self.kind in ("cloop", "iso") and self.given is None and not self.is_device
