"""Layers whose chunks lie in the packs of others, and sealed ones."""

import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import CorruptError, FormatError, MismatchError, UsageError
from p2pcloop.formats.seal import Seal
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.reader import DeviceReader
from p2pcloop.image.stored import StoredImage
from tests.support.shared_layers import BLOCK, SECRET, Peers, SharedLayer, block_of, manifest_of


def content(size: int, *layers: SharedLayer) -> bytes:
    """What a stack reads as."""
    data = bytearray(size * BLOCK)
    for layer in layers:
        for block, fill in layer.blocks.items():
            data[block * BLOCK : (block + 1) * BLOCK] = block_of(fill)
    return bytes(data)


def read_all(stored: StoredImage, peers: Peers) -> bytes:
    image = peers.open(stored)
    try:
        return DeviceReader(ImageDevice(image), partial(peers.supply, stored)).read()
    finally:
        image.close()


def test_chunks_in_the_pack_of_a_source_are_read_and_nothing_else_of_it(tmp_path: Path) -> None:
    source = SharedLayer(tmp_path, 0, {0: 1, 1: 2, 2: 3}, size=8)
    layer = SharedLayer(tmp_path, 1, {3: 2, 4: 9, 5: 3}, size=8, sources=[source])
    peers = Peers(source, layer)
    stored = StoredImage(manifest_of([layer], sources=[source]), tmp_path)
    assert read_all(stored, peers) == content(8, layer)
    theirs = [(offset, length) for torrent, offset, length in peers.asked
              if torrent == source.ref.torrent]  # fmt: skip
    assert theirs == [source.place(1), source.place(2)]


def test_a_layer_below_may_be_a_source(tmp_path: Path) -> None:
    base = SharedLayer(tmp_path, 0, {0: 1, 1: 2}, size=4)
    top = SharedLayer(tmp_path, 1, {0: 2, 3: 7}, size=4, sources=[base])
    stored = StoredImage(manifest_of([base, top]), tmp_path)
    assert read_all(stored, Peers(base, top)) == content(4, base, top)


def test_a_source_that_the_manifest_does_not_name(tmp_path: Path) -> None:
    source = SharedLayer(tmp_path, 0, {0: 1}, size=2)
    layer = SharedLayer(tmp_path, 1, {1: 1}, size=2, sources=[source])
    stored = StoredImage(manifest_of([layer]), tmp_path)
    with pytest.raises(FormatError, match="that the manifest does not name"):
        read_all(stored, Peers(source, layer))
    stored.close()


def test_a_chunk_outside_the_pack_of_its_source(tmp_path: Path) -> None:
    source = SharedLayer(tmp_path, 0, {0: 1}, size=2)
    layer = SharedLayer(tmp_path, 1, {1: 1}, size=2, sources=[source])
    manifest = manifest_of([layer], sources=[source])
    short = replace(source.ref, pack_length=source.ref.pack_length - 1)
    stored = StoredImage(replace(manifest, sources=(short,)), tmp_path)
    with pytest.raises(FormatError, match="outside its pack"):
        read_all(stored, Peers(source, layer))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_stacks_of_any_kind_read_as_their_blocks(data: st.DataObject) -> None:
    size = 12
    with tempfile.TemporaryDirectory() as folder:
        layers: list[SharedLayer] = []
        for number in range(data.draw(st.integers(1, 5))):
            blocks = data.draw(st.dictionaries(st.integers(0, size - 1), st.integers(0, 20)))
            blocks |= {number: 100 + number}  # no two layers are the same
            sources = data.draw(st.lists(st.sampled_from(layers), unique=True)) if layers else []
            seal = Seal.new(SECRET) if data.draw(st.booleans()) else None
            # What all may read refers to nothing that is sealed.
            sources = [s for s in sources if seal or not s.sealed]
            layers.append(
                SharedLayer(Path(folder), number, blocks, size=size, seal=seal, sources=sources)
            )
        first = data.draw(st.integers(0, len(layers) - 1))
        stack, others = layers[first:], layers[:first]
        manifest = manifest_of(stack, sources=others, private=True)
        stored = StoredImage(manifest, Path(folder), SECRET)
        assert read_all(stored, Peers(*layers)) == content(size, *stack)
        for layer in layers:
            layer.stored.have.close()


# --- sealed layers --------------------------------------------------------------------------------


@pytest.fixture
def sealed(tmp_path: Path) -> SharedLayer:
    return SharedLayer(tmp_path, 0, {n: n for n in range(6)}, size=8, seal=Seal.new(SECRET))


def test_a_sealed_image_opens_with_its_secret_in_two_rounds(
    tmp_path: Path, sealed: SharedLayer
) -> None:
    top = SharedLayer(tmp_path, 1, {6: 2, 7: 99}, size=8, seal=Seal.new(SECRET), sources=[sealed])
    peers = Peers(sealed, top)
    stored = StoredImage(manifest_of([top], sources=[sealed], private=True), tmp_path, SECRET)
    image = peers.open(stored)
    assert peers.rounds == 2, "all headers, then all maps"
    image.close()
    stored = StoredImage(manifest_of([sealed, top], private=True), tmp_path, SECRET)
    assert read_all(stored, Peers(sealed, top)) == content(8, sealed, top)


def test_without_the_secret_nothing_is_asked_for(tmp_path: Path, sealed: SharedLayer) -> None:
    manifest = manifest_of([sealed], private=True)
    with pytest.raises(UsageError, match="private, and its key is not here"):
        StoredImage(manifest, tmp_path)
    with pytest.raises(MismatchError, match="wrong key"):
        StoredImage(manifest, tmp_path, SECRET[::-1])


def test_a_layer_sealed_under_another_key_than_the_manifest_says(tmp_path: Path) -> None:
    layer = SharedLayer(tmp_path, 0, {0: 1}, size=2, seal=Seal.new(SECRET[::-1]))
    stored = StoredImage(manifest_of([layer], private=True), tmp_path, SECRET)
    with pytest.raises(MismatchError, match="wrong key"):
        read_all(stored, Peers(layer))
    stored.close()


def test_a_sealed_layer_in_an_image_for_everybody(tmp_path: Path, sealed: SharedLayer) -> None:
    stored = StoredImage(manifest_of([sealed]), tmp_path, SECRET)
    with pytest.raises(FormatError, match="does not say that the image is private"):
        read_all(stored, Peers(sealed))
    stored.close()


def test_a_layer_for_everybody_with_a_sealed_source(tmp_path: Path, sealed: SharedLayer) -> None:
    top = SharedLayer(tmp_path, 1, {7: 1}, size=8, sources=[sealed])
    stored = StoredImage(manifest_of([sealed, top], private=True), tmp_path, SECRET)
    with pytest.raises(FormatError, match="refers to chunks of a sealed one"):
        read_all(stored, Peers(sealed, top))
    stored.close()


def swap(data: bytearray, first: tuple[int, int], second: tuple[int, int]) -> None:
    """Put each of two chunks of one length where the other was."""
    (a, length), (b, other) = first, second
    assert length == other
    data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]


def flip(data: bytearray, place: tuple[int, int]) -> None:
    data[place[0] + place[1] // 2] ^= 0x10


@pytest.mark.parametrize(
    "attack",
    [
        lambda data, layer: swap(data, layer.place(0), layer.place(1)),
        lambda data, layer: flip(data, layer.place(0)),
    ],
    ids=["swapped", "altered"],
)
def test_whoever_changes_what_is_seeded_is_noticed(
    tmp_path: Path, sealed: SharedLayer, attack: Callable[[bytearray, SharedLayer], None]
) -> None:
    published = sealed.stored.content
    damaged = bytearray(published)
    attack(damaged, sealed)
    # On this disk: it is healed.
    sealed.store_all()
    border = sealed.ref.index_length
    sealed.stored.write(damaged[:border], damaged[border:])
    manifest = manifest_of([sealed], private=True)
    peers = Peers(sealed)
    assert read_all(StoredImage(manifest, tmp_path, SECRET), peers) == content(8, sealed)
    assert sealed.place(0) in [(offset, length) for _, offset, length in peers.asked]
    # Everywhere: it is told.
    sealed.stored.content = bytes(damaged)
    with pytest.raises(CorruptError, match="contradicts itself"):
        read_all(StoredImage(manifest, tmp_path, SECRET), Peers(sealed))


def test_a_seeder_without_the_key_sees_no_content(sealed: SharedLayer) -> None:
    for chunk, fill in zip(sealed.chunks, sealed.blocks.values(), strict=True):
        assert chunk.id not in sealed.stored.content
        assert block_of(fill)[:32] not in sealed.stored.content
