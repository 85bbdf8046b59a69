"""A device read from end to end, with its zeros left out."""

import io
import random
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.api import never_missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.reader import DeviceReader
from p2pcloop.making.local import inspect_file, open_local
from tests.support.images import ignore

BLOCKS = 600


@settings(max_examples=40)
@given(
    data=st.lists(st.integers(0, BLOCKS - 1), max_size=6),
    writes=st.lists(st.tuples(st.integers(0, BLOCKS - 1), st.booleans()), max_size=6),
    step=st.sampled_from([1 << 20, 1 << 16]),
)
def test_what_is_skipped_are_zeros_and_nothing_else_is_lost(
    data: list[int], writes: list[tuple[int, bool]], step: int
) -> None:
    raw = bytearray(BLOCKS * 4096)
    for block in data:
        raw[block * 4096 : (block + 1) * 4096] = random.Random(block).randbytes(4096)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "raw")
        path.write_bytes(raw)
        image = open_local(inspect_file(path), None, ignore)
        overlay = Overlay.create_temporary(
            Path(folder), image_id=image.image_id, image_size=image.size
        )
        device = ImageDevice(image, overlay)
        for block, zeros in writes:
            content = bytes(4096) if zeros else random.Random(-block - 1).randbytes(4096)
            raw[block * 4096 : (block + 1) * 4096] = content
            if zeros:
                device.discard(block * 4096, 4096)
            else:
                device.write(block * 4096, [memoryview(content)])
        reader = DeviceReader(device, never_missing)
        source = io.BufferedReader(reader, step)
        found = bytearray()
        read = 0
        while True:
            found += bytes(reader.skip_zeros())
            content = source.read(step)
            if not content:
                break
            read += len(content)
            found += content
        device.close()
    assert found == raw
    places = len(set(data) | {block for block, zeros in writes if not zeros})
    assert read <= places * max(step, 2 * 65536)
