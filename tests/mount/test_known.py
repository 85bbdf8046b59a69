"""The tree over the names that a home knows, without a mount."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.formats.link import Link
from p2pcloop.formats.manifest import (
    LayerRef,
    Manifest,
    SignedManifest,
    open_manifest,
    sign_manifest,
)
from p2pcloop.formats.name import format_key
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloopd.mount.images import Images
from p2pcloopd.mount.nodes import Directory, File, Node
from p2pcloopd.mount.tree import Known, Root

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PUBLIC = KEY.public_key().public_bytes_raw()
NAME = f"@{format_key(PUBLIC)}".encode()
LAYER = LayerRef(b"l" * 32, b"t" * 20, 4096, 512, 8192, 16384)


class Client:
    async def call(self, op: str, *_: object, **__: object) -> dict[str, Any]:
        raise AssertionError(f"another node is asked: {op}")


def keep(home: Home, version: int) -> SignedManifest:
    manifest = Manifest(PUBLIC, "image", version, 1000 + version, 4096, (LAYER,))
    signed = open_manifest(sign_manifest(manifest, KEY))
    Records(home).keep(signed, Link(signed.manifest.name, signed.id, b"m" * 20))
    return signed


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.create()
    keep(home, 1)
    return home


@pytest.fixture
async def root(home: Home, nursery: trio.Nursery) -> Root:
    client = Client()
    return Root(Known(home, client, Images(home, client, nursery, home.root), 0))


async def walk(node: Node, *names: bytes) -> Node:
    for name in names:
        assert isinstance(node, Directory)
        found = await node.find(name)
        assert found is not None
        node = found
    return node


async def version_in(image: Node) -> bytes:
    file = await walk(image, b"manifest.json")
    assert isinstance(file, File)
    view = memoryview(bytearray(4096))
    size = (await file.open()).read_into(0, view)
    return bytes(view[:size])


async def test_a_working_directory_shows_the_newest_version(root: Root, home: Home) -> None:
    """Its name is not looked up again."""
    image = await walk(root, NAME, b"image")
    assert b'"version": 1' in await version_in(image)
    keep(home, 2)
    assert b'"version": 2' in await version_in(image)
    assert image.attributes().changed == 1002


async def test_listing_versions_reads_no_manifest(
    root: Root, home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = keep(home, 2)
    keep(home, 3)
    versions = await walk(root, NAME, b"image", b"versions")
    one = await walk(versions, b"1")
    (home.manifests / lost.id.hex()).unlink()

    def refuse(*_: object) -> None:
        raise AssertionError("a manifest is read")

    monkeypatch.setattr(Records, "manifest", refuse)
    assert isinstance(versions, Directory)
    entries = await versions.entries()
    assert [entry.name for entry in entries] == [b"1", b"3"]
    assert entries[0] == one.entry(b"1")


async def test_listing_labels_reads_no_manifest(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    image = await walk(root, NAME, b"image")
    publisher = await walk(root, NAME)

    def refuse(*_: object) -> None:
        raise AssertionError("a manifest is read")

    monkeypatch.setattr(Records, "manifest", refuse)
    assert isinstance(publisher, Directory)
    assert await publisher.entries() == [image.entry(b"image")]


async def test_a_publisher_has_one_name(root: Root) -> None:
    assert await root.find(NAME) is not None
    for other in (NAME[1:], b"@" + NAME, NAME.upper(), b"", b"@"):
        assert await root.find(other) is None
