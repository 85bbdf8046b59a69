"""The version that an overlay lies on, as far as it is known here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from p2pcloop.errors import MismatchError, NotHereError
from p2pcloop.formats.name import Name
from p2pcloop.formats.overlay import Overlay, OverlayInfo
from p2pcloop.frozen import dataclass
from p2pcloop.store.guest_record import GuestRecord
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloop.words import tr


@dataclass(frozen=True, slots=True)
class OverlayBase:
    """A version over which an overlay opens.

    Attributes:
        name: of the image that the overlay was made on.
        version: the newest known one, if that has the same layers; else the one that the overlay
            was made on.
        is_newest: whether it is the newest known one, so that it need not be asked for by `--at`.
    """

    name: Name
    version: int
    is_newest: bool


def base_of(info: OverlayInfo, home: Home) -> OverlayBase | None:
    """Find the version that an overlay lies on; None if it names none that is known here.

    Raises:
        StorageError: the system refused.
    """
    if info.manifest_id is None:
        return None
    records = Records(home)
    try:
        made_on = records.manifest(info.manifest_id).manifest
        newest = records.manifest(records.name(made_on.name).manifest_id).manifest
    except NotHereError:
        return None
    if newest.image_id == info.image_id and not newest.withdrawn:
        return OverlayBase(newest.name, newest.version, is_newest=True)
    return OverlayBase(made_on.name, made_on.version, is_newest=False)


def version_of_guest(record: GuestRecord, home: Home) -> int | None:
    """The version that a guest with an overlay has to be booted with once more.

    That is the one that it ran, unless its overlay was moved to another one since (`rebase`).

    Returns:
        None for an image that is a file, and for a guest without an overlay, which may begin with
        any version.

    Raises:
        P2pcloopError: its overlay cannot be read.
    """
    if record.overlay is None or record.version is None:
        return None
    info = Overlay.inspect(Path(record.overlay))
    base = base_of(info, home)
    if base is None or str(base.name) != record.image:
        return record.version
    records = Records(home)
    try:
        ran = records.name(base.name).versions[record.version]
        if records.manifest(ran.id).manifest.image_id == info.image_id:
            return record.version
    except (KeyError, NotHereError):
        pass  # it was removed from here
    return base.version


def open_overlay_on(
    path: Path,
    home: Home,
    *,
    image_id: bytes,
    read_only: bool = False,
    mode: str | None = "block",
    hint: str | None = None,
) -> Overlay:
    """Open an overlay over an image, as `Overlay.open` does.

    Args:
        home: where the version that it was made on may be known.
        hint: what to do about another image that is known; None for the version to take, and to
            one who writes, for a new overlay, too.

    Raises:
        MismatchError: it was made on another image, whose version is named if it is known; or it
            is of the other mode.
        P2pcloopError: as for `Overlay.open`.
    """
    try:
        return Overlay.open(path, image_id=image_id, read_only=read_only, mode=mode)
    except MismatchError as err:
        info = Overlay.inspect(path)
        base = base_of(info, home)
        if base is None or info.image_id == image_id or mode not in (None, info.mode):
            raise
        facts = {"name": base.name, "version": base.version}
        raise MismatchError(
            tr("{path} was made on another image: {name}, version {version}", path=path, **facts),
            hint=hint or _hint(facts, read_only=read_only),
        ) from err


def _hint(facts: dict[str, Any], *, read_only: bool) -> str:
    if read_only:
        return tr("use it with that one: {name} --at {version}", **facts)
    return tr(
        "use it with that one ({name} --at {version}), or give another file name to start anew",
        **facts,
    )
