"""The cost of a stack of 20 layers: to open it, to keep it in memory, to read it.

The base is a 2 GB image of 28,000 chunks in an order of its own, as a pack ordered by a boot has
them: a run for each. On it lie 19 deltas of 50 MB, each in 3,000 runs of a few blocks. Everything
is here. All chunks hold 16 blocks, so that reads differ by the stack alone and decode the same.
"""

from __future__ import annotations

import hashlib
import json
import random
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import zstandard

from bench.harness import Bench, Contenders, Measure, Row, Values
from bench.processes import run_json
from p2pcloop.formats.block_map import ZERO_CHUNK, Run
from p2pcloop.formats.chunk_table import Chunk, Codec
from p2pcloop.formats.index import build_index, open_index
from p2pcloop.formats.manifest import LayerRef, Manifest
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.stored import StoredImage
from p2pcloop.store.have import HaveFile
from p2pcloop.units import BLOCK_SIZE

LAYERS = 20
BLOCKS = 2_000_000_000 // BLOCK_SIZE
CHUNKS = 28_000
PER_CHUNK = 16
DELTA_BLOCKS = 50_000_000 // BLOCK_SIZE
DELTA_RUNS = 3_000
PIECE = 1 << 18
CONTENTS = 64
COLD_READS = 8_000
WARM_READS = 100_000
WARM_BLOCKS = 32 * PER_CHUNK
"""Few enough that all their chunks stay decoded, with any layers over them."""


def _base_runs(rng: random.Random) -> list[Run]:
    order = rng.sample(range(CHUNKS), CHUNKS)
    return [Run(n * PER_CHUNK, PER_CHUNK, order[n], 0, PER_CHUNK) for n in range(CHUNKS)]


def _delta_runs(rng: random.Random) -> list[Run]:
    """Stretches of 1 to 7 blocks, one in each of as many parts of the device."""
    runs, done = [], 0
    part = BLOCKS // DELTA_RUNS
    for number in range(DELTA_RUNS):
        blocks = rng.randint(1, 7)
        start = number * part + rng.randrange(part - blocks)
        runs.append(Run(start, blocks, done // PER_CHUNK, done % PER_CHUNK, PER_CHUNK))
        done += blocks
    return runs


def _write_layer(torrents: Path, number: int, runs: list[Run], chunks: int) -> LayerRef:
    """A layer all of which is here; its chunks share contents, each decoded as its own.

    The base has as many of them as all deltas together, so that one layer takes as much of the
    processor's cache as the stack does.
    """
    rng = random.Random(number)
    contents = [
        b"".join(rng.randbytes(2048) + bytes(2048) for _ in range(PER_CHUNK))
        for _ in range(CONTENTS if number else CONTENTS * LAYERS)
    ]
    stored = [zstandard.ZstdCompressor(level=3).compress(content) for content in contents]
    places, pack = [], b""
    for content, data in zip(contents, stored, strict=True):
        digest = hashlib.sha256(content).digest()
        places.append(Chunk(len(pack), len(data), PER_CHUNK, Codec.ZSTD, digest))
        pack += data
    table = [places[n % len(places)] for n in range(chunks)]
    index = build_index(runs, table, image_size=BLOCKS * BLOCK_SIZE, pack_length=len(pack))
    header = open_index(index)
    torrent = hashlib.sha1(header.layer_id, usedforsecurity=False).digest()
    folder = torrents / torrent.hex() / "data" / header.layer_id.hex()[:32]
    folder.mkdir(parents=True)
    (folder / "index").write_bytes(index)
    (folder / "pack").write_bytes(pack)
    pieces = -(-(len(index) + len(pack)) // PIECE)
    HaveFile.create(folder.parent.parent / "have", torrent, pieces, complete=True).close()
    return LayerRef(header.layer_id, torrent, len(index), header.length, len(pack), PIECE)


def make_stack(torrents: Path) -> list[LayerRef]:
    """Write the layers, base first."""
    rng = random.Random(1)
    refs = [_write_layer(torrents, 0, _base_runs(rng), CHUNKS)]
    for number in range(1, LAYERS):
        runs = _delta_runs(rng)
        chunks = -(-sum(run.count for run in runs) // PER_CHUNK)
        refs.append(_write_layer(torrents, number, runs, chunks))
    return refs


def _memory_mb(field: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{field}:"):
            return int(line.split()[1]) * 1024 / 1e6
    raise AssertionError(f"no {field} in /proc/self/status")


def _open_and_read(torrents: Path, layers: list[LayerRef]) -> Values:
    """In a process of its own: open the image, look at the memory, read."""
    manifest = Manifest(bytes(32), "stack", 1, 0, BLOCKS * BLOCK_SIZE, tuple(layers))
    before = _memory_mb("VmRSS")
    started, busy = time.perf_counter(), time.process_time()
    image = StoredImage(manifest, torrents).open()
    values = {"seconds": time.perf_counter() - started, "busy": time.process_time() - busy}
    values["resident"] = _memory_mb("VmRSS") - before
    values["peak"] = _memory_mb("VmHWM") - before
    device = ImageDevice(image)
    rng = random.Random(3)
    cold = [rng.randrange(BLOCKS) for _ in range(COLD_READS)]
    _read_tables(image, cold)
    values["cold"] = _reads(device, cold)
    warm = [rng.randrange(WARM_BLOCKS) for _ in range(WARM_READS)]
    _reads(device, warm)
    values["warm"] = _reads(device, warm)
    device.close()
    return values


def _read_tables(image: MergedImage, blocks: list[int]) -> None:
    """Read the pages of chunk tables that reads of these blocks need: each is read but once."""
    for block in blocks:
        for layer, chunk, _, _ in image.map.pieces(block, 1):
            if chunk != ZERO_CHUNK:
                image.layers[layer].chunk(chunk)


def _reads(device: ImageDevice, blocks: list[int]) -> float:
    """Microseconds of the processor that each read of one block takes; all of it is in memory."""
    view = memoryview(bytearray(BLOCK_SIZE))
    started = time.process_time()
    for block in blocks:
        device.read_into(block * BLOCK_SIZE, [view])
    return (time.process_time() - started) / len(blocks) * 1e6


@contextmanager
def _contenders(bench: Bench) -> Iterator[Contenders]:
    torrents = bench.work / "torrents"
    refs = make_stack(torrents)

    def measured(layers: list[LayerRef]) -> Values:
        told = [[ref.layer_id.hex(), ref.torrent.hex(), *_sizes(ref)] for ref in layers]
        values: Values = run_json([sys.executable, "-m", __name__, torrents, json.dumps(told)])
        return values

    yield {"stack": lambda: measured(refs), "one layer": lambda: measured(refs[:1])}


def _sizes(ref: LayerRef) -> list[int]:
    return [ref.index_length, ref.header_length, ref.pack_length, ref.piece_length]


STACK = Measure(
    "stack",
    "open and read a stack of 20 layers on a 2 GB image of 28,000 chunks",
    {"seconds": "s", "busy": "s", "resident": "MB", "peak": "MB", "cold": "µs", "warm": "µs"},
    [
        Row("open a stack of 20 layers", ("stack", "seconds"), 0.3),
        Row("its maps in memory", ("stack", "resident"), 30),
        Row("the most while it opens", ("stack", "peak"), 30),
        Row(
            "4 KiB reads of decoded chunks, stack / one layer",
            ("stack", "warm"),
            1.2,
            ("one layer", "warm"),
        ),
        Row(
            "4 KiB reads at random, stack / one layer",
            ("stack", "cold"),
            1.2,
            ("one layer", "cold"),
        ),
    ],
    _contenders,
)


if __name__ == "__main__":
    given = [
        LayerRef(bytes.fromhex(layer), bytes.fromhex(torrent), *sizes)
        for layer, torrent, *sizes in json.loads(sys.argv[2])
    ]
    print(json.dumps(_open_and_read(Path(sys.argv[1]), given)))
