from dataclasses import replace
from pathlib import Path

import pytest

from p2pcloop.formats.block_map import ZERO_CHUNK, Run
from p2pcloop.formats.overlay import Overlay
from p2pcloop.formats.profile import Touch
from p2pcloop.image.ahead import chunks_in_order, following_chunk
from p2pcloop.image.api import ByteRange
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from tests.support.images import make_layer

BLOCKS = 64


def image() -> MergedImage:
    """Blocks 0 to 31 in chunks of 4, 32 to 39 zeros; above, blocks 8 to 11 in another layer."""
    base = make_layer(
        [Run(0, 32, 0, 0, 4), Run(32, 8, ZERO_CHUNK, 0, 0)],
        [bytes([n + 1]) * 16384 for n in range(8)],
        BLOCKS,
    )
    top = make_layer([Run(8, 4, 0, 0, 4)], [b"t" * 16384], BLOCKS)
    return MergedImage([base, top])


def test_chunks_come_in_order_of_first_touch_and_once() -> None:
    touches = [Touch(6, 4, 0), Touch(28, 2, 1), Touch(0, 1, 2), Touch(30, 4, 3), Touch(50, 9, 4)]
    assert chunks_in_order(ImageDevice(image()), touches) == [(0, 1), (1, 0), (0, 7), (0, 0)]


def test_blocks_behind_the_end_are_left_out() -> None:
    assert chunks_in_order(ImageDevice(image()), [Touch(BLOCKS, 3, 0), Touch(1000, 1, 0)]) == []


@pytest.mark.parametrize("covered", [True, False])
def test_what_the_overlay_holds_is_not_brought(covered: bool, tmp_path: Path) -> None:
    merged = image()
    overlay = Overlay.create_temporary(tmp_path, image_id=merged.image_id, image_size=merged.size)
    overlay.write(0, [memoryview(bytes(b"w" * 4096 * (4 if covered else 3)))])
    expected = [] if covered else [(0, 0)]
    assert chunks_in_order(ImageDevice(merged, overlay), [Touch(0, 4, 0)]) == expected
    overlay.close()


def test_the_chunk_after_two_side_by_side_follows(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = make_layer([Run(0, 32, 0, 0, 4)], [bytes([n + 1]) * 16384 for n in range(8)], BLOCKS)
    merged = MergedImage([layer])
    wanted = ByteRange(b"t" * 20, 0, 1)
    monkeypatch.setattr(layer, "missing_chunk", lambda number: replace(wanted, length=number))
    found = []
    merged.notify_touches(lambda at, number: found.append(following_chunk(merged, at, number)))
    for number in (0, 1, 2, 4, 3, 6, 7, 5):
        merged.read_chunk(0, number)
    lengths = [None if each is None else each.length for each in found]
    # After 1 comes 2, after 2 comes 3; after 3, 4 is there; 7 is the last; after 5, 6 is there.
    assert lengths == [None, 2, 3, None, None, None, None, None]


def test_what_follows_is_asked_for_once_its_turn_comes_again() -> None:
    merged = image()
    for number in (0, 1, 2):
        merged.read_chunk(0, number)
    assert following_chunk(merged, 0, 2) is None  # all of it is here
