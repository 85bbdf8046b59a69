"""The older versions of an image, of which one may have exactly the content of a file.

Such a file is not published as the next version by mistake (same_file.py).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from itertools import chain, islice

from p2pcloop.client.delta import no_peer
from p2pcloop.client.invocation import running_command
from p2pcloop.client.progress import waiting_for
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.same_file import versions_of
from p2pcloop.client.whole import is_all_here
from p2pcloop.formats.manifest import Manifest, SignedManifest
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.stored import StoredImage
from p2pcloop.making.changes import Base, Changes, Stretch, Target, find_changes, stretches_of
from p2pcloop.store.lease import Lease

_STEP = 256
"""Blocks that are compared at once."""

_PART = 1 << 14
"""Blocks after which a comparison of all content ends, if they differ."""

MOST_OPENED = 100
"""How many versions are opened, the newest ones: each costs the merging of its maps."""


@dataclass(frozen=True, slots=True)
class OlderVersions:
    """The versions before the newest one that are all here.

    Attributes:
        publisher: of their name.
        target: the file's device; all of it may differ from an image.
        length: see `Content.length`.
    """

    publisher: Publisher
    target: Target
    length: int

    def with_content(self, changes: Changes, below: Manifest | None) -> Manifest | None:
        """Return one of them that reads as the target does, or None; None, too, if the newest
        version does.

        Args:
            changes: the target's from `below`. A version that differs in these already is not
                compared any further, so this costs little where the target is new.
            below: of whichever name; None for no image.

        Raises:
            P2pcloopError: the target cannot be read, or a version is damaged.
        """
        newest = self.publisher.newest
        if newest is None:
            return None
        compared = None if below is None else below.image_id
        if not changes:  # the target is as `below`, as far as it goes
            same = (each for each in self._candidates() if each.manifest.image_id == compared)
            if (first := next(same, None)) is not None:
                return None if first.id == newest.signed.id else first.manifest
        others = (
            each
            for each in self._candidates()
            if each.id != newest.signed.id
            and each.manifest.image_id != compared
            and is_all_here(each, self.publisher.home)
        )
        for signed in islice(others, MOST_OPENED):
            if self._has_content(signed, newest.secret, changes):
                return signed.manifest
        return None

    def _candidates(self) -> Iterator[SignedManifest]:
        """The newest version and those before it, without those of another size or length."""
        assert self.publisher.newest is not None
        for signed in versions_of(self.publisher.home, self.publisher.newest.signed):
            manifest = signed.manifest
            fits = (manifest.size, manifest.length) == (self.target.size, self.length)
            if fits and manifest.layers and manifest.machine is None:
                yield signed

    def _has_content(self, signed: SignedManifest, secret: bytes | None, changes: Changes) -> bool:
        """Whether a version reads as the target does, by what is here alone: no peer is asked."""
        home = self.publisher.home
        with ExitStack() as stack:
            stack.enter_context(Lease(home, signed.id, running_command()))
            stored = StoredImage(signed.manifest, home.torrents, secret)
            stack.callback(stored.close)
            try:
                image = stored.open(spill=home.tmp)
            except Missing:
                return False  # it is damaged, or was evicted just now
            stack.callback(image.close)
            return self._reads_as(image, changes)

    def _reads_as(self, image: MergedImage, changes: Changes) -> bool:
        base = Base(image, no_peer)
        for first, count in chain(stretches_of(changes.data), stretches_of(changes.zeros)):
            for block in range(first, first + count, _STEP):
                step = min(_STEP, first + count - block)
                if base.read(block, step, ask=False) != memoryview(self.target.read(block, step)):
                    return False
        with waiting_for("a comparison with an older version"):
            return not any(
                find_changes(
                    _Part(self.target, block, min(_PART, first + count - block)), base, _no_progress
                )
                for first, count in self.target.stretches()
                for block in range(first, first + count, _PART)
            )


@dataclass(frozen=True, slots=True)
class _Part:
    """A target in which only some blocks may differ."""

    target: Target
    first: int
    count: int

    @property
    def size(self) -> int:
        return self.target.size

    def stretches(self) -> Iterable[Stretch]:
        return [(self.first, self.count)]

    def next_data(self, block: int) -> int:
        return self.target.next_data(block)

    def read(self, block: int, count: int) -> bytes:
        return self.target.read(block, count)


def _no_progress(_done: int) -> None:
    """A line says what it waits for."""
