"""Requests of any alignment over NBD, on a real device: of a block in part, the rest stays."""

from __future__ import annotations

import random
import tempfile
from pathlib import Path

import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.device import ImageDevice
from p2pcloop.making.local import inspect_file, open_local
from p2pcloopd.block.nbd_listen import open_nbd_listeners
from p2pcloopd.block.nbd_server import serve_nbd
from p2pcloopd.block.source import LocalBackend
from tests.support.nbd_client import FLUSH, NO_HOLE, READ, TRIM, WRITE, WRITE_ZEROES, NbdClient

BLOCK = 4096
SIZE = 24 * BLOCK
RAW = random.Random(1).randbytes(SIZE - 5 * BLOCK) + bytes(5 * BLOCK)

Change = tuple[int, int, int, int]
"""Command, flags, offset, length."""

RANGES = st.integers(0, SIZE - 1).flatmap(
    lambda at: st.tuples(st.just(at), st.integers(1, min(SIZE - at, 3 * BLOCK)))
)
CHANGES = st.tuples(
    st.sampled_from([(WRITE, 0), (WRITE_ZEROES, 0), (WRITE_ZEROES, NO_HOLE), (TRIM, 0)]), RANGES
).map(lambda parts: (*parts[0], *parts[1]))


def apply(model: bytearray, change: Change, data: bytes) -> None:
    command, _, offset, length = change
    if command == TRIM:  # of whole blocks; the rest keeps what it holds
        first, last = -(-offset // BLOCK), (offset + length) // BLOCK
        offset, length = first * BLOCK, max(0, last - first) * BLOCK
    model[offset : offset + length] = data if command == WRITE else bytes(length)


async def play(folder: Path, changes: list[Change], reads: list[tuple[int, int]]) -> None:
    (folder / "image").write_bytes(RAW)
    image = open_local(inspect_file(folder / "image"), None, lambda _done: None)
    overlay = folder / "overlay"
    device = ImageDevice(
        image, Overlay.create(overlay, image_id=image.image_id, image_size=image.size)
    )
    model = bytearray(RAW)
    async with open_nbd_listeners(f"unix:{folder / 's'}") as listeners:
        async with trio.open_nursery() as nursery:
            await nursery.start(serve_nbd, LocalBackend(device), listeners)
            async with await trio.open_unix_socket(folder / "s") as stream:
                client = NbdClient(stream)
                await client.haggle()
                for number, change in enumerate(changes):
                    command, flags, offset, length = change
                    data = bytes([number + 1]) * length if command == WRITE else b""
                    told = await client.call(command, offset, length, flags=flags, payload=data)
                    assert told == (0, b"")
                    apply(model, change, data)
                    for at, count in [*reads, (offset, length), (0, SIZE)]:
                        assert await client.call(READ, at, count) == (0, bytes(model[at:][:count]))
                assert await client.call(FLUSH) == (0, b"")
            nursery.cancel_scope.cancel()
    device.close()


@settings(max_examples=25, deadline=None)
@given(st.lists(CHANGES, min_size=1, max_size=6), st.lists(RANGES, max_size=3))
def test_any_alignment(changes: list[Change], reads: list[tuple[int, int]]) -> None:
    with tempfile.TemporaryDirectory() as folder:
        trio.run(play, Path(folder), changes, reads)
