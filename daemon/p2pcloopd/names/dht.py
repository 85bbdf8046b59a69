"""Name records in the DHT: finding them, and keeping one's own there.

A record lies as it is under its publisher's key, with the label as salt (BEP 44). Nodes of the DHT
forget it after two hours, so it is put again every hour while p2pcloopd runs.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from pathlib import Path

import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.name import Name
from p2pcloop.formats.record import Record, open_record
from p2pcloop.store.keys import load_key, name_of_key
from p2pcloop.store.records import Records
from p2pcloop.words import tr
from p2pcloopd.engine.bt.session_dht import Dht
from p2pcloopd.engine.engine import Engine
from p2pcloopd.names.lookup import FoundRecord

_log = logging.getLogger(__name__)

ANNOUNCE_SECONDS = 3600
RETRY_SECONDS = 120
"""Where no node of the DHT took a record, it is tried again after so long."""

CONCURRENCY = 4
"""Records that are put at the same time."""


class DhtSource:
    """The DHT as a source of records."""

    def __init__(self, dht: Dht) -> None:
        self._dht = dht

    @property
    def name(self) -> str:
        return tr("the DHT")

    async def find(self, name: Name) -> Sequence[FoundRecord]:
        """What lies there under a name: anything at all, which the holder of the key signed."""
        return [FoundRecord(data) for data in await self._dht.get(name.key, _salt(name))]


class Announcer:
    """Keeps in the DHT the records of the names that were published here as public.

    Those are the names whose newest manifest is a public torrent of this node: that outlasts a
    restart. The key is in the home, or was handed over since p2pcloopd started.
    """

    def __init__(self, dht: Dht, engine: Engine, records: Records, keys_dir: Path) -> None:
        self._dht = dht
        self._engine = engine
        self._records = records
        self._keys_dir = keys_dir
        self._keys: dict[bytes, Ed25519PrivateKey] = {}
        self._due: dict[Name, float] = {}
        self._limit = trio.CapacityLimiter(CONCURRENCY)
        self._news = trio.Event()

    def announce(self, name: Name, key: Ed25519PrivateKey | None) -> None:
        """Put the record of a name soon: it was published. `key` is kept until p2pcloopd ends."""
        if key is not None:
            self._keys[name.key] = key
        if self._due.get(name) != math.inf:  # one that is being put is looked at again anyway
            self._due[name] = -math.inf
        self._news.set()

    async def run(self) -> None:
        """Put each record when it is due, for ever."""
        async with trio.open_nursery() as nursery:
            while True:
                self._news = trio.Event()
                public = self._public()
                self._due = {name: self._due.get(name, -math.inf) for name in public}
                for name, data in public.items():
                    if self._due[name] <= trio.current_time():
                        self._due[name] = math.inf
                        nursery.start_soon(self._keep, name, data)
                with trio.move_on_at(min(self._due.values(), default=math.inf)):
                    await self._news.wait()

    def _public(self) -> dict[Name, bytes]:
        """The records that are to be in the DHT."""
        found = {}
        for known in self._records.names():
            torrent = self._engine.get(known.link.manifest_torrent)
            if known.record is not None and torrent is not None and torrent.peers.sources.public:
                found[known.name] = known.record
        return found

    async def _keep(self, name: Name, data: bytes) -> None:
        """Put a record once. Two records of a name are never on their way at the same time."""
        async with self._limit:
            pause = await self._put(open_record(data).record, data)
        newer = self._public().get(name, data) != data
        self._due[name] = -math.inf if newer else trio.current_time() + pause
        self._news.set()

    async def _put(self, record: Record, data: bytes) -> float:
        """Put a record if it is the newest, and tell after how long to do so again."""
        name = record.name
        key = await trio.to_thread.run_sync(self._find_key, name)
        if key is None:
            return ANNOUNCE_SECONDS
        for there in await self._there(name):
            if there.version > record.version:
                _log.warning(
                    "the DHT has version %d of %s, which is newer than version %d here: it stays",
                    there.version, name, record.version,
                )  # fmt: skip
                return ANNOUNCE_SECONDS
            if there.version == record.version and there.manifest_id != record.manifest_id:
                _log.error(
                    "fork: the DHT has another version %d of %s, %s, than was published here, %s",
                    record.version, name, there.manifest_id.hex(), record.manifest_id.hex(),
                )  # fmt: skip
                return ANNOUNCE_SECONDS
        nodes = await self._dht.put(key, _salt(name), data)
        if not nodes:
            _log.warning("no node of the DHT took the record of %s: tried again soon", name)
            return RETRY_SECONDS
        _log.info("%d nodes of the DHT keep version %d of %s", nodes, record.version, name)
        return ANNOUNCE_SECONDS

    async def _there(self, name: Name) -> list[Record]:
        """The valid records that the DHT has under a name."""
        found = []
        for data in await self._dht.get(name.key, _salt(name)):
            try:
                record = open_record(data).record
            except P2pcloopError as err:
                _log.warning("what the DHT has under %s is replaced: %s", name, err)
                continue
            if record.name == name:
                found.append(record)
        return found

    def _find_key(self, name: Name) -> Ed25519PrivateKey | None:
        """The private key of a name, if there is one that needs no passphrase. Reads the disk."""
        if name.key in self._keys:
            return self._keys[name.key]
        why = tr("its key is not in this home")
        try:
            label = name_of_key(self._keys_dir, name.key)
            if label is not None:
                return load_key(self._keys_dir, label)
        except P2pcloopError as err:
            why = str(err)
        _log.warning("%s cannot be kept in the DHT until it is published again: %s", name, why)
        return None


def _salt(name: Name) -> bytes:
    return name.label.encode()
