"""Making a pack and a cloop V2.0, against cloop's own tool on all processors."""

from __future__ import annotations

import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.harness import Bench, BenchError, Contenders, Measure, Row, Values
from bench.processes import Argument, fresh_node, run, run_json
from p2pcloop.units import BLOCK_SIZE

IMAGE_SIZE = 1_000_000_000 // BLOCK_SIZE * BLOCK_SIZE
CONTENT = 880_000_000
"""Bytes of files in it, in whole blocks; the rest is the file system's own, and free."""

SOURCE = Path("/usr")
_UNITS = {"seconds": "s", "bytes": "B"}
_LARGEST = 64 << 20
"""Bytes of a file: no single one makes up the image."""


def sample_files(source: Path, size: int) -> Iterator[Path]:
    """Files of a directory tree, `size` bytes of them in whole blocks, drawn by their names.

    Raises:
        BenchError: it has fewer.
    """
    paths = (Path(folder) / name for folder, _, names in os.walk(source) for name in names)
    files = [path for path in paths if path.is_file() and not path.is_symlink()]
    left = size
    for path in sorted(files, key=lambda path: hashlib.sha256(bytes(path)).digest()):
        blocks = -(-path.stat().st_size // BLOCK_SIZE) * BLOCK_SIZE
        if blocks > _LARGEST or not os.access(path, os.R_OK):
            continue
        left -= blocks
        if left < 0:
            return
        yield path
    raise BenchError(f"{source} has too few files for an image of {size} bytes")


def _make_image(bench: Bench) -> Path:
    image, tree = bench.work / "usr.img", bench.work / "tree"
    for path in sample_files(SOURCE, CONTENT):
        copy = tree / path.relative_to(SOURCE)
        copy.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, copy)
    options: list[Argument] = ["-q", "-t", "ext4", "-m", "0", "-J", "size=4", "-d", tree]
    run(["mke2fs", *options, image, f"{IMAGE_SIZE // 1024}k"])
    shutil.rmtree(tree)
    os.sync()
    return image


def _pack_by_p2pcloop(bench: Bench, image: Path) -> Values:
    with fresh_node(bench, "seeder") as home:
        argv: list[Argument] = [bench.p2pcloop, "seed", image, "--raw", "--name", "bench", "--json"]
        start = time.monotonic()
        told = run_json([*argv, "--home", home])
        return {"seconds": time.monotonic() - start, "bytes": told["stored"]}


def _pack_by_cloop_utils(bench: Bench, image: Path) -> Values:
    cloop = bench.work / "usr.cloop"
    threads = str(len(os.sched_getaffinity(0)))
    start = time.monotonic()
    run(["create_compressed_fs", "-q", "-B", "65536", "-L", "6", "-t", threads, image, cloop])
    seconds = time.monotonic() - start
    size = cloop.stat().st_size
    cloop.unlink()
    return {"seconds": seconds, "bytes": size}


@contextmanager
def _packers(bench: Bench) -> Iterator[Contenders]:
    image = _make_image(bench)
    yield {
        "p2pcloop": lambda: _pack_by_p2pcloop(bench, image),
        "create_compressed_fs": lambda: _pack_by_cloop_utils(bench, image),
    }


def _row(title: str, key: str) -> Row:
    return Row(title, ("p2pcloop", key), 1, ("create_compressed_fs", key))


PACK = Measure(
    "pack",
    "seed of a raw image of 1 GB, against create_compressed_fs -L 6",
    _UNITS,
    [
        _row("seed of 1 GB / create_compressed_fs -L 6", "seconds"),
        _row("its pack / the cloop", "bytes"),
    ],
    _packers,
)


def _timed_write(cloop: Path, argv: list[Argument]) -> Values:
    start = time.monotonic()
    run(argv)
    seconds = time.monotonic() - start
    size = cloop.stat().st_size
    cloop.unlink()
    return {"seconds": seconds, "bytes": size}


@contextmanager
def _writers(bench: Bench) -> Iterator[Contenders]:
    bench.image.read_bytes()  # into the page cache
    ours, theirs = bench.work / "ours.cloop", bench.work / "theirs.cloop"
    tool: list[Argument] = ["create_compressed_fs", "-q", "-B", "65536", "-L", "9", "-t", "2"]
    export: list[Argument] = [bench.p2pcloop, "export", "--home", bench.work / "home"]
    run([*export, bench.cloop, ours])  # its index is kept from now on
    ours.unlink()
    yield {
        "p2pcloop": lambda: _timed_write(ours, [*export, bench.image, ours]),
        "p2pcloop, of a cloop": lambda: _timed_write(ours, [*export, bench.cloop, ours]),
        "create_compressed_fs": lambda: _timed_write(theirs, [*tool, bench.image, theirs]),
    }


CLOOP_WRITE = Measure(
    "cloop-write",
    "p2pcloop export to a cloop V2.0, against create_compressed_fs -L 9 -t 2",
    _UNITS,
    [
        _row("cloop V2.0 of the image / create_compressed_fs -L 9 -t 2", "seconds"),
        _row("its size / that of theirs", "bytes"),
        Row(
            "cloop V2.0 of a cloop / of the raw image",
            ("p2pcloop, of a cloop", "seconds"),
            0.25,
            ("p2pcloop", "seconds"),
        ),
    ],
    _writers,
)
