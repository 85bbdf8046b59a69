"""names.msgpack: the manifests that each name points to and pointed to (docs/formats/names.md).

Canonical msgpack: `{"format": 2, "names": [{"name", "manifest", "version", "link", "record"?,
"history": [{"version", "manifest", "torrent"}, ...]}, ...]}`. Format 1, without `record` and
`history`, is read. A name that cannot be read is skipped: its link restores it, and the other names
may be known nowhere else.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from p2pcloop.errors import FormatError, MismatchError, UsageError, storage_error
from p2pcloop.formats.link import MAX_LINK_LENGTH, Link, parse_link
from p2pcloop.formats.manifest import ID_SIZE, INFO_HASH_SIZE, ManifestRef
from p2pcloop.formats.name import Name, parse_name
from p2pcloop.formats.named import read_file
from p2pcloop.formats.packing import Fields, pack_canonical, unpack_canonical
from p2pcloop.formats.record import MAX_RECORD_SIZE, open_record
from p2pcloop.formats.signed import MAX_VERSION
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

FORMAT_VERSION = 2
MAX_NAMES = 1 << 16
MAX_NAMES_SIZE = 64 << 20
MAX_HISTORY = 4096
"""How many older versions of a name are remembered; the oldest are forgotten first."""

_NAME_LIMIT = 128

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NameRecord:
    """The newest manifest that is known here under one name, and the older ones.

    Attributes:
        version: the manifest's version number; it never goes back.
        link: to this version, with peers, mirrors and, of a private image, its secret.
        record: the signed name record of this version, as it is passed on; None if only a link
            led to it.
        history: (version, manifest) of older versions that were seen, in order.
    """

    version: int
    link: Link
    record: bytes | None = None
    history: tuple[tuple[int, ManifestRef], ...] = ()

    @property
    def name(self) -> Name:
        return self.link.name

    @property
    def manifest_id(self) -> bytes:
        return self.link.manifest_id

    @property
    def versions(self) -> dict[int, ManifestRef]:
        """Every version that was seen, this one included."""
        newest = ManifestRef(self.link.manifest_id, self.link.manifest_torrent)
        return {**dict(self.history), self.version: newest}


def pack_names(records: Iterable[NameRecord]) -> bytes:
    """Write the table."""
    return pack_canonical({"format": FORMAT_VERSION, "names": [_pack(each) for each in records]})


def read_names(path: Path) -> list[NameRecord]:
    """Read the table; without a file there are no names.

    Raises:
        FormatError: the file is damaged.
        StorageError: the system refused.
    """
    try:
        data = read_file(path)
    except FileNotFoundError:
        return []
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=path), err) from err
    try:
        fields = Fields(unpack_canonical(data, "names.msgpack", MAX_NAMES_SIZE), "names.msgpack")
        number = fields.integer("format", 1, FORMAT_VERSION)
        rows = fields.items("names", MAX_NAMES)
        fields.end()
    except FormatError as err:
        raise FormatError(
            tr("{path} is damaged: {err}", path=path, err=err),
            hint="move it away: images can be had again by their links",
        ) from err
    return list(_readable(path, rows, number))


def _pack(record: NameRecord) -> dict[str, object]:
    row: dict[str, object] = {
        "name": str(record.name),
        "manifest": record.manifest_id,
        "version": record.version,
        "link": str(record.link),
        "history": [
            {"version": version, "manifest": ref.id, "torrent": ref.torrent}
            for version, ref in record.history
        ],
    }
    return row if record.record is None else row | {"record": record.record}


def _readable(path: Path, rows: list[object], number: int) -> Iterator[NameRecord]:
    for at, row in enumerate(rows, 1):
        try:
            yield _read(row, number)
        except (FormatError, MismatchError, UsageError) as err:
            _log.warning("%s: name %d of %d is passed over: %s", path, at, len(rows), err)


def _read(row: object, number: int) -> NameRecord:
    fields = Fields(row, tr("a name in names.msgpack"))
    name = parse_name(fields.text("name", _NAME_LIMIT))
    manifest_id = fields.data("manifest", ID_SIZE)
    version = fields.integer("version", 1, MAX_VERSION)
    link = parse_link(fields.text("link", MAX_LINK_LENGTH))
    record = fields.blob("record", MAX_RECORD_SIZE) if "record" in fields else None
    history = fields.items("history", MAX_HISTORY) if number > 1 else []
    fields.end()
    if (link.name, link.manifest_id) != (name, manifest_id):
        raise FormatError(tr("the link of {name} is for something else", name=name))
    if record is not None:
        signed = open_record(record).record
        if (signed.name, signed.version, signed.manifest_id) != (name, version, manifest_id):
            raise FormatError(tr("the record of {name} is for something else", name=name))
    return NameRecord(version, link, record, tuple(_read_history(history, version)))


def _read_history(rows: list[object], newest: int) -> Iterator[tuple[int, ManifestRef]]:
    last = 0
    for row in rows:
        fields = Fields(row, tr("an older version in names.msgpack"))
        version = fields.integer("version", last + 1, newest - 1)
        ref = ManifestRef(fields.data("manifest", ID_SIZE), fields.data("torrent", INFO_HASH_SIZE))
        fields.end()
        yield version, ref
        last = version
