"""Chunks that other images of a home have: found, never believed, never fetched again."""

import hashlib
import logging
import tempfile
from functools import partial
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.formats.chunk_table import ENTRY, Chunk, ChunkPage, Codec
from p2pcloop.formats.index import open_index
from p2pcloop.formats.manifest import Manifest, open_manifest, sign_manifest
from p2pcloop.formats.seal import Seal
from p2pcloop.image import known as known_module
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.known import KnownChunks, home_manifests
from p2pcloop.image.reader import DeviceReader
from p2pcloop.image.stored import StoredImage
from p2pcloop.store.home import Home
from p2pcloop.store.lease import leased
from p2pcloop.store.removed import mark_removed
from tests.support.chains import pack_chains
from tests.support.images import PIECE, StoredLayer
from tests.support.shared_layers import BLOCK, SECRET, Peers, SharedLayer, block_of, manifest_of

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.create()
    return home


def keep(home: Home, manifest: Manifest) -> Path:
    """Let a home know a manifest, signed by a key of the tests."""
    key = KEY.public_key().public_bytes_raw()
    fields = {name: getattr(manifest, name) for name in manifest.__slots__} | {"key": key}
    data = sign_manifest(Manifest(**fields), KEY)
    path = home.manifests / open_manifest(data).id.hex()
    path.write_bytes(data)
    return path


def read(home: Home, layer: SharedLayer, *, secret: bytes | None = None) -> Peers:
    """Read an image of one layer, of which nothing is here; who was asked for what."""
    manifest = manifest_of([layer], private=layer.sealed)
    stored = StoredImage.of_home(manifest, home, secret)
    peers = Peers(layer)
    image = peers.open(stored)
    data = DeviceReader(ImageDevice(image), partial(peers.supply, stored)).read()
    image.close()
    for block, fill in layer.blocks.items():
        assert data[block * BLOCK : (block + 1) * BLOCK] == block_of(fill)
    return peers


def fetched(layer: SharedLayer, peers: Peers) -> list[int]:
    """The numbers of the chunks that were asked for."""
    places = [layer.place(number) for number in range(len(layer.chunks))]
    return [places.index((offset, length)) for _, offset, length in peers.asked
            if (offset, length) in places]  # fmt: skip


def test_what_another_image_of_the_home_has_is_not_fetched(home: Home) -> None:
    old = SharedLayer(home.torrents, 0, {0: 1, 1: 2, 5: 3}, size=8)
    old.store_all()
    keep(home, manifest_of([old]))
    new = SharedLayer(home.torrents, 1, {0: 3, 1: 4, 2: 1}, size=8)
    assert fetched(new, read(home, new)) == [1]
    assert old.stored.asked == []


def test_what_is_not_known_or_not_durable_is_fetched(home: Home) -> None:
    old = SharedLayer(home.torrents, 0, {n: n for n in range(300)}, size=400)
    path = keep(home, manifest_of([old]))
    new = SharedLayer(home.torrents, 1, {0: 1, 1: 299}, size=400)
    assert fetched(new, read(home, new)) == [0, 1]
    # All of the first torrent but its last piece, in which the last chunk ends.
    old.stored.store(range(old.stored.pieces - 1))
    assert fetched(new, read(home, new)) == [1]
    old.store_all()
    assert fetched(new, read(home, new)) == []
    path.unlink()
    assert fetched(new, read(home, new)) == [0, 1]


def test_what_is_damaged_there_is_fetched(home: Home) -> None:
    old = SharedLayer(home.torrents, 0, {0: 1, 1: 2}, size=8)
    old.store_all()
    keep(home, manifest_of([old]))
    offset = old.place(0)[0] - old.ref.index_length
    pack = bytearray(old.stored.pack_path.read_bytes())
    pack[offset + 20] ^= 1
    old.stored.write(b"", pack)
    new = SharedLayer(home.torrents, 1, {0: 2, 1: 1}, size=8)
    assert fetched(new, read(home, new)) == [1]


def test_a_page_that_is_damaged_or_goes_away_later_is_no_error(home: Home) -> None:
    old = SharedLayer(home.torrents, 0, {0: 1}, size=8)
    old.store_all()
    keep(home, manifest_of([old]))
    known = KnownChunks(home)
    (found,) = known.find(old.chunks[0].id)
    assert found.ref == old.ref
    assert known.is_here(found)
    known._parsed.clear()
    old.stored.write(bytes(old.ref.index_length), b"")
    assert list(known.find(old.chunks[0].id)) == []
    assert known.read(old.chunks[0]) is None
    known.close()
    assert KnownChunks(home).read(old.chunks[0]) is None


def test_chunks_that_a_known_layer_has_in_its_sources(home: Home) -> None:
    source = SharedLayer(home.torrents, 0, {0: 1, 1: 2}, size=8)
    layer = SharedLayer(home.torrents, 1, {4: 2}, size=8, sources=[source])
    source.store_all()
    layer.store_all()
    keep(home, manifest_of([layer], sources=[source]))
    # The source's own table is gone: only the other layer says where its chunk is.
    source.stored.write(bytes(source.ref.index_length), b"")
    (found,) = KnownChunks(home).find(layer.chunks[0].id)
    assert (found.ref, found.chunk.source) == (source.ref, 0)
    new = SharedLayer(home.torrents, 2, {0: 2}, size=8)
    assert fetched(new, read(home, new)) == []


def test_a_chunk_of_a_chain_is_not_taken_from_elsewhere(home: Home) -> None:
    """It cannot be decoded alone, so no other layer refers to it."""
    index, pack = pack_chains([1])
    old = SharedLayer(home.torrents, 0, {0: 1}, size=2)
    old.stored = StoredLayer.of(home.torrents, index, pack, bytes([9]) * 20)
    old.stored.store(range(old.stored.pieces))
    keep(home, manifest_of([old]))
    chunk = ChunkPage(index[-ENTRY.size :], pack_lengths=[len(pack)])[0]
    known = KnownChunks(home)
    assert chunk.chained
    assert list(known.find(chunk.id)) == []
    assert known.read(chunk) is None
    assert len(known._pages) == 1, "the layer was not searched"


def test_sealed_layers_are_known_to_their_readers_only(home: Home) -> None:
    old = SharedLayer(home.torrents, 0, {0: 1}, size=8, seal=Seal.new(SECRET))
    old.store_all()
    keep(home, manifest_of([old], private=True))
    new = SharedLayer(home.torrents, 1, {3: 1}, size=8, seal=Seal.new(SECRET))
    assert fetched(new, read(home, new, secret=SECRET)) == []
    assert list(KnownChunks(home).find(old.chunks[0].id)) == []
    assert list(KnownChunks(home, secrets=[SECRET[::-1]]).find(old.chunks[0].id)) == []
    (found,) = KnownChunks(home, secrets=[SECRET]).find(old.chunks[0].id)
    assert found.seal is not None


def test_pieces_that_were_of_use_are_told_and_no_others(home: Home) -> None:
    layers = [
        SharedLayer(home.torrents, n, {m: n * 1000 + m for m in range(500)}, size=500)
        for n in range(2)
    ]
    for layer in layers:
        layer.store_all()
        keep(home, manifest_of([layer]))
    new = SharedLayer(home.torrents, 2, {0: 499}, size=8)
    stored = StoredImage.of_home(manifest_of([new]), home)
    peers = Peers(new)
    image = peers.open(stored)
    DeviceReader(ImageDevice(image), partial(peers.supply, stored)).read(4096)
    assert leased(home) == {layers[0].ref.torrent}, "and stay while they are of use"
    image.close()
    assert leased(home) == set()
    used = stored.used()
    assert layers[1].ref.torrent not in used
    bits = used[layers[0].ref.torrent]
    # The second page of the table and the last chunk.
    parts = (open_index(layers[0].stored.content).page_extent(1), layers[0].place(499))
    pieces = {byte // PIECE for at, length in parts for byte in range(at, at + length)}
    assert pieces == {n for n in range(8 * len(bits)) if bits[n // 8] & 0x80 >> n % 8}
    assert len(pieces) < layers[0].stored.pieces


def test_a_chunk_that_stands_a_thousand_times_is_looked_at_a_few_times(home: Home) -> None:
    old = SharedLayer(home.torrents, 0, dict.fromkeys(range(1000), 7), size=1000)
    old.store_all()
    keep(home, manifest_of([old]))
    assert len(list(KnownChunks(home).find(old.chunks[0].id))) == known_module._CANDIDATES


def test_layers_beyond_the_bound_are_passed_over(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(known_module, "MAX_PAGES", 2)
    small = SharedLayer(home.torrents, 0, {0: 1}, size=600)
    large = SharedLayer(home.torrents, 1, {n: n + 2 for n in range(513)}, size=600)
    for layer in (small, large):
        layer.store_all()
    keep(home, manifest_of([large, small]))
    known = KnownChunks(home)
    assert len(list(known.find(small.chunks[0].id))) == 1
    assert list(known.find(large.chunks[0].id)) == []


def test_a_damaged_manifest_is_told_and_passed_over(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    old = SharedLayer(home.torrents, 0, {0: 1}, size=8)
    keep(home, manifest_of([old]))
    (home.manifests / ("00" * 32)).write_bytes(b"damaged")
    (home.manifests / ("01" * 32)).mkdir()
    with caplog.at_level(logging.WARNING):
        (manifest,) = home_manifests(home)
    assert manifest.layers == (old.ref,)
    assert "00000000 is passed over" in caplog.text
    assert "01010101 is passed over" in caplog.text


def test_the_mark_of_a_version_that_was_removed_is_no_damaged_manifest(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    mark_removed(home, [bytes(32)])
    with caplog.at_level(logging.WARNING):
        assert list(home_manifests(home)) == []
    assert caplog.text == ""


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.dictionaries(st.integers(0, 599), st.integers(0, 40), max_size=20), max_size=4),
    st.integers(1, 7),
)
def test_chunks_are_found_where_a_set_has_them(
    contents: list[dict[int, int]], at_once: int
) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(known_module, "_SORTED_AT_ONCE", at_once)
        home = Home.at(folder)
        home.create()
        for number, blocks in enumerate(contents):
            layer = SharedLayer(home.torrents, number, blocks, size=600)
            layer.store_all()
            layer.stored.have.close()
            keep(home, manifest_of([layer]))
        known = KnownChunks(home)
        for fill in range(41):
            chunk_id = hashlib.sha256(block_of(fill)).digest()
            here = any(fill in blocks.values() for blocks in contents)
            found = list(known.find(chunk_id))
            assert bool(found) == here
            assert all(place.chunk.id == chunk_id and known.is_here(place) for place in found)
            content = known.read(Chunk(0, 1, 1, Codec.NONE, chunk_id))
            assert content == (block_of(fill) if here else None)
        known.close()
