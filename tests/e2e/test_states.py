"""States: what was on a guest's disk, in its memory and in its devices goes from node to node."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path

import pytest

from p2pcloop.client.open_stored import open_stored
from p2pcloop.client.state import check_suspendable
from p2pcloop.errors import UsageError
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.overlay import Overlay
from tests.support.programs import Node, Nodes
from tests.support.states import PAGES, Memory, manifest_of, noise, read_parts, stored, suspend

pytestmark = pytest.mark.e2e

DISK = noise(1, 512)
DEVICES = b"QEVM" + noise(2)[:3000]


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk of noise, two megabytes."""
    path = tmp_path / "disk.img"
    path.write_bytes(DISK)
    return path


def memory() -> Memory:
    """Pages of noise, one of the disk, and a row of the disk; the rest are zeros."""
    pages = {page: noise(100 + page) for page in range(3, 40)}
    pages[50] = DISK[4096:8192]
    for page in range(20):
        pages[600 + page] = DISK[(30 + page) * 4096 : (31 + page) * 4096]
    return Memory(pages)


def write(node_overlay: Path, image_id: bytes, size: int, blocks: dict[int, bytes]) -> Path:
    """An overlay that holds some blocks."""
    with Overlay.create(node_overlay, image_id=image_id, image_size=size) as overlay:
        for block, content in blocks.items():
            overlay.write(block * 4096, [memoryview(content)])
        overlay.prepare_flush()()
    return node_overlay


def test_a_state_has_all_parts_and_a_second_one_only_what_changed(
    nodes: Nodes, disk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("p2pcloop.client.state._SEARCH_FROM", 0)
    node, other = nodes.make(), nodes.make()
    seeded = node.seed(disk, "disk")
    image = manifest_of(node, seeded["name"])
    overlay = write(tmp_path / "o.delta", image.image_id, image.size, {7: noise(9)})
    first = memory()
    made = suspend(node, seeded["name"], "guest", first, DEVICES, overlay=overlay)
    assert (made["version"], made["layers"], made["base"]) == (1, 2, seeded["name"])
    # 37 pages of noise, one single page of the disk, the block of the overlay, the device state.
    assert made["stored_blocks"] == 37 + 1 + 1 + 1
    assert made["referred_blocks"] == 20
    changed = DISK[: 7 * 4096] + noise(9) + DISK[8 * 4096 :]
    assert read_parts(node, made["name"]) == (changed, bytes(first), DEVICES)
    assert read_parts(other, made["link"]) == (changed, bytes(first), DEVICES)

    # A page changed, one became zeros, one was zeros; and the device state is longer.
    pages = {3: noise(1003), 4: bytes(4096), PAGES - 1: noise(1004), 5: first.pages[5]}
    longer = DEVICES + noise(3, 2)
    second = suspend(node, made["name"], "guest", pages, longer)
    assert (second["version"], second["layers"]) == (2, 3)
    assert second["zero_blocks"] == 1
    assert second["stored_blocks"] == 2 + 3, "the page that is as it was is not stored"
    now = Memory(first.pages | pages)
    assert read_parts(other, second["link"]) == (changed, bytes(now), longer)
    assert read_parts(other, second["link"], at=1) == (changed, bytes(first), DEVICES)


def test_a_guest_that_goes_on_is_suspended_again_over_its_last_state(
    nodes: Nodes, disk: Path, tmp_path: Path
) -> None:
    """Its overlay still lies on the image that it was booted from."""
    node = nodes.make()
    seeded = node.seed(disk, "disk")
    image = manifest_of(node, seeded["name"])
    overlay = write(tmp_path / "o.delta", image.image_id, image.size, {7: noise(9)})
    first = memory()
    made = suspend(node, seeded["name"], "guest", first, DEVICES, overlay=overlay)
    back = write(tmp_path / "back.delta", image.image_id, image.size, {8: noise(10)})
    now = Memory(first.pages | {200: noise(11)})
    del now.pages[4]
    second = suspend(node, seeded["name"], "guest", now, DEVICES, overlay=back, over=made["name"])
    assert second["base"] == made["name"]
    assert second["layers"] == 3
    # A page, a block, and one block that is as it was in the image again; and a page of zeros.
    assert (second["stored_blocks"], second["zero_blocks"]) == (3, 1)
    changed = DISK[: 8 * 4096] + noise(10) + DISK[9 * 4096 :]
    assert read_parts(node, second["name"]) == (changed, bytes(now), DEVICES)


def test_a_private_state_lies_over_a_public_image(nodes: Nodes, disk: Path) -> None:
    node, other = nodes.make(), nodes.make()
    seeded = node.seed(disk, "disk")
    secret = {page: b"secret words in memory" + noise(page)[22:] for page in range(9)}
    first = Memory(memory().pages | secret)
    made = suspend(node, seeded["name"], "guest", first, DEVICES, private=True)
    assert "#key=" in made["link"]
    pack = b"".join(path.read_bytes() for path in node.home.torrents.rglob("pack"))
    assert b"secret words" not in pack
    assert read_parts(other, made["link"]) == (DISK, bytes(first), DEVICES)
    with pytest.raises(UsageError, match="its key is not here"):
        read_parts(nodes.make(), made["link"].partition("#key=")[0])
    second = suspend(node, made["name"], "guest", {0: noise(77)}, DEVICES)
    assert second["link"].partition("#key=")[2] == made["link"].partition("#key=")[2]
    now = Memory(first.pages | {0: noise(77)})
    assert read_parts(other, second["link"]) == (DISK, bytes(now), DEVICES)


def test_what_is_not_here_is_not_fetched_for_a_state(
    nodes: Nodes, disk: Path, tmp_path: Path
) -> None:
    """A guest wrote to blocks that it had never read."""
    node, other = nodes.make(), nodes.make()
    link = node.seed(disk, "disk")["link"]
    name = str(parse_link(link).name)
    with ExitStack() as stack:
        open_stored(stored(other, link, stack), other.home, stack)
    image = manifest_of(other, name)
    before = _here(other, image)
    overlay = write(tmp_path / "o.delta", image.image_id, image.size, {7: noise(9), 8: DISK[:4096]})
    made = suspend(other, name, "guest", memory(), DEVICES, overlay=overlay)
    assert _here(other, image) == before
    changed = DISK[: 7 * 4096] + noise(9) + DISK[:4096] + DISK[9 * 4096 :]
    assert read_parts(node, made["link"]) == (changed, bytes(memory()), DEVICES)


def _here(node: Node, image: Manifest) -> int:
    """Bytes of an image's layer that are here."""
    found = node.torrents()[image.layers[0].torrent.hex()]
    here: int = found["have_bytes"] + found["provisional_bytes"]
    return here


def test_what_is_no_state_of_a_guest_is_refused(nodes: Nodes, disk: Path) -> None:
    node = nodes.make()
    name = node.seed(disk, "disk")["name"]
    with pytest.raises(UsageError, match="not over what it lies"):
        suspend(node, name, "guest", {0: noise(1)}, DEVICES)
    with pytest.raises(UsageError, match="the guest's disk has 4096 bytes, and that of"):
        suspend(node, name, "guest", memory(), DEVICES, disk_length=4096)
    private = suspend(node, name, "hidden", memory(), DEVICES, private=True)["name"]
    with pytest.raises(UsageError, match="does not lie on the layers"):
        suspend(node, private, "guest", memory(), DEVICES, over=name)
    with pytest.raises(UsageError, match="is private, and this would be under another key"):
        suspend(node, private, "guest", {0: noise(1)}, DEVICES, secret=None)
    assert node.json("images")["images"][0]["version"] == 1


def test_a_guest_of_too_many_layers_is_not_stopped(
    nodes: Nodes, disk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    node = nodes.make()
    name = node.seed(disk, "disk")["name"]
    monkeypatch.setattr("p2pcloop.client.state.MANY_LAYERS", 2)
    state = suspend(node, name, "guest", memory(), DEVICES)["name"]
    assert "squash" not in capsys.readouterr().err
    suspend(node, state, "guest", {0: noise(1)}, DEVICES)
    assert f"has 3 layers, of at most 256: `p2pcloop squash {state}`" in capsys.readouterr().err
    with ExitStack() as stack:
        image = stored(node, state, stack)
        check_suspendable(image)
        monkeypatch.setattr("p2pcloop.client.state.MAX_LAYERS", 3)
        with pytest.raises(UsageError, match="has 3 layers"):
            check_suspendable(image)
