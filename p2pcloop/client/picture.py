"""The chunk map of an image, of what its home and p2pcloopd know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.open_stored import Source
from p2pcloop.client.profiles import Subject
from p2pcloop.client.progress import waiting_for
from p2pcloop.client.refs import read_ref, resolve_ref, words_of_the_user
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.whole import find_whole
from p2pcloop.errors import NotHereError
from p2pcloop.formats.profile import Touch, unpack_touches
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.picture.chunk_map import ChunkMap, make_map
from p2pcloop.picture.known import look_at_torrents, own_torrents, unknown
from p2pcloop.picture.layout import Layout, lay_out
from p2pcloop.store.home import Home
from p2pcloop.words import tr

_KEPT = 4
"""Layouts that are kept: some megabytes each, 30 at most (`MAX_PIECES` of `layout`)."""


@dataclass(frozen=True, slots=True)
class Pictured:
    """The map of an image.

    Attributes:
        name: of the image, or the path of its file.
        version: None for a file.
        chunk_map: of its device.
    """

    name: str
    version: int | None
    chunk_map: ChunkMap


class Pictures:
    """Makes maps of the images of a home. The layouts of those that it made last are kept."""

    def __init__(self, home: Home) -> None:
        self._home = home
        self._layouts: dict[bytes, Layout] = {}

    def picture(self, ref: str, *, at: int = 0, quiet: bool = True, fetch: bool = True) -> Pictured:
        """Make the map of the image that a REF stands for.

        An image that is known here needs no p2pcloopd, if the maps of its layers are here.

        Args:
            at: the version that is wanted, as for `resolve_ref`.
            quiet: show no progress.
            fetch: look for an image that is not known, and fetch maps that are not here, as long
                as it takes.

        Raises:
            NotHereError: it is not known, or the maps of its layers are not here, and `fetch` is
                False.
            P2pcloopError: as for `resolve_ref`; the maps cannot be fetched.
        """
        home = self._home
        with ExitStack() as stack:
            with words_of_the_user():
                asked = read_ref(ref, home)
            known = None if isinstance(asked, Path) else find_whole(asked, home, at, in_part=True)
            if known is None and not fetch:
                _refuse(ref)
            target = known or resolve_ref(ref, home, at=at)
            subject = Subject.open(target, home, stack, quiet=quiet)
            touches = _touches(subject, home)
            layout = self._layouts.get(subject.image_id)
            if layout is None:
                fetched = partial(_fetched, ref, home, at) if fetch else partial(_refuse, ref)
                with waiting_for("the map of the image"):
                    opened = _open(subject, home, stack, fetched)
                    layout = self._keep(subject.image_id, lay_out(opened))
            if subject.ref is None:
                return Pictured(subject.what, None, make_map(layout, {}, touches))
            manifest = subject.ref.signed.manifest
            ask = _asker(home, stack)
            torrents = look_at_torrents(home, manifest, ask, own_torrents(home, manifest))
            return Pictured(subject.what, manifest.version, make_map(layout, torrents, touches))

    def _keep(self, image_id: bytes, layout: Layout) -> Layout:
        """Keep a layout that will not change, since all of its chunk table was here."""
        if all(part.known for part in layout.parts):
            self._layouts[image_id] = layout
            for oldest in list(self._layouts)[:-_KEPT]:
                self._layouts.pop(oldest, None)  # another thread may have
        return layout


def _touches(subject: Subject, home: Home) -> Sequence[Touch]:
    """The touches of the profile that fits an image best; none where no profile is known."""
    try:
        return unpack_touches(subject.find(home).profile.touches)
    except NotHereError:
        return ()


def _open(
    subject: Subject, home: Home, stack: ExitStack, fetched: Callable[[], MergedImage]
) -> MergedImage:
    """Open the image; `fetched` does where its headers or maps are not here."""
    if subject.local is not None:
        return subject.local
    with suppress(Missing):
        return subject.open_here(home, stack)
    image = fetched()
    stack.callback(image.close)
    return image


def _fetched(ref: str, home: Home, at: int) -> MergedImage:
    """Open an image whose headers and maps p2pcloopd fetches."""
    target = resolve_ref(ref, home, at=at)
    assert isinstance(target, StoredRef), "it was no file before"
    with target.client:
        return Source(target, home).open()


def _refuse(ref: str) -> NoReturn:
    raise NotHereError(
        tr("the block map of {ref} is not here yet", ref=ref),
        hint="boot it or fetch it: that brings its map",
    )


def _asker(home: Home, stack: ExitStack) -> Callable[[bytes], dict[str, Any] | None]:
    """What asks the p2pcloopd of a home about pieces, if one runs."""
    try:
        client = stack.enter_context(ControlClient.connect(home))
    except NotRunningError:
        return unknown

    def ask(torrent: bytes) -> dict[str, Any] | None:
        try:
            return client.call("pieces", torrent=torrent)
        except NotHereError:
            return None

    return ask
