"""What a node knows by name: signed manifests, and which of them a name points to.

`manifests/<sha256 hex>` holds a signed manifest as it came; the file's name is the manifest's id.
`names.msgpack` is canonical msgpack: `{"format": 1, "names": [{"name", "manifest", "version",
"link"}, ...]}`. Both are replaced whole and synced, and checked whole when they are read. A name
that cannot be read is passed over: it can be had again by its link, the others may be all there is.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from p2pcloop.errors import FormatError, MismatchError, NotHereError, UsageError, storage_error
from p2pcloop.formats.link import MAX_LINK_LENGTH, Link, parse_link
from p2pcloop.formats.manifest import ID_SIZE, SignedManifest, open_manifest
from p2pcloop.formats.name import Name, parse_name
from p2pcloop.formats.packing import Fields, pack_canonical, unpack_canonical
from p2pcloop.store.home import Home, replace_file

FORMAT_VERSION = 1
MAX_NAMES = 1 << 16
MAX_NAMES_SIZE = 64 << 20
_NAME_LIMIT = 128

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class NameRecord:
    """The newest manifest that is known here under one name.

    Attributes:
        version: the manifest's version number; it never goes back.
        link: the link that brought it, with its peers.
    """

    version: int
    link: Link

    @property
    def name(self) -> Name:
        return self.link.name

    @property
    def manifest_id(self) -> bytes:
        return self.link.manifest_id


class Records:
    """The manifests and names of one home. Only the holder of the home's lock may keep any."""

    def __init__(self, home: Home) -> None:
        """Read the names.

        Raises:
            FormatError: names.msgpack is damaged.
            StorageError: the system refused.
        """
        self._home = home
        self._names = {record.name: record for record in _read_names(home)}

    def manifest(self, manifest_id: bytes) -> SignedManifest:
        """Read a manifest that was kept.

        Raises:
            NotHereError: none of this id was.
            FormatError, MismatchError: the file is damaged.
        """
        path = self._home.manifests / manifest_id.hex()
        try:
            data = path.read_bytes()
        except FileNotFoundError as err:
            raise NotHereError(f"no manifest {manifest_id.hex()} is known here") from err
        except OSError as err:
            raise storage_error(f"cannot read {path}", err) from err
        signed = open_manifest(data)
        if signed.id != manifest_id:
            raise MismatchError(f"{path} holds another manifest", hint=f"delete {path}")
        return signed

    def name(self, name: Name) -> NameRecord:
        """What is known under a name.

        Raises:
            NotHereError: nothing is.
        """
        try:
            return self._names[name]
        except KeyError as err:
            raise NotHereError(
                f"{name} is not known here", hint="use the link of the image once"
            ) from err

    def names(self) -> list[NameRecord]:
        """All names that are known here, in order."""
        return sorted(self._names.values(), key=lambda record: str(record.name))

    def keep(self, signed: SignedManifest, link: Link) -> NameRecord:
        """Keep a manifest; let its name point to it, unless the name points to a newer one.

        Returns what the name points to now. Of two manifests of one version number the one that
        was known first stays.

        Raises:
            MismatchError: the link is for another manifest or name.
            UsageError: there are as many names as may be; what was kept before stays.
            StorageError: the system refused; what was kept before is still there.
        """
        if (link.manifest_id, link.name) != (signed.id, signed.manifest.name):
            raise MismatchError(f"the link of {link.name} is for another manifest than it brought")
        self._keep_manifest(signed)
        known = self._names.get(link.name)
        record = NameRecord(signed.manifest.version, link)
        if known is not None and known.manifest_id != signed.id and known.version >= record.version:
            return known
        if record != known:
            names = self._names | {link.name: record}
            data = _pack_names(names.values())
            if len(names) > MAX_NAMES or len(data) > MAX_NAMES_SIZE:
                raise UsageError(
                    f"no room for the name {link.name}: {len(self._names)} are known",
                    hint=f"move {self._home.names} away: images can be had again by their links",
                )
            replace_file(self._home.names, data)
            self._names = names
        return record

    def _keep_manifest(self, signed: SignedManifest) -> None:
        path = self._home.manifests / signed.id.hex()
        try:
            if path.read_bytes() == signed.data:
                return
        except FileNotFoundError:
            pass
        except OSError as err:
            raise storage_error(f"cannot read {path}", err) from err
        replace_file(path, signed.data)


def _pack_names(records: Iterable[NameRecord]) -> bytes:
    rows = [
        {
            "name": str(record.name),
            "manifest": record.manifest_id,
            "version": record.version,
            "link": str(record.link),
        }
        for record in records
    ]
    return pack_canonical({"format": FORMAT_VERSION, "names": rows})


def _read_names(home: Home) -> list[NameRecord]:
    try:
        data = home.names.read_bytes()
    except FileNotFoundError:
        return []
    except OSError as err:
        raise storage_error(f"cannot read {home.names}", err) from err
    try:
        fields = Fields(unpack_canonical(data, "names.msgpack", MAX_NAMES_SIZE), "names.msgpack")
        fields.integer("format", FORMAT_VERSION, FORMAT_VERSION)
        rows = fields.items("names", MAX_NAMES)
        fields.end()
    except FormatError as err:
        raise FormatError(
            f"{home.names} is damaged: {err}",
            hint="move it away: images can be had again by their links",
        ) from err
    return list(_readable(home, rows))


def _readable(home: Home, rows: list[object]) -> Iterator[NameRecord]:
    for number, row in enumerate(rows, 1):
        try:
            yield _read_name(row)
        except (FormatError, UsageError) as err:
            _log.warning("%s: name %d of %d is passed over: %s", home.names, number, len(rows), err)


def _read_name(row: object) -> NameRecord:
    fields = Fields(row, "a name in names.msgpack")
    name = parse_name(fields.text("name", _NAME_LIMIT))
    manifest_id = fields.data("manifest", ID_SIZE)
    version = fields.integer("version", 1, 1 << 53)
    link = parse_link(fields.text("link", MAX_LINK_LENGTH))
    fields.end()
    if (link.name, link.manifest_id) != (name, manifest_id):
        raise FormatError(f"the link of {name} is for something else")
    return NameRecord(version, link)
