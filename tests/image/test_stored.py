"""An image from the store: it opens while it arrives, and only as its manifest says."""

from dataclasses import replace
from pathlib import Path

import pytest

from p2pcloop.errors import CorruptError, FormatError, MismatchError
from p2pcloop.formats.index import open_index
from p2pcloop.formats.manifest import LayerRef, Manifest
from p2pcloop.image import stored
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.reader import DeviceReader
from p2pcloop.image.stored import StoredImage
from tests.support.images import StoredLayer, make_image, padded, read_views

BASE = make_image(5 * 65536 + 700, seed=2)
TOP = b"".join(make_image(65536, seed=2) if n == 1 else bytes(65536) for n in range(6))


def manifest_of(*layers: LayerRef, size: int) -> Manifest:
    return Manifest(bytes(32), "a", 1, 0, size, layers)


class Peer:
    """Answers what is missing, as p2pcloopd would."""

    def __init__(self, stored: StoredImage, *layers: StoredLayer) -> None:
        self.stored = stored
        self.layers = {layer.ref.torrent: layer for layer in layers}
        self.rounds = 0

    def supply(self, missing: Missing) -> None:
        self.rounds += 1
        assert self.rounds < 100
        for wanted in missing.ranges:
            self.stored.accept(wanted, self.layers[wanted.torrent].answer(wanted))

    def open(self) -> MergedImage:
        while True:
            try:
                return self.stored.open()
            except Missing as missing:
                self.supply(missing)


def test_an_image_opens_and_reads_while_it_arrives(tmp_path: Path) -> None:
    layer = StoredLayer(tmp_path, BASE)
    manifest = manifest_of(layer.ref, size=len(padded(BASE)))
    peer = Peer(StoredImage(manifest, tmp_path), layer)
    image = peer.open()
    # First the header, then the map: each part is known from the one before.
    assert [(wanted.offset, wanted.heal) for wanted in layer.asked] == [
        (0, False),
        (layer.ref.header_length, False),
    ]
    assert image.image_id == manifest.image_id
    reader = DeviceReader(ImageDevice(image), peer.supply)
    assert reader.readable()
    assert reader.read() == padded(BASE)
    assert reader.read(10) == b""
    image.close()


def test_layers_are_asked_for_together(tmp_path: Path) -> None:
    base = StoredLayer(tmp_path, BASE)
    top = StoredLayer(tmp_path, TOP, torrent=b"t" * 20)
    manifest = manifest_of(base.ref, top.ref, size=len(TOP))
    peer = Peer(StoredImage(manifest, tmp_path), base, top)
    image = peer.open()
    assert peer.rounds == 2
    model = bytearray(padded(BASE).ljust(len(TOP), b"\0"))
    for at in range(0, len(TOP), 65536):
        if any(TOP[at : at + 65536]):
            model[at : at + 65536] = TOP[at : at + 65536]
    assert DeviceReader(ImageDevice(image), peer.supply).read() == model
    image.close()


def test_the_maps_of_all_layers_are_bounded_together(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest of many layers must not cost what many maps of the largest size would."""
    base = StoredLayer(tmp_path, BASE)
    top = StoredLayer(tmp_path, TOP, torrent=b"t" * 20)
    runs = sum(open_index(layer.content).run_count for layer in (base, top))
    image = StoredImage(manifest_of(base.ref, top.ref, size=len(TOP)), tmp_path)
    monkeypatch.setattr(stored, "MAX_RUNS", runs - 1)
    peer = Peer(image, base, top)
    with pytest.raises(FormatError, match=f"{runs} runs in all"):
        peer.open()
    assert peer.rounds == 1, "no map was asked for"
    image.close()


def test_what_is_here_needs_nobody(tmp_path: Path) -> None:
    layer = StoredLayer(tmp_path, BASE)
    layer.store(range(layer.pieces))
    image = StoredImage(manifest_of(layer.ref, size=len(padded(BASE))), tmp_path).open()
    assert read_views(ImageDevice(image), 0, [image.size]) == padded(BASE)
    assert layer.asked == []
    image.close()


@pytest.mark.parametrize("at", [0, 100, 200, 5000])
def test_any_damage_on_disk_is_healed_and_the_reader_sees_nothing(tmp_path: Path, at: int) -> None:
    layer = StoredLayer(tmp_path, BASE)
    layer.store(range(layer.pieces))
    damaged = bytearray(layer.content)
    damaged[at] ^= 0x80
    length = layer.ref.index_length
    layer.write(damaged[:length], damaged[length:])
    peer = Peer(StoredImage(manifest_of(layer.ref, size=len(padded(BASE))), tmp_path), layer)
    image = peer.open()
    assert DeviceReader(ImageDevice(image), peer.supply).read() == padded(BASE)
    (wanted,) = layer.asked
    assert wanted.heal
    assert wanted.offset <= at < wanted.offset + wanted.length
    image.close()


def test_a_publisher_who_contradicts_himself_is_an_error_and_no_endless_loop(
    tmp_path: Path,
) -> None:
    layer = StoredLayer(tmp_path, BASE)
    broken = bytearray(layer.content)
    broken[layer.ref.index_length + 5] ^= 1
    layer.content = bytes(broken)
    peer = Peer(StoredImage(manifest_of(layer.ref, size=len(padded(BASE))), tmp_path), layer)
    reader = DeviceReader(ImageDevice(peer.open()), peer.supply)
    with pytest.raises(CorruptError, match="contradicts itself"):
        reader.read(4096)


@pytest.mark.parametrize("field", ["index_length", "pack_length"])
def test_lengths_that_differ_from_the_manifest(tmp_path: Path, field: str) -> None:
    layer = StoredLayer(tmp_path, BASE)
    ref = replace(layer.ref, **{field: getattr(layer.ref, field) + 1})
    stored = StoredImage(manifest_of(ref, size=len(padded(BASE))), tmp_path)
    with pytest.raises(MismatchError, match="other sizes than the manifest says"):
        Peer(stored, layer).open()
    stored.close()


@pytest.mark.parametrize("more", [-4096, 4096])
def test_a_size_that_differs_from_the_manifest(tmp_path: Path, more: int) -> None:
    """The image's id would not be the manifest's: its overlays would fit neither."""
    layer = StoredLayer(tmp_path, BASE)
    stored = StoredImage(manifest_of(layer.ref, size=len(padded(BASE)) + more), tmp_path)
    with pytest.raises(MismatchError, match="than the manifest says"):
        Peer(stored, layer).open()
    stored.close()


@pytest.mark.parametrize("length", [80, 1000])
def test_a_header_of_another_length_or_layer_is_healed_then_refused(
    tmp_path: Path, length: int
) -> None:
    layer = StoredLayer(tmp_path, BASE)
    ref = replace(layer.ref, header_length=length)
    stored = StoredImage(manifest_of(ref, size=len(padded(BASE))), tmp_path)
    with pytest.raises(CorruptError, match="the index header of a layer"):
        Peer(stored, layer).open()
    assert [wanted.heal for wanted in layer.asked] == [False, True]
    stored.close()
