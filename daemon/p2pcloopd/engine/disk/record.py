"""What the store keeps of one torrent besides its content: metadata, have bits, where to look.

    torrents/<info hash>/torrent   the info dictionary in a .torrent file (BEP 3), once it is known
    torrents/<info hash>/have      docs/formats/have.md
    torrents/<info hash>/peers     msgpack: the peers, trackers and web seeds that the user named,
                                   and whether others may be told of the torrent
    torrents/<info hash>/open      empty; there while p2pcloopd may write to the content
    torrents/<info hash>/data/     the content

Everything here blocks on the disk and is meant for a worker thread.
"""

from __future__ import annotations

import logging
import os
from contextlib import suppress
from dataclasses import fields
from pathlib import Path

import msgpack

from p2pcloop.errors import FormatError, NotHereError, storage_error
from p2pcloop.formats.mirror import build_metainfo, extract_info
from p2pcloop.formats.named import sync_names
from p2pcloop.frozen import dataclass
from p2pcloop.store.have import HaveFile
from p2pcloop.store.home import replace_file
from p2pcloop.words import tr
from p2pcloopd.engine.disk.content import Content
from p2pcloopd.engine.disk.metainfo import MAX_METADATA_SIZE, TorrentLayout

log = logging.getLogger(__name__)

Peer = tuple[str, int]
"""Host (a name or an address, IPv6 without brackets) and port."""

MAX_SOURCES = 64
_MAX_SOURCES_SIZE = 2 << 20
"""Bytes of the file `peers`: 64 trackers and 64 web seeds as long as a link, and room to spare."""


@dataclass(frozen=True, slots=True)
class Sources:
    """Where to look for a torrent: what the user named, nothing else; and who may be told of it.

    Attributes:
        peers: hosts and ports.
        trackers: URLs.
        web_seeds: URLs (BEP 19).
        public: announced to the DHT and to trackers, as far as the node uses these.
    """

    peers: tuple[Peer, ...] = ()
    trackers: tuple[str, ...] = ()
    web_seeds: tuple[str, ...] = ()
    public: bool = False

    def __or__(self, other: Sources) -> Sources:
        """Both, those of `other` first, the first 64 of each kind."""
        return Sources(
            tuple(dict.fromkeys(other.peers + self.peers))[:MAX_SOURCES],
            tuple(dict.fromkeys(other.trackers + self.trackers))[:MAX_SOURCES],
            tuple(dict.fromkeys(other.web_seeds + self.web_seeds))[:MAX_SOURCES],
            self.public or other.public,
        )


class Record:
    """One torrent's directory in the store. Errors of the disk are `StorageError`."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.data = directory / "data"

    def create(self) -> None:
        """Make the directories where they are missing.

        They become durable in `open_have`, before a bit can say that content is: readers wait for
        this, and each sync takes some milliseconds.
        """
        try:
            self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        except OSError as err:
            raise storage_error(tr("cannot create {data}", data=self.data), err) from err

    def load_torrent(self, info_hash: bytes) -> bytes | None:
        """The bencoded info dictionary if it is known and whole, or None."""
        data = self._read("torrent", MAX_METADATA_SIZE)
        if data is None:
            return None
        try:
            return extract_info(data, info_hash)
        except FormatError:
            log.warning("%s is damaged: the metadata is fetched again", self.directory / "torrent")
            return None

    def save_torrent(self, info: bytes) -> None:
        """Keep a bencoded info dictionary, durably."""
        replace_file(self.directory / "torrent", build_metainfo(info))

    def since(self) -> int:
        """When the metadata came, in seconds since 1970."""
        try:
            return int((self.directory / "torrent").stat().st_mtime)
        except OSError as err:
            raise storage_error(tr("cannot use {path}", path=self.directory), err) from err

    def freshen(self) -> None:
        """Let it count as new: what nothing names yet is about to be published once more."""
        try:
            os.utime(self.directory / "torrent")
        except OSError as err:
            raise storage_error(tr("cannot use {path}", path=self.directory), err) from err

    def load_sources(self) -> Sources:
        """What `save_sources` kept; nothing where that is damaged."""
        data = self._read("peers", _MAX_SOURCES_SIZE)
        if data is None:
            return Sources()
        try:
            kept = msgpack.unpackb(data)
            return Sources(
                tuple((str(host), int(port)) for host, port in kept["peers"]),
                tuple(map(str, kept["trackers"])),
                tuple(map(str, kept["web_seeds"])),
                kept.get("public") is True,
            )
        except (ValueError, TypeError, AttributeError, KeyError, msgpack.UnpackException) as err:
            log.warning("%s is damaged and not used: %s", self.directory / "peers", err)
            return Sources()

    def save_sources(self, sources: Sources) -> None:
        """Keep where to look; durably once `open_have` has made the directory's name durable."""
        kept = {item.name: getattr(sources, item.name) for item in fields(sources)}
        replace_file(self.directory / "peers", msgpack.packb(kept))

    def open_have(self, info_hash: bytes, layout: TorrentLayout, content: Content) -> HaveFile:
        """Open the have bits, or begin new ones; forget bits of data that files cannot hold.

        Not of files that lie elsewhere: nothing is fetched into those, and they may come back.
        """
        path = self.directory / "have"
        try:
            have = HaveFile.open(path, info_hash, layout.pieces)
        except NotHereError:
            self._sync_names()
            return HaveFile.create(path, info_hash, layout.pieces)
        except FormatError as err:
            log.warning("%s; nothing of this torrent counts as here", err)
            return HaveFile.create(path, info_hash, layout.pieces)
        if content.foreign():
            return have
        lost = [p for p in _cut_off(layout, content) if have.has(p, p)]
        if lost:
            log.warning("%s: %d pieces are gone from the disk", self.data, len(lost))
            have.drop(*lost)
        return have

    def _sync_names(self) -> None:
        """Make the names of the directories durable."""
        try:
            sync_names(self.directory)
            sync_names(self.directory.parent)
        except OSError as err:
            raise storage_error(tr("cannot use {path}", path=self.directory), err) from err

    def mark_open(self) -> bool:
        """Note that the content may be written to, until `mark_closed`.

        Nothing waits for the disk: data that a power cut leaves there is written later than this.

        Returns:
            Whether it was noted already: the last who did it was killed.
        """
        try:
            (self.directory / "open").touch(mode=0o600, exist_ok=False)
        except FileExistsError:
            return True
        except OSError as err:
            log.warning("%s: %s; a crash may cost a second", self.directory / "open", err)
        return False

    def mark_closed(self) -> None:
        """Note that all that arrived is durable, and no more is written."""
        with suppress(OSError):
            (self.directory / "open").unlink(missing_ok=True)

    def _read(self, name: str, limit: int) -> bytes | None:
        path = self.directory / name
        try:
            with open(path, "rb") as file:
                return file.read(limit)
        except FileNotFoundError:
            return None
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=path), err) from err


def _cut_off(layout: TorrentLayout, content: Content) -> list[int]:
    """The pieces that lie in part behind the end of a file, or in a file that is not there."""
    gone: set[int] = set()
    start = 0
    for path, (_, size) in zip(content.paths, layout.files, strict=True):
        actual = path.stat().st_size if path.is_file() else 0
        if actual < size:
            gone.update(layout.pieces_of(start + actual, size - actual))
        start += size
    return sorted(gone)
