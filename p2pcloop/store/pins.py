"""Pinned images: they are never evicted.

`pins.msgpack` is canonical msgpack: `{"format": 1, "pins": [{"manifest": bytes, "name": text},
...]}`, in the order in which they were pinned. It is replaced whole and synced.
"""

from __future__ import annotations

from p2pcloop.errors import FormatError, UsageError, storage_error
from p2pcloop.formats.manifest import ID_SIZE
from p2pcloop.formats.named import read_file
from p2pcloop.formats.packing import Fields, pack_canonical, unpack_canonical
from p2pcloop.store.home import Home, replace_file
from p2pcloop.words import tr

_FORMAT = 1
_NAME_LIMIT = 128
MAX_PINS = 1 << 14
_MAX_SIZE = 4 << 20


def load_pins(home: Home) -> dict[bytes, str]:
    """The ids of the pinned manifests, each with its name when it was pinned.

    Raises:
        FormatError: pins.msgpack is damaged.
        StorageError: the system refused.
    """
    try:
        data = read_file(home.pins)
    except FileNotFoundError:
        return {}
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=home.pins), err) from err
    try:
        fields = Fields(unpack_canonical(data, "pins.msgpack", _MAX_SIZE), "pins.msgpack")
        fields.integer("format", _FORMAT, _FORMAT)
        rows = [Fields(row, "a pin") for row in fields.items("pins", MAX_PINS)]
        pins = {row.data("manifest", ID_SIZE): row.text("name", _NAME_LIMIT) for row in rows}
        for each in (fields, *rows):
            each.end()
    except FormatError as err:
        hint = tr("move it away and pin again what is to stay")
        raise FormatError(
            tr("{pins} is damaged: {err}", pins=home.pins, err=err), hint=hint
        ) from err
    return pins


def save_pins(home: Home, pins: dict[bytes, str]) -> None:
    """Keep the pins, durably. For the holder of the home's lock only.

    Raises:
        UsageError: there are too many.
        StorageError: the system refused; the old pins are still there.
    """
    if len(pins) > MAX_PINS:
        raise UsageError(tr("more than {max_pins} images cannot be pinned", max_pins=MAX_PINS))
    rows = [{"manifest": manifest, "name": name} for manifest, name in pins.items()]
    replace_file(home.pins, pack_canonical({"format": _FORMAT, "pins": rows}))
