"""Boot parameters: the part of a manifest for the guest (docs/formats/manifest.md)."""

from __future__ import annotations

from typing import Any

from p2pcloop.errors import FormatError
from p2pcloop.formats.packing import Fields
from p2pcloop.frozen import dataclass
from p2pcloop.units import BLOCK_SIZE, MAX_IMAGE_SIZE
from p2pcloop.words import tr

MAX_ROOTS = 16
MAX_ROOT_TYPE = 32
MAX_APPEND = 1024


@dataclass(frozen=True, slots=True)
class Root:
    """A file system that is a part of the device.

    Attributes:
        offset: its first byte on the device, a multiple of 4096.
        size: its bytes, a multiple of 4096.
        changes: it is that of a files overlay: its additions to the root are in its `/upper`.
    """

    offset: int
    size: int
    changes: bool = False

    @property
    def end(self) -> int:
        """The byte after its last."""
        return self.offset + self.size

    def to_map(self) -> dict[str, Any]:
        """Return the fields of a manifest's root; default values are absent."""
        fields: dict[str, Any] = {"offset": self.offset, "size": self.size}
        return fields | {"changes": True} if self.changes else fields


@dataclass(frozen=True, slots=True)
class BootParameters:
    """The parameters of the guest's kernel; never a path or a program of the host.

    Attributes:
        root_type: the file system of the device ("ext4"), or "" if it is not known; with
            `roots`, that of the base.
        append: words for the kernel's command line.
        roots: the file systems on the device that are joined to one root, from base to top;
            empty if the whole device is one.
    """

    root_type: str = ""
    append: str = ""
    roots: tuple[Root, ...] = ()

    def to_map(self) -> dict[str, Any]:
        """Return the fields of a manifest's `boot`; default values are absent."""
        fields: dict[str, Any] = {"root_type": self.root_type, "append": self.append}
        if self.roots:
            fields["roots"] = [root.to_map() for root in self.roots]
        return fields


def read_boot(fields: Fields, size: int) -> BootParameters:
    """Check the fields of a manifest's `boot` whole.

    Args:
        fields: all of them are taken.
        size: bytes of the device.

    Raises:
        FormatError: a field that is absent, unknown or outside its limits.
    """
    roots = fields.items("roots", MAX_ROOTS) if "roots" in fields else []
    boot = BootParameters(
        fields.text("root_type", MAX_ROOT_TYPE),
        fields.text("append", MAX_APPEND),
        tuple(_read_root(root) for root in roots),
    )
    fields.end()
    _check_roots(boot.roots, size)
    return boot


def _read_root(values: object) -> Root:
    fields = Fields(values, "a root of a manifest")
    root = Root(
        fields.integer("offset", 0, MAX_IMAGE_SIZE),
        fields.integer("size", BLOCK_SIZE, MAX_IMAGE_SIZE),
        fields.boolean("changes") if "changes" in fields else False,
    )
    fields.end()
    return root


def _check_roots(roots: tuple[Root, ...], size: int) -> None:
    end = 0
    for root in sorted(roots, key=lambda root: root.offset):
        if root.offset % BLOCK_SIZE or root.size % BLOCK_SIZE:
            raise FormatError(
                tr(
                    "a root of the manifest is not made of blocks of {block_size} bytes",
                    block_size=BLOCK_SIZE,
                )
            )
        if root.offset < end or root.end > size:
            raise FormatError("the manifest's roots overlap or lie outside the device")
        end = root.end
