"""The device of a files overlay: it lies over an image of zeros."""

from __future__ import annotations

import os
from pathlib import Path

from p2pcloop.formats.index import build_index, open_index
from p2pcloop.formats.overlay import Overlay
from p2pcloop.image.content import LocalContent
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.layer import Layer
from p2pcloop.image.merged import MergedImage


def files_device(overlay: Overlay) -> ImageDevice:
    """Return the device of a files overlay: blocks that it does not hold read as zeros."""
    return ImageDevice(_zero_image(overlay.image_size), overlay)


def _zero_image(size: int) -> MergedImage:
    """Return an image of `size` bytes, a multiple of 4096, whose layer maps no block.

    All of it reads as zeros, and nothing is ever missing.
    """
    index = build_index([], [], image_size=size, pack_length=0)
    return MergedImage([Layer(LocalContent(Path(os.devnull), index), open_index(index))])
