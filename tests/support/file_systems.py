"""Read-only file systems of a directory's content, as the tools of the field make them."""

from __future__ import annotations

from pathlib import Path

from tests.support.programs import tool

READ_ONLY = ("squashfs", "iso9660", "erofs")


def make_read_only(kind: str, tree: Path, out: Path) -> None:
    """Write a file system of this type, all of it owned by root, with the files below `tree`."""
    match kind:
        case "squashfs":
            tool("mksquashfs", tree, out, "-all-root", "-quiet", "-no-progress")
        case "iso9660":
            tool("genisoimage", "-quiet", "-r", "-o", out, tree)
        case "erofs":
            tool("mkfs.erofs", "--all-root", "-zlz4hc", out, tree)
