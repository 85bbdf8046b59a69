"""Boots of roots that cannot be written, with a files overlay, against ext4 with a block overlay.

All hold the same files, and the overlay is a new file at each boot.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

from bench.boot import by_p2pcloop
from bench.harness import Bench, Contenders, Measure, Row, Values
from bench.processes import run
from p2pcloopd.programs import find_program

_EXT4 = "ext4, block overlay"
_KINDS = ("squashfs", "iso9660", "erofs")


@contextmanager
def _boots(bench: Bench) -> Iterator[Contenders]:
    tree = bench.work / "tree"
    tree.mkdir()
    # As an ordinary user debugfs cannot give files to others: all are root's in the copies.
    run([find_program("debugfs", "e2fsprogs"), "-R", f"rdump / {tree}", bench.image])
    images = {_EXT4: bench.image}
    for kind in _KINDS:
        image = images[kind] = bench.work / kind
        _make(kind, tree, image)
    yield {name: partial(_boot, bench, image) for name, image in images.items()}


def _make(kind: str, tree: Path, image: Path) -> None:
    match kind:
        case "squashfs":
            program = find_program("mksquashfs", "squashfs-tools")
            run([program, tree, image, "-all-root", "-quiet", "-no-progress"])
        case "iso9660":
            run([find_program("genisoimage", "genisoimage"), "-quiet", "-r", "-o", image, tree])
        case "erofs":
            program = find_program("mkfs.erofs", "erofs-utils")
            run([program, "--all-root", "-zlz4hc", image, tree])


def _boot(bench: Bench, image: Path) -> Values:
    overlay = bench.work / "mine.delta"
    try:
        return by_p2pcloop(bench, str(image), bench.work / "home", "--overlay", str(overlay))
    finally:
        overlay.unlink(missing_ok=True)


READ_ONLY = Measure(
    "boot-readonly",
    "boot of squashfs, iso9660 and erofs with a files overlay, against ext4 with a block overlay",
    [
        Row(f"boot of {kind} / ext4", "s", (kind, "seconds"), 1.3, (_EXT4, "seconds"))
        for kind in _KINDS
    ],
    _boots,
)
