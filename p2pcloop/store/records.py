"""Signed manifests, and the one that each name points to.

`manifests/<sha256 hex>` holds a signed manifest as received; the file's name is the manifest's id.
`names.msgpack` is a table of names (store/name_table.py). Both are replaced whole and synced, and
checked whole when they are read.

A name never goes back: a version older than one that was seen is refused. Two manifests with one
version number are a fork: a publisher signs each version once, so one of the two is a mistake, and
only the publisher knows which.
"""

from __future__ import annotations

from dataclasses import replace

from p2pcloop.errors import MismatchError, NotHereError, UsageError, storage_error
from p2pcloop.formats.link import Link
from p2pcloop.formats.manifest import ManifestRef, SignedManifest, open_manifest
from p2pcloop.formats.name import Name
from p2pcloop.formats.named import read_file
from p2pcloop.formats.record import SignedRecord
from p2pcloop.store.home import Home, replace_file
from p2pcloop.store.name_table import (
    MAX_HISTORY,
    MAX_NAMES,
    MAX_NAMES_SIZE,
    NameRecord,
    pack_names,
    read_names,
)
from p2pcloop.words import tr


class Records:
    """The manifests and names of one home. Only the holder of the home's lock may write."""

    def __init__(self, home: Home) -> None:
        """Read the names.

        Raises:
            FormatError: names.msgpack is damaged.
            StorageError: the system refused.
        """
        self._home = home
        self._names = {record.name: record for record in read_names(home.names)}
        self._ordered: tuple[dict[Name, NameRecord], list[NameRecord]] = ({}, [])

    def manifest(self, manifest_id: bytes) -> SignedManifest:
        """Read a manifest that was kept.

        Raises:
            NotHereError: there is none of this id.
            FormatError, MismatchError: the file is damaged.
        """
        path = self._home.manifests / manifest_id.hex()
        try:
            data = read_file(path)
        except FileNotFoundError as err:
            raise NotHereError(
                tr("no manifest {manifest_id} is known here", manifest_id=manifest_id.hex())
            ) from err
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=path), err) from err
        signed = open_manifest(data)
        if signed.id != manifest_id:
            raise MismatchError(
                tr("{path} holds another manifest", path=path), hint=tr("delete {path}", path=path)
            )
        return signed

    def has_manifest(self, manifest_id: bytes) -> bool:
        """Whether a manifest was kept; it is not read for that."""
        return (self._home.manifests / manifest_id.hex()).exists()

    def find(self, name: Name) -> NameRecord | None:
        """The entry of a name, or None."""
        return self._names.get(name)

    def name(self, name: Name) -> NameRecord:
        """The entry of a name.

        Raises:
            NotHereError: there is none.
        """
        known = self.find(name)
        if known is None:
            raise NotHereError(
                tr("{name} is not known here", name=name), hint="use the link of the image once"
            )
        return known

    def names(self) -> list[NameRecord]:
        """All names that are known here, in order."""
        names, ordered = self._ordered
        if names is not self._names:  # it is replaced whole, and names are long to write
            ordered = sorted(self._names.values(), key=lambda record: str(record.name))
            self._ordered = self._names, ordered
        return list(ordered)

    def check_version(
        self, name: Name, version: int, manifest_id: bytes, *, old: bool = False
    ) -> None:
        """Refuse a version that a name must not have.

        Args:
            old: the user asked for an older version, by its number.

        Raises:
            MismatchError: an older version than one that was seen, or a fork.
        """
        known = self.find(name)
        if known is None:
            return
        seen = known.versions.get(version)
        if seen is not None and seen.id != manifest_id:
            raise fork_error(name, version, seen.id, manifest_id)
        if version < known.version and not old:
            raise MismatchError(
                tr(
                    "this is version {version} of {name}, and version {version2} was seen already:"
                    " a name never goes back",
                    version=version,
                    name=name,
                    version2=known.version,
                ),
                hint=tr(
                    "take the newest by its name, or say that you want this one: --at {version}",
                    version=version,
                ),
            )

    def check(
        self,
        signed: SignedManifest,
        link: Link,
        record: SignedRecord | None = None,
        *,
        old: bool = False,
    ) -> None:
        """Refuse what `keep` would refuse.

        Raises:
            MismatchError: the link or the record is for another manifest or name, or as of
                `check_version`.
        """
        if (link.manifest_id, link.name) != (signed.id, signed.manifest.name):
            raise MismatchError(
                tr("the link of {link} is for another manifest than it brought", link=link.name)
            )
        if record is not None:
            _check_record(record, signed, link)
        self.check_version(link.name, signed.manifest.version, signed.id, old=old)

    def keep(
        self,
        signed: SignedManifest,
        link: Link,
        *,
        record: SignedRecord | None = None,
        old: bool = False,
    ) -> NameRecord:
        """Keep a manifest; let its name point to it, or put it into the name's history.

        A link that has no secret does not take a private image's away.

        Args:
            link: to the manifest.
            record: of the manifest, if there is one.
            old: as of `check_version`.

        Returns:
            The new entry of the name.

        Raises:
            MismatchError: as of `check`; nothing was changed.
            UsageError: there are too many names; nothing was changed.
            StorageError: the system refused; the old state is still there.
        """
        self.check(signed, link, record, old=old)
        manifest = signed.manifest
        known = self.find(link.name)
        if not manifest.private:
            link = link.public()
        elif known is not None:
            link = replace(link, secret=link.secret or known.link.secret)
        # A link that is too long to be read again would be lost, with its secret and its history.
        new = _updated(known, manifest.version, link.fitted(), record)
        names = self._names | {link.name: new}
        data = pack_names(names.values()) if new != known else b""
        if len(names) > MAX_NAMES or len(data) > MAX_NAMES_SIZE:
            raise UsageError(
                tr(
                    "no room for the name {link}: {names_count} are known",
                    link=link.name,
                    names_count=len(self._names),
                ),
                hint=tr(
                    "move {names} away: images can be had again by their links",
                    names=self._home.names,
                ),
            )
        self._keep_manifest(signed)
        if new != known:
            replace_file(self._home.names, data)
            self._names = names
        return new

    def forget(self, name: Name, ids: set[bytes]) -> None:
        """Forget versions of a name; it then points to the newest that is left, if any.

        Raises:
            StorageError: the system refused; the old state is still there.
        """
        known = self.name(name)
        names = {key: each for key, each in self._names.items() if key != name}
        gone = {ref for ref in known.versions.values() if ref.id in ids}
        left = {version: ref for version, ref in known.versions.items() if ref.id not in ids}
        if known.version in left:
            names[name] = replace(known, history=_history(left)[:-1])
        elif left:
            version, ref = max(left.items())
            assert ref.torrent is not None, "told by a link"
            link = replace(
                known.link, manifest_id=ref.id, manifest_torrent=ref.torrent, pack_torrent=None
            )
            names[name] = NameRecord(version, link, history=_history(left)[:-1])
        replace_file(self._home.names, pack_names(names.values()))
        self._names = names
        for ref in gone:
            try:
                (self._home.manifests / ref.id.hex()).unlink(missing_ok=True)
            except OSError as err:
                raise storage_error(
                    tr("cannot delete the manifest {id}", id=ref.id.hex()), err
                ) from err

    def _keep_manifest(self, signed: SignedManifest) -> None:
        path = self._home.manifests / signed.id.hex()
        try:
            if read_file(path) == signed.data:
                return
        except FileNotFoundError:
            pass
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=path), err) from err
        replace_file(path, signed.data)


def fork_error(name: Name, version: int, one: bytes, other: bytes) -> MismatchError:
    """The error for two manifests with one version number."""
    return MismatchError(
        tr(
            "fork: two manifests are signed as version {version} of {name}: {one} and {other}",
            version=version,
            name=name,
            one=one.hex(),
            other=other.hex(),
        ),
        hint="nothing was changed; ask the publisher, whose key may be in other hands, for a newer"
        " version",
    )


def _check_record(record: SignedRecord, signed: SignedManifest, link: Link) -> None:
    """Check that a record and a manifest belong together."""
    said, manifest = record.record, signed.manifest
    if (said.name, said.version, said.manifest_id, said.manifest_torrent) != (
        manifest.name,
        manifest.version,
        signed.id,
        link.manifest_torrent,
    ):
        raise MismatchError(
            tr(
                "the record of {said}, version {version}, leads to a manifest of {manifest},"
                " version {version2}",
                said=said.name,
                version=said.version,
                manifest=manifest.name,
                version2=manifest.version,
            ),
            hint="ask the publisher to publish it again",
        )


def _updated(
    known: NameRecord | None, version: int, link: Link, record: SignedRecord | None
) -> NameRecord:
    data = None if record is None else record.data
    if known is None:
        return NameRecord(version, link, data)
    if version < known.version:
        older = ManifestRef(link.manifest_id, link.manifest_torrent)
        return replace(known, history=_history({**dict(known.history), version: older}))
    if version == known.version:
        return replace(known, link=link, record=data or known.record)
    return NameRecord(version, link, data, _history(known.versions))


def _history(versions: dict[int, ManifestRef]) -> tuple[tuple[int, ManifestRef], ...]:
    return tuple(sorted(versions.items())[-MAX_HISTORY:])
