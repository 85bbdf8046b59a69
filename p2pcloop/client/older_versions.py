"""The older versions of an image, of which one may have exactly the content of a file.

Such a file is not published as the next version by mistake (same_file.py).
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import replace
from itertools import chain

from p2pcloop.client.open_stored import open_stored
from p2pcloop.client.progress import waiting_for
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.same_file import versions_of
from p2pcloop.client.whole import is_all_here
from p2pcloop.formats.manifest import Manifest, SignedManifest
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.changes import Base, Changes, Target, find_changes, stretches_of

_STEP = 256
"""Blocks that are compared at once."""


@dataclass(frozen=True, slots=True)
class OlderVersions:
    """The versions before the newest one that are all here.

    Attributes:
        publisher: of their name.
        target: the file's device; all of it may differ from an image.
    """

    publisher: Publisher
    target: Target

    def with_content(self, changes: Changes) -> Manifest | None:
        """Return the newest of them that reads as the target does, or None.

        Args:
            changes: the target's from another version. A version that differs in these already is
                not compared any further, so this costs little where the target is new.

        Raises:
            P2pcloopError: the target cannot be read, or a version is damaged.
        """
        newest = self.publisher.newest
        if newest is None:
            return None
        for signed in self._candidates(newest.signed):
            with ExitStack() as stack:
                ref = replace(newest, signed=signed)
                image = open_stored(ref, self.publisher.home, stack).image
                if self._reads_as(image, changes):
                    return signed.manifest
        return None

    def _candidates(self, newest: SignedManifest) -> Iterator[SignedManifest]:
        home = self.publisher.home
        for signed in versions_of(home, newest):
            manifest = signed.manifest
            fits = manifest.size == self.target.size and manifest.machine is None
            if signed.id != newest.id and fits and manifest.layers and is_all_here(signed, home):
                yield signed

    def _reads_as(self, image: MergedImage, changes: Changes) -> bool:
        base = Base(image, _refuse)
        for first, count in chain(stretches_of(changes.data), stretches_of(changes.zeros)):
            for block in range(first, first + count, _STEP):
                step = min(_STEP, first + count - block)
                if base.read(block, step, ask=False) != memoryview(self.target.read(block, step)):
                    return False
        with waiting_for("a comparison with an older version"):
            return not find_changes(self.target, base, _no_progress)


def _refuse(_missing: Missing) -> bool:
    return False


def _no_progress(_done: int) -> None:
    """A line says what it waits for."""
