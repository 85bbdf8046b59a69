"""What is left of an overlay that is in use when its process is killed.

An overlay's states are in memory until a flush, so a process that is killed loses those of writes
that its guest was told are done. Where the guest goes on, with a successor of that process, it must
find them. So they are in a file besides, which has no name and which an ancestor of both processes
holds open: what was written to it is there as long as the machine runs. What survives a crash of
the machine is as without it (docs/formats/overlay.md).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Self

from p2pcloop.formats.overlay_file import OverlayFile
from p2pcloop.formats.overlay_states import LOAD_SIZE, Run, State

_RUN = re.compile(rb"D+|Z+")


class Remains:
    """The states that were set, a byte for each block at its number, and room for content.

    Attributes:
        content: a file without a name, for an overlay that has none of its own.
    """

    def __init__(self, states: OverlayFile, content: OverlayFile) -> None:
        """To be made by `create`."""
        self.content = content
        self._states = states

    @classmethod
    def create(cls, folder: Path) -> Self:
        """Make both files, which no program uses yet.

        Args:
            folder: on the disk that they may use.

        Raises:
            StorageError: the folder cannot be written.
        """
        states, content = OverlayFile.create_hidden(folder), OverlayFile.create_hidden(folder)
        for file in (states, content):
            file.path.unlink()
        return cls(states, content)

    def is_of(self, blocks: int) -> bool:
        """Whether an overlay of so many blocks was left here."""
        return self._states.size == blocks + 1

    def begin(self, blocks: int, runs: Iterable[Run]) -> None:
        """Begin with an overlay that has these runs so far.

        Raises:
            StorageError: the disk refused, as for `note`.
        """
        self._states.reserve(0, allocated=0)
        for run in runs:
            self.note(*run)
        self._states.reserve(blocks + 1, allocated=0)  # last: it says that all of this is there

    def note(self, first: int, count: int, state: State) -> None:
        """Note the state of `count` blocks."""
        self._states.write(first, [bytes([state]) * count])

    def runs(self) -> Iterator[Run]:
        """The runs of blocks whose state was noted."""
        for start, end in self._states.stretches():
            for at in range(start, end, LOAD_SIZE):
                part = bytearray(min(LOAD_SIZE, end - at))
                self._states.read_into(at, [part])
                for found in _RUN.finditer(part):
                    state = State(part[found.start()])
                    yield at + found.start(), found.end() - found.start(), state
