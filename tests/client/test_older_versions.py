"""Which older version has the content of a file: by what is here alone."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import cast

import pytest

from p2pcloop.client import older_versions
from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.older_versions import OlderVersions
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.formats.link import Link
from p2pcloop.formats.manifest import Manifest, ManifestRef, open_manifest, sign_manifest
from p2pcloop.image.stored import StoredImage
from p2pcloop.making.changes import Base, Changes, find_changes
from p2pcloop.making.targets import FileTarget
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from tests.support.images import ignore
from tests.support.shared_layers import BLOCK, SharedLayer, block_of

from .test_publisher import KEY, NAME, Node

SIZE = 8


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.create()
    return home


def layers(home: Home, count: int) -> list[SharedLayer]:
    """Layers that are here, each with a block of its own number."""
    made = [SharedLayer(home.torrents, n, {0: n}, size=SIZE) for n in range(1, count + 1)]
    for layer in made:
        layer.store_all()
    return made


def published(home: Home, versions: Sequence[SharedLayer]) -> Publisher:
    """Have a home know versions of one layer each."""
    before: ManifestRef | None = None
    for number, layer in enumerate(versions, 1):
        manifest = Manifest(
            NAME.key, NAME.label, number, 0, SIZE * BLOCK, (layer.ref,), previous=before
        )
        signed = open_manifest(sign_manifest(manifest, KEY))
        before = ManifestRef(signed.id, bytes([number]) * 20)
        link = Link(NAME, signed.id, bytes([number]) * 20)
        Records(home).keep(signed, link)
    client = cast("ControlClient", Node())  # it refuses all calls
    return Publisher(home, client, KEY, NAME, StoredRef(signed, str(NAME), str(link), client))


def target(fill: int) -> FileTarget:
    data = block_of(fill) + bytes((SIZE - 1) * BLOCK)
    return FileTarget(lambda offset, size: data[offset : offset + size], len(data))


def found(publisher: Publisher, fill: int) -> int | None:
    """The version that has the content of a file, as one that differs from the newest one."""
    assert publisher.newest is not None
    newest = publisher.newest.signed.manifest
    image = StoredImage(newest, publisher.home.torrents).open()
    changes: Changes = find_changes(target(fill), Base(image, lambda _: False), ignore)
    image.close()
    holder = OlderVersions(publisher, target(fill), 0).with_content(changes, newest)
    return None if holder is None else holder.version


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_no_version_stays_open(home: Home) -> None:
    """A name may have thousands."""
    publisher = published(home, layers(home, 5))
    before = open_files()
    assert [found(publisher, fill) for fill in (1, 4, 5, 9)] == [1, 4, None, None]
    assert open_files() == before
    assert list(home.leases.iterdir()) == []


def test_a_damaged_version_has_not_the_content(home: Home) -> None:
    """No peer is asked for what is right of it: that may take for ever."""
    made = layers(home, 4)
    publisher = published(home, made)
    for layer, name in (made[0], "index"), (made[1], "pack"):
        [file] = (home.torrents / layer.ref.torrent.hex()).rglob(name)
        file.write_bytes(bytes(file.stat().st_size))
    assert [found(publisher, fill) for fill in (1, 2, 3)] == [None, None, 3]


def test_only_the_newest_versions_are_opened(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(older_versions, "MOST_OPENED", 2)
    made = layers(home, 4)
    # One that is not here, and one of the same layers as the newest, count for nothing.
    away = SharedLayer(home.torrents, 6, {0: 6}, size=SIZE)
    publisher = published(home, [made[0], made[1], made[2], away, made[3], made[3]])
    assert [found(publisher, fill) for fill in (1, 2, 3)] == [None, 2, 3]
