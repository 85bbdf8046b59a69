"""The chunk map of an image, of what its home and p2pcloopd know."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.open_stored import Source
from p2pcloop.client.profiles import Subject
from p2pcloop.client.refs import read_ref, resolve_ref, words_of_the_user
from p2pcloop.client.whole import find_whole
from p2pcloop.errors import NotHereError
from p2pcloop.formats.profile import Touch, unpack_touches
from p2pcloop.frozen import dataclass
from p2pcloop.image.api import Missing
from p2pcloop.image.merged import MergedImage
from p2pcloop.picture.chunk_map import ChunkMap, make_map
from p2pcloop.picture.known import look_at_torrents, own_torrents, unknown
from p2pcloop.picture.layout import lay_out
from p2pcloop.store.home import Home


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


def picture(ref: str, home: Home, *, at: int = 0, quiet: bool) -> Pictured:
    """Make the map of the image that a REF stands for.

    An image that is known here needs no p2pcloopd, if the maps of its layers are here.

    Args:
        at: the version that is wanted, as for `resolve_ref`.
        quiet: show no progress.

    Raises:
        P2pcloopError: as for `resolve_ref`; the maps cannot be fetched.
    """
    with ExitStack() as stack:
        with words_of_the_user():
            asked = read_ref(ref, home)
        known = None if isinstance(asked, Path) else find_whole(asked, home, at, in_part=True)
        target = known or resolve_ref(ref, home, at=at)
        subject = Subject.open(target, home, stack, quiet=quiet)
        touches = _touches(subject, home)
        layout = lay_out(_open(subject, home, stack, ref, at))
        if subject.ref is None:
            return Pictured(subject.what, None, make_map(layout, {}, touches))
        manifest = subject.ref.signed.manifest
        ask = _asker(home, stack)
        torrents = look_at_torrents(home, manifest, ask, own_torrents(home, manifest))
        return Pictured(subject.what, manifest.version, make_map(layout, torrents, touches))


def _touches(subject: Subject, home: Home) -> Sequence[Touch]:
    """The touches of the profile that fits an image best; none where no profile is known."""
    try:
        return unpack_touches(subject.find(home).profile.touches)
    except NotHereError:
        return ()


def _open(subject: Subject, home: Home, stack: ExitStack, ref: str, at: int) -> MergedImage:
    """Open the image; p2pcloopd fetches headers and maps that are not here."""
    if subject.local is not None:
        return subject.local
    with suppress(Missing):
        return subject.open_here(home, stack)
    target = resolve_ref(ref, home, at=at)
    fetched = Subject.open(target, home, stack, quiet=True)
    assert fetched.ref is not None, "it was no file before"
    image = Source(fetched.ref, home).open()
    stack.callback(image.close)
    return image


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
