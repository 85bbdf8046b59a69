"""The version that an overlay lies on, as far as it is known here."""

from __future__ import annotations

from p2pcloop.errors import NotHereError
from p2pcloop.formats.name import Name
from p2pcloop.formats.overlay import OverlayInfo
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records


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
