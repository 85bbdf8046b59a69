"""Pages of a kernel that never ran, and states whose memory has pages like them."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence

from p2pcloop.formats.chunk_table import Chunk
from p2pcloop.formats.profile import LATER, Touch
from p2pcloop.image.api import ByteRange, Missing
from tests.support.images import MemoryContent
from tests.support.stacks import Stack

FIRST_PAGE, KERNEL_PAGES = 100, 150

TOUCHES = [
    Touch(290, 3, 0),
    Touch(120, 2, 0),
    Touch(5, 60, 1),
    Touch(100, 140, 1),
    Touch(200, 60, LATER + 1),
]


def block(kind: int) -> bytes:
    """Content that tells its kind; 0 is zeros."""
    return bytes(4096) if kind == 0 else random.Random(kind).randbytes(64) * 64


def page_of(build: int) -> Callable[[int], bytes | None]:
    """The pages of a build of a kernel, which lie from block `FIRST_PAGE` on."""

    def page(block: int) -> bytes | None:
        number = block - FIRST_PAGE
        if not 0 <= number < KERNEL_PAGES or number % 50 == 7:  # one that has no page there
            return None
        return random.Random(f"{build} {number}").randbytes(4096)

    return page


def state_of(build: int) -> bytes:
    """A device, with a kernel that has changed a byte in most of its pages."""
    blocks = [block(number % 9) for number in range(300)]
    for number in range(FIRST_PAGE, FIRST_PAGE + KERNEL_PAGES):
        page = page_of(build)(number)
        if page is not None and number % 5:
            blocks[number] = page[:2000] + bytes([number % 10]) + page[2001:]
        elif page is not None and number % 10:
            blocks[number] = page
    return b"".join(blocks)


def without_dictionary(stack: Stack, chunks: Sequence[Chunk]) -> Stack:
    """The same stack on a machine that has not fetched the dictionary."""
    header, content, seal = stack.layers[-1]
    end = header.index_length + chunks[0].offset

    class Partly(MemoryContent):
        def read(self, offset: int, length: int) -> bytes:
            if missing := self.missing(offset, length):
                raise Missing([missing])
            return super().read(offset, length)

        def missing(self, offset: int, length: int) -> ByteRange | None:
            behind = offset >= end or offset + length <= header.index_length
            return None if behind else ByteRange(bytes(20), offset, length)

    return Stack([*stack.layers[:-1], (header, Partly(bytes(content.data)), seal)])
