"""The tree of a mount: `@<key>/<label>/` for each image, with its device, manifest and versions.

Directories list what this node knows. A name that it does not know is resolved when it is looked
up, as `p2pcloop boot` would resolve it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import trio

from p2pcloop.errors import FormatError, NotHereError, UnreachableError
from p2pcloop.formats.manifest import LayerRef, ManifestRef, SignedManifest
from p2pcloop.formats.name import Name, format_key, is_label, parse_key
from p2pcloop.formats.signed import MAX_VERSION
from p2pcloop.image.api import Missing
from p2pcloop.protocol.fuse import Attributes, DirectoryEntry
from p2pcloop.store.home import Home
from p2pcloop.store.name_table import NameRecord
from p2pcloop.store.records import Records
from p2pcloop.text import to_json
from p2pcloop.words import tr
from p2pcloopd.block.supplier import Caller
from p2pcloopd.mount.files import FileSystem, NameTables, why_no_files
from p2pcloopd.mount.images import HeldImage, Images
from p2pcloopd.mount.nodes import (
    FOREVER,
    SOON,
    Directory,
    File,
    Identity,
    Node,
    Opened,
    Text,
    folder_entry,
)

RESOLVE_SECONDS = 60.0
"""A look-up of a name waits so long for those who may know it."""

_STEP = 256
"""Entries of a directory that are made before other readers get their turn."""

Stamp = tuple[int, int, int]


@dataclass(eq=False)
class Known:
    """The images that the node knows, and the way to know more.

    Attributes:
        images: opens images.
        tables: the names of directories in the images' file systems.
        begun: when the tree was mounted, in seconds since 1970.
    """

    home: Home
    client: Caller
    images: Images
    begun: int
    tables: NameTables = field(default_factory=NameTables)
    _stamp: Stamp | None = None
    _records: Records | None = None

    def records(self) -> Records:
        """The names that are known now.

        Raises:
            FormatError, StorageError: they cannot be read.
        """
        stamp = self._look()
        if self._records is None or stamp != self._stamp:
            self._records, self._stamp = Records(self.home), stamp
        return self._records

    def find(self, name: Name) -> NameRecord | None:
        """The record of a name, if it is known."""
        return self.records().find(name)

    def manifest(self, ref: ManifestRef | None) -> SignedManifest | None:
        """The manifest of a version, if it is here."""
        try:
            return None if ref is None else self.records().manifest(ref.id)
        except NotHereError:
            return None

    async def resolve(self, name: Name, at: int = 0) -> None:
        """Ask those whom the node may ask for a name, or for a version of it.

        Raises:
            NotHereError: none of them has it.
            UnreachableError: none of them answered in time.
            P2pcloopError: what they answered is refused.
        """
        with trio.move_on_after(RESOLVE_SECONDS) as scope:
            await self.client.call("resolve", ref=str(name), at=at, withdrawn=True)
        if scope.cancelled_caught:
            raise UnreachableError(
                tr(
                    "{name} was not found within {resolve_seconds:.0f} s",
                    name=name,
                    resolve_seconds=RESOLVE_SECONDS,
                )
            )

    async def hold(self, signed: SignedManifest) -> HeldImage:
        """Open the image of a version; see `Images.hold`."""
        record = self.find(signed.manifest.name)
        return await self.images.hold(signed, None if record is None else record.link.secret)

    def _look(self) -> Stamp | None:
        try:
            found = self.home.names.stat()
        except FileNotFoundError:
            return None
        return found.st_ino, found.st_mtime_ns, found.st_size


class Root(Directory):
    """The mount point: a directory for each key."""

    def __init__(self, known: Known) -> None:
        super().__init__(("root",), changed=known.begun, seconds=SOON)
        self._known = known

    async def find(self, name: bytes) -> Node | None:
        """See `Directory.find`. Any key is a directory: what it signed cannot be listed."""
        try:
            key = parse_key(_text(name[1:]))
        except FormatError:
            return None
        # A directory has one name: the kernel gets confused by a second one.
        return _Publisher(self._known, key) if name == _key_name(key) else None

    async def entries(self) -> Sequence[DirectoryEntry]:
        """See `Directory.entries`."""
        keys = sorted({record.name.key for record in self._known.records().names()})
        return [_Publisher(self._known, key).entry(_key_name(key)) for key in keys]


def _image_of(name: Name) -> Identity:
    """The identity of the directory of an image."""
    return "image", str(name)


def _version_of(manifest_id: bytes) -> Identity:
    """The identity of the directory of a version."""
    return "version", manifest_id


async def _pause(number: int) -> None:
    """Let other readers have their turn after some entries."""
    if number % _STEP == 0:
        await trio.lowlevel.checkpoint()


class _Publisher(Directory):
    """A key: a directory for each of its labels."""

    def __init__(self, known: Known, key: bytes) -> None:
        super().__init__(("key", key), changed=known.begun, seconds=SOON)
        self._known = known
        self._key = key

    async def find(self, name: bytes) -> Node | None:
        label = _text(name)
        if not is_label(label):
            return None
        wanted = Name(self._key, label)
        if self._known.find(wanted) is None:
            await self._known.resolve(wanted)
        return self._image(wanted)

    async def entries(self) -> Sequence[DirectoryEntry]:
        records = self._known.records()
        found: list[DirectoryEntry] = []
        for number, record in enumerate(records.names()):
            if record.name.key == self._key and records.has_manifest(record.manifest_id):
                found.append(folder_entry(record.name.label.encode(), _image_of(record.name)))
            await _pause(number)
        return found

    def _image(self, name: Name) -> _Image | None:
        record = self._known.find(name)
        signed = None if record is None else self._known.manifest(record.versions[record.version])
        return None if signed is None else _Image(self._known, signed)


class _Version(Directory):
    """A version of an image: its device, its manifest and its files."""

    where = "version"

    def __init__(self, known: Known, signed: SignedManifest) -> None:
        self._known = known
        self._signed = signed
        identity, seconds = self._place(signed)
        super().__init__(identity, changed=signed.manifest.created, seconds=seconds)

    def _place(self, signed: SignedManifest) -> tuple[Identity, int]:
        return _version_of(signed.id), FOREVER

    def _newest(self) -> SignedManifest:
        """The version that is shown."""
        return self._signed

    async def find(self, name: bytes) -> Node | None:
        make = self._makers().get(name)
        return None if make is None else make()

    async def entries(self) -> Sequence[DirectoryEntry]:
        return [make().entry(name) for name, make in self._makers().items()]

    def _makers(self) -> dict[bytes, Callable[[], Node]]:
        """What is in it, by name."""
        known, signed = self._known, self._newest()
        found: dict[bytes, Callable[[], Node]] = {
            b"manifest.json": lambda: _manifest_file(signed),
        }
        if not signed.manifest.withdrawn:
            found[b"disk.img"] = lambda: Disk(known, signed)
        if why_no_files(signed.manifest) is None:
            hold = partial(known.hold, signed)
            found[b"files"] = FileSystem(signed, self.where, hold, known.tables).root
        return found


class _Image(_Version):
    """An image: its newest version that is known here, and all versions."""

    where = "image"

    def _place(self, signed: SignedManifest) -> tuple[Identity, int]:
        return _image_of(signed.manifest.name), SOON

    def attributes(self) -> Attributes:
        """See `Node.attributes`."""
        return super().attributes()._replace(changed=self._newest().manifest.created)

    def _newest(self) -> SignedManifest:
        # A program whose working directory this is does not look its name up again.
        record = self._known.find(self._signed.manifest.name)
        if record is not None and record.manifest_id != self._signed.id:
            ref = record.versions[record.version]
            self._signed = self._known.manifest(ref) or self._signed
        return self._signed

    def _makers(self) -> dict[bytes, Callable[[], Node]]:
        name = self._signed.manifest.name
        return super()._makers() | {b"versions": lambda: _Versions(self._known, name)}


class _Versions(Directory):
    """The versions of an image, by number. One whose manifest is not here is fetched by name."""

    def __init__(self, known: Known, name: Name) -> None:
        super().__init__(("versions", str(name)), changed=known.begun, seconds=SOON)
        self._known = known
        self._name = name

    async def find(self, name: bytes) -> Node | None:
        text = _text(name)
        number = int(text) if text.isascii() and text.isdigit() and len(text) <= 20 else 0
        if str(number) != text or not 1 <= number <= MAX_VERSION:
            return None
        found = self._version(number)
        if found is None:
            await self._known.resolve(self._name, number)
            found = self._version(number)
        return found

    async def entries(self) -> Sequence[DirectoryEntry]:
        record = self._known.find(self._name)
        versions = {} if record is None else record.versions
        records = self._known.records()
        found: list[DirectoryEntry] = []
        for number, ref in sorted(versions.items()):
            if records.has_manifest(ref.id):
                found.append(folder_entry(str(number).encode(), _version_of(ref.id)))
            await _pause(number)
        return found

    def _version(self, number: int) -> _Version | None:
        record = self._known.find(self._name)
        ref = None if record is None else record.versions.get(number)
        signed = self._known.manifest(ref)
        return None if signed is None else _Version(self._known, signed)


class Disk(File):
    """The device of a version. It never changes, so all that the kernel caches of it is kept."""

    def __init__(self, known: Known, signed: SignedManifest) -> None:
        manifest = signed.manifest
        size, changed = manifest.disk_length, manifest.created
        super().__init__(("disk", signed.id), changed=changed, size=size, seconds=FOREVER)
        self._known = known
        self._signed = signed

    def attributes(self) -> Attributes:
        """See `Node.attributes`. It takes the room of its packs: so programs look for holes."""
        layers = self._signed.manifest.all_layers
        stored = sum(layer.index_length + layer.pack_length for layer in layers)
        return super().attributes()._replace(room=min(self._size, stored))

    async def open(self) -> Opened:
        """See `File.open`."""
        return _OpenDisk(await self._known.hold(self._signed))


class _OpenDisk:
    def __init__(self, image: HeldImage) -> None:
        self._image = image
        self._device = image.device
        self._size = image.device.size

    def read_into(self, offset: int, view: memoryview) -> int:
        view = view[: max(0, self._size - offset)]
        if view:
            self._device.read_into(offset, (view,))
        return len(view)

    async def supply(self, missing: Missing) -> None:
        await self._image.backend.supply(missing)

    def read_ahead(self, ranges: Sequence[tuple[int, int]]) -> None:
        ends = [(offset, min(length, self._size - offset)) for offset, length in ranges]
        self._device.read_ahead([(offset, length) for offset, length in ends if length > 0])

    def seek(self, offset: int, whence: int) -> int:
        while offset < self._size:
            for length, zeros in self._device.extents(offset, self._size - offset):
                if zeros == (whence == os.SEEK_HOLE):
                    return offset
                offset += length
        if whence == os.SEEK_HOLE and offset == self._size:
            return offset
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    def close(self) -> None:
        self._image.release()


def _manifest_file(signed: SignedManifest) -> Text:
    content = to_json(manifest_facts(signed)).encode() + b"\n"
    identity = ("manifest", signed.id)
    return Text(identity, content, changed=signed.manifest.created, seconds=FOREVER)


def manifest_facts(signed: SignedManifest) -> dict[str, Any]:
    """What `manifest.json` tells of a version: what its publisher signed."""
    manifest = signed.manifest
    return {
        "name": str(manifest.name),
        "version": manifest.version,
        "created": manifest.created,
        "message": manifest.message,
        "manifest": signed.id,
        "image_id": None if manifest.withdrawn else manifest.image_id,
        "size": manifest.disk_length,
        "filesystem": manifest.boot.root_type,
        "files": why_no_files(manifest) or "shown",
        "append": manifest.boot.append,
        "private": manifest.private,
        "withdrawn": manifest.withdrawn,
        "previous": None if manifest.previous is None else manifest.previous.id,
        "parent": None if manifest.parent is None else manifest.parent.id,
        "layers": [_layer_facts(layer) for layer in manifest.layers],
        "sources": [_layer_facts(layer) for layer in manifest.sources],
    }


def _layer_facts(layer: LayerRef) -> dict[str, Any]:
    return {
        "layer": layer.layer_id,
        "torrent": layer.torrent,
        "index_length": layer.index_length,
        "pack_length": layer.pack_length,
    }


def _key_name(key: bytes) -> bytes:
    return f"@{format_key(key)}".encode()


def _text(name: bytes) -> str:
    return name.decode("ascii", "replace")
