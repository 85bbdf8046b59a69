"""Bytes that other programs move between two raw images, each at the setting that moves least.

Their bytes do not vary, so each runs once.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from bench.harness import BenchError
from bench.processes import Argument, run
from p2pcloop.units import BLOCK_SIZE

_LIMIT = 3600.0
_READ = 1 << 20
_ZEROS = bytes(BLOCK_SIZE)

CASYNC_CHUNKS = (16 << 10, 64 << 10, 256 << 10)
"""Average sizes of chunks; 64 KiB is casync's own choice."""


def changed_blocks(old: Path, new: Path) -> Iterator[tuple[int, bytes]]:
    """Offset and content of each block of `new` that differs from `old` and is not all zeros."""
    with old.open("rb") as before, new.open("rb") as after:
        offset = 0
        while data := after.read(_READ):
            base = before.read(_READ)
            if data != base:
                for at in range(0, len(data), BLOCK_SIZE):
                    block = data[at : at + BLOCK_SIZE]
                    if block not in (base[at : at + BLOCK_SIZE], _ZEROS):
                        yield offset + at, block
            offset += len(data)


def zstd_bytes(old: Path, new: Path, work: Path) -> int:
    """The changed blocks in one stream, by `zstd -19`."""
    changed, packed = work / "changed", work / "changed.zst"
    with changed.open("wb") as file:
        for _, block in changed_blocks(old, new):
            file.write(block)
    run(["zstd", "-19", "-q", "-f", changed, "-o", packed], limit=_LIMIT)
    return packed.stat().st_size


def rsync_bytes(old: Path, new: Path, work: Path) -> int:
    """Both directions of `rsync` with zstd's best level, through pipes as through ssh."""
    target, shell = work / "rsync.img", work / "shell"
    run(["cp", "--sparse=always", old, target])
    run(["touch", "--date=2000-01-01", target])  # else equal sizes and times may mean "unchanged"
    shell.write_text('#!/bin/sh\nshift\nexec "$@"\n')
    shell.chmod(0o755)
    options: list[Argument] = ["--compress", "--compress-choice=zstd", "--compress-level=22"]
    remote: list[Argument] = ["-e", shell, new, f"there:{target}"]
    said = run(["rsync", "--stats", "--no-whole-file", *options, *remote], limit=_LIMIT)
    run(["cmp", target, new])
    target.unlink()
    counts = re.findall(r"^Total bytes (?:sent|received): ([\d,]+)", said, re.MULTILINE)
    if len(counts) != 2:
        raise BenchError(f"rsync --stats printed {counts}")
    return sum(int(count.replace(",", "")) for count in counts)


def casync_bytes(old: Path, new: Path, work: Path) -> int:
    """The new image's index, and the chunks that the old one's store lacks; at the best size."""
    with ThreadPoolExecutor(2) as pool:
        return min(pool.map(lambda size: _casync_bytes(old, new, work, size), CASYNC_CHUNKS))


def _casync_bytes(old: Path, new: Path, work: Path, size: int) -> int:
    place = work / f"casync-{size}"
    stores = [place / "old.castr", place / "new.castr"]
    index = place / "new.caibx"
    place.mkdir()
    options = [f"--chunk-size={size}", "--compression=xz"]
    for image, store in zip((old, new), stores, strict=True):
        run(["casync", "make", *options, f"--store={store}", index, image], limit=_LIMIT)
    have, want = (
        {path.name: path.stat().st_size for path in store.rglob("*.cacnk")} for store in stores
    )
    moved = sum(count for name, count in want.items() if name not in have)
    total = moved + index.stat().st_size
    shutil.rmtree(place)
    return total


def xdelta_bytes(old: Path, new: Path, work: Path) -> int:
    """The smaller of `xdelta3 -9` with and without lzma, its window as large as the image."""
    patch = work / "patch.xdelta"
    sizes = []
    for second in ("lzma", "none"):
        options: list[Argument] = ["-e", "-f", "-9", "-S", second, "-B", str(old.stat().st_size)]
        run(["xdelta3", *options, "-s", old, new, patch], limit=_LIMIT)
        sizes.append(patch.stat().st_size)
    patch.unlink()
    return min(sizes)
