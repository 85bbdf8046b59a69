"""Nodes on loopback for tests of the engine: real libtorrent sessions, an address for each."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pcloopd.engine.bt.settings import EngineSettings
from p2pcloopd.engine.engine import Engine, open_engine
from p2pcloopd.engine.fetch.tuning import TUNING, Tuning
from p2pcloopd.engine.torrent import Torrent
from tests.support.waiting import BOUND

INDEX_SIZE = 50_001


@dataclass(frozen=True)
class Source:
    """Prepared content: `staging` for `Engine.seed`, and where the pack really lies."""

    staging: Path
    pack: Path


@dataclass(frozen=True)
class Nodes:
    """Makes nodes by name below `root`: node "1" listens on 127.0.0.1, and so on.

    Attributes:
        tuning: of those that are given no other.
    """

    root: Path
    tuning: Tuning = TUNING

    def open(
        self,
        name: str,
        port: int = 0,
        on_stall: Callable[[Torrent], None] | None = None,
        tuning: Tuning | None = None,
    ) -> AbstractAsyncContextManager[Engine]:
        """Open the engine of a node."""
        store, host = self.root / name / "torrents", f"127.0.0.{name}"
        return open_at(store, host, port, on_stall, tuning or self.tuning)

    def source(self, name: str, content: bytes, pack_name: str | None = None) -> Source:
        """Prepare content for a node: an index, and a pack that lies elsewhere."""
        staging = self.root / name / "tmp" / "staging"
        files = staging / "data" / "image"
        files.mkdir(parents=True)
        pack = self.root / f"{pack_name or name}.cloop"
        pack.write_bytes(content[INDEX_SIZE:])
        (files / "index").write_bytes(content[:INDEX_SIZE])
        (files / "pack").symlink_to(pack)
        return Source(staging, pack)

    async def known(self, reader: Engine, content: bytes) -> tuple[Torrent, int]:
        """A torrent of which a reader has the metadata, and the port of node "1", its seeder, which
        is gone."""
        source = self.source("1", content)
        async with self.open("1") as seeder:
            seeded = await seeder.seed(source.staging)
            torrent = await reader.add(seeded.info_hash, peers=seeder.listen_ports)
            with trio.fail_after(BOUND):
                await torrent.metadata()
            return torrent, seeder.listen_ports[0][1]

    def directory(self, name: str, info_hash: bytes) -> Path:
        """Where a node keeps a torrent."""
        return self.root / name / "torrents" / info_hash.hex()

    def files(self, name: str, info_hash: bytes) -> Path:
        """Where a node keeps the index and the pack of a torrent."""
        return self.directory(name, info_hash) / "data" / "image"


def open_at(
    store: Path,
    host: str,
    port: int = 0,
    on_stall: Callable[[Torrent], None] | None = None,
    tuning: Tuning = TUNING,
) -> AbstractAsyncContextManager[Engine]:
    """Open an engine on a store, listening on and connecting from a loopback address."""
    settings = EngineSettings(listen=((host, port),), outgoing=(host,))
    return open_engine(settings, store, on_stall, tuning)


def flip(path: Path, offset: int) -> None:
    """Change one byte of a file."""
    with open(path, "r+b") as file:
        file.seek(offset)
        byte = file.read(1)
        file.seek(offset)
        file.write(bytes([byte[0] ^ 0x40]))
