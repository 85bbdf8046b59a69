"""The memory of a guest as a part of a state: extents of it, and what lies between them."""

from __future__ import annotations

from contextlib import closing
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.api import never_missing
from p2pcloop.making.state import MemoryTarget, state_target
from p2pcloop.making.targets import FileTarget, files_target
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.guest.machine.qemu_memory import copy_memory
from tests.support.stacks import SMALL, BytesTarget, Stack
from tests.support.states import MEMORY, PAGES, Memory, machine

PAGE = st.integers(1, 255).map(lambda value: bytes([value]) * BLOCK_SIZE)
MEMORIES = st.dictionaries(st.integers(0, 30) | st.integers(PAGES - 3, PAGES - 1), PAGE)


@given(MEMORIES, st.booleans(), st.integers(0, PAGES - 1), st.integers(1, 40))
def test_memory_is_read_as_it_is(
    pages: dict[int, bytes], is_whole: bool, block: int, count: int
) -> None:
    memory = Memory(pages, is_whole=is_whole)
    target = MemoryTarget(memory)
    count = min(count, PAGES - block)
    start, end = block * BLOCK_SIZE, (block + count) * BLOCK_SIZE
    assert target.read(block, count) == bytes(memory)[start:end]
    following = [page for page in sorted(pages) if page >= block]
    assert target.next_data(block) == (following[0] if following else PAGES)
    compared = [first + n for first, many in target.stretches() for n in range(many)]
    assert compared == (list(range(PAGES)) if is_whole else sorted(pages))


@given(MEMORIES, st.booleans())
def test_a_copy_of_a_memory_in_a_file_says_the_same(
    pages: dict[int, bytes], is_whole: bool
) -> None:
    memory = Memory(pages, is_whole=is_whole)
    with closing(copy_memory(memory)) as copied:
        one, other = MemoryTarget(memory), MemoryTarget(copied)
        assert one.read(0, PAGES) == other.read(0, PAGES)
        assert list(one.stretches()) == list(other.stretches())


def test_parts_of_other_sizes_than_was_said_are_refused() -> None:
    def part(length: int) -> FileTarget:
        return FileTarget(lambda _at, count: bytes(count), length)

    said = machine(8 * BLOCK_SIZE, b"state")
    memory = MemoryTarget(Memory({}))
    assert state_target(part(8 * BLOCK_SIZE), memory, b"state", said).size == said.size
    with pytest.raises(FormatError, match="the disk of the guest has 4096 bytes, and 32768"):
        state_target(part(BLOCK_SIZE), memory, b"state", said)
    with pytest.raises(FormatError, match="the memory of the guest"):
        less = MemoryTarget(Memory({}, size=MEMORY - BLOCK_SIZE))
        state_target(part(8 * BLOCK_SIZE), less, b"state", said)
    with pytest.raises(FormatError, match="the device state of the guest has 6 bytes, and 5 were"):
        state_target(part(8 * BLOCK_SIZE), memory, b"states", said)


@given(
    st.integers(1, 6),
    st.integers(0, 4),
    st.integers(0, 12),
    st.dictionaries(st.integers(0, 7), PAGE),
)
def test_changed_files_take_the_place_of_the_memory(
    disk: int, gap: int, memory: int, changed: dict[int, bytes]
) -> None:
    """A files overlay over a state is published behind its disk, where the memory was."""
    whole = b"".join(bytes([n + 1]) * BLOCK_SIZE for n in range(disk + memory))
    stack = Stack()
    stack.add(BytesTarget(whole), shape=SMALL)
    start = (disk + gap) * BLOCK_SIZE
    with TemporaryDirectory() as folder:
        image = stack.open()
        overlay = Overlay.create_temporary(
            Path(folder), image_id=image.image_id, image_size=8 * BLOCK_SIZE
        )
        with overlay:
            for block, content in changed.items():
                overlay.write(block * BLOCK_SIZE, [memoryview(content)])
            target = files_target(image, overlay, never_missing, start, size=disk * BLOCK_SIZE)
            stack.add(target, shape=SMALL)
    upper = b"".join(changed.get(block, bytes(BLOCK_SIZE)) for block in range(8))
    read = stack.read()
    assert read[: disk * BLOCK_SIZE] == whole[: disk * BLOCK_SIZE]
    assert read[start:] == upper
    if memory:
        assert read[disk * BLOCK_SIZE : start] == bytes(gap * BLOCK_SIZE)
