"""SIGKILL at any moment, and a disk that takes no more."""

from __future__ import annotations

import errno
import os
import resource
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from p2pcloop.errors import StorageError
from p2pcloop.store.have import HaveView
from p2pcloopd.engine.disk.content import Content
from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.fetch.tuning import TUNING
from tests.support.engines import Nodes
from tests.support.waiting import BOUND

PIECE = 16384

_CHILD = """
import sys
from pathlib import Path

import trio
from p2pcloopd.engine.engine import open_engine
from p2pcloopd.engine.fetch.backfill import fetch_all
from p2pcloopd.engine.bt.settings import EngineSettings


async def main(store, info_hash, host, port):
    settings = EngineSettings((("127.0.0.2", 0),), ("127.0.0.2",), download_rate=1_500_000)
    async with open_engine(settings, Path(store)) as engine:
        torrent = await engine.add(bytes.fromhex(info_hash), peers=[(host, int(port))])
        await torrent.read(10 * 16384, 7 * 16384)
        await torrent.save()
        print("saved", flush=True)
        await fetch_all(torrent, lambda done, total: print(done, flush=True))
        await trio.sleep_forever()


trio.run(main, *sys.argv[1:])
"""


def _reported(seen: bytes) -> int:
    """Bytes that the child said are here; -1 before its first save."""
    lines = seen.split(b"\n")[:-1]
    return -1 if not lines else 0 if lines == [b"saved"] else int(lines[-1])


@pytest.mark.parametrize("enough", [0, 800_000, 1_600_000])
async def test_sigkill(nodes: Nodes, content: bytes, tmp_path: Path, enough: int) -> None:
    async with nodes.open("1") as seeder:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        store = tmp_path / "2" / "torrents"
        host, port = seeder.listen_ports[0]
        child = await trio.lowlevel.open_process(
            [sys.executable, "-c", _CHILD, str(store), seeded.info_hash.hex(), host, str(port)],
            stdout=subprocess.PIPE,
        )
        assert child.stdout is not None
        try:
            with trio.fail_after(BOUND):
                seen = b""
                while _reported(seen) < enough:
                    seen += await child.stdout.receive_some()
        finally:
            os.kill(child.pid, signal.SIGKILL)
            await child.wait()
            await child.stdout.aclose()
        layout = await seeded.metadata()
        directory = store / seeded.info_hash.hex()
        kept = Content(directory / "data", layout)
        with HaveView(directory / "have") as view:
            here = [piece for piece in range(view.pieces) if view.has(piece, piece)]
        assert set(range(10, 17)) <= set(here)
        assert kept.wrong_pieces(seeded._stored._meta, here) == []
        async with nodes.open("2") as reader:
            await reader.restore()
            (torrent,) = reader.torrents
            # What had arrived and was not saved is here, too. The last piece is a short one.
            lost = kept.wrong_pieces(seeded._stored._meta, range(layout.pieces))
            right = set(range(layout.pieces)).difference(lost)
            assert set(here) <= right
            had = sum(len(content[piece * PIECE :][:PIECE]) for piece in right)
            assert torrent.have_bytes == had
            with trio.fail_after(BOUND):
                await fetch_all(torrent)
                assert await torrent.read(0, len(content)) == content
            (statistics,) = (await reader.statistics()).torrents
            assert statistics.traffic.payload_received == len(content) - had


async def test_no_room_for_the_metadata_and_room_again(nodes: Nodes, content: bytes) -> None:
    """As below; the metadata has 2,600 bytes, what else is written some dozens."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))
        try:
            torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
            with trio.fail_after(BOUND):
                for _ in range(2):
                    with pytest.raises(StorageError) as caught:
                        await torrent.read(0, PIECE)
                    assert caught.value.errno == errno.EFBIG
                    await trio.sleep(TUNING.disk_retry)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        with trio.fail_after(BOUND):
            assert await torrent.read(0, len(content)) == content
            await fetch_all(torrent)
        assert torrent.usable()


async def test_disk_full_and_room_again(nodes: Nodes, content: bytes) -> None:
    """The limit on a file's size stands for a full disk: writes behind it fail with EFBIG."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    async with nodes.open("1") as seeder, nodes.open("2") as reader:
        seeded = await seeder.seed(nodes.source("1", content).staging)
        torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
        with trio.fail_after(BOUND):
            assert await torrent.read(0, 3 * PIECE) == content[: 3 * PIECE]
            await torrent.save()
            resource.setrlimit(resource.RLIMIT_FSIZE, (1_000_000, hard))
            try:
                with pytest.raises(StorageError) as caught:
                    await fetch_all(torrent)
                # libtorrent tells what it met first: EIO is a file too short to be compared.
                assert caught.value.errno in (errno.EFBIG, errno.EIO)
                with pytest.raises(StorageError):
                    await torrent.read(100 * PIECE, PIECE)
                assert await torrent.read(0, 3 * PIECE) == content[: 3 * PIECE]
            finally:
                resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
            while True:
                try:
                    assert await torrent.read(100 * PIECE, PIECE) == content[100 * PIECE :][:PIECE]
                    break
                except StorageError:
                    await trio.sleep(0.1)
            await fetch_all(torrent)
            assert await torrent.read(0, len(content)) == content
    pack = nodes.files("2", seeded.info_hash) / "pack"
    assert pack.read_bytes() == content[50_001:]
