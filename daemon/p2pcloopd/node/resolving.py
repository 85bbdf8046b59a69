"""Resolving: from a link, or a name and where to ask for it, to a manifest that may be believed.

Every check comes before the manifest is kept: the signature, a version that goes back, a fork, the
secret of another image. So a manifest that is refused changes nothing of what this node knows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from typing import TypeVar

import trio

from p2pcloop.errors import FormatError, MismatchError, NotHereError, P2pcloopError
from p2pcloop.formats.lineage import check_previous
from p2pcloop.formats.link import MAX_PEERS, Link, is_link, parse_link
from p2pcloop.formats.manifest import Manifest, ManifestRef, SignedManifest
from p2pcloop.formats.place import Place, is_url, parse_place
from p2pcloop.formats.record import SignedRecord
from p2pcloop.formats.seal import check_secret
from p2pcloop.frozen import dataclass
from p2pcloop.store.name_table import NameRecord
from p2pcloop.store.records import fork_error
from p2pcloop.words import tr
from p2pcloopd.control_server import Call
from p2pcloopd.entry import plain_errors
from p2pcloopd.names.lookup import HISTORY_SECONDS, LookedUp, MirrorSource, RecordSource, look_up
from p2pcloopd.node.directories import use_directory
from p2pcloopd.node.manifests import get_manifest, serve_manifest
from p2pcloopd.node.node import Node

Item = TypeVar("Item")

MAX_STEPS = 4096
"""How many manifests are followed back to find an older version."""

MAX_MIRRORS = 16
"""How many mirrors of a name are remembered."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a REF names; it need not exist.

    Attributes:
        place: a name, and where its record lies if the REF says so.
        link: the link, if the REF is one.
    """

    place: Place
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class Lead:
    """What leads to a version of an image.

    Attributes:
        link: names its manifest, and where the image may be had.
        record: the signed record that named the manifest; None where only a link did.
        mirrors: bases of mirrors that have it, directories included, besides those of the link.
    """

    link: Link
    record: SignedRecord | None = None
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Found:
    """A version of an image, with what led to it.

    Attributes:
        signed: its manifest.
        lead: to this version.
    """

    signed: SignedManifest
    lead: Lead


def parse_target(ref: str) -> Target:
    """Read a REF: a link, or a name with or without a base. A directory must be absolute.

    Raises:
        FormatError, UsageError: it is none of them.
    """
    if is_link(ref):
        link = parse_link(ref)
        return Target(Place(link.name), link)
    place = parse_place(ref)
    if place.base and not is_url(place.base) and not place.base.startswith("/"):
        raise FormatError(tr("the directory {base!r} is not absolute", base=place.base))
    return Target(place)


class VersionFinder:
    """Finds versions of images for one call over the control socket, which is told of progress."""

    def __init__(self, node: Node, call: Call) -> None:
        self._node = node
        self._call = call

    async def find(self, target: Target, *, at: int = 0, look: bool = False) -> Found:
        """Find a version of an image and keep it under its name.

        Args:
            at: the version that is wanted; 0 for that of a link, or the newest of a name.
            look: ask all sources for the newest version, even if one is known here.

        Raises:
            NotHereError: no source has it.
            MismatchError: it goes back, it forks, it is not signed by its key, or the secret is
                another image's.
            FormatError: the manifest cannot be read.
        """
        name = target.place.name
        known = self._node.records.find(name)
        if known is not None and at in known.versions:
            link = known.link if target.link is None else target.link.joined(known.link)
            return await self._take(Lead(_link_near(link, known.versions[at])), at=at)
        if target.link is not None and not (look and known):
            newest = await self._take(Lead(target.link), at=at)
        elif known is not None and not (look or target.place.base or at > known.version):
            newest = await self._get(Lead(known.link))
        else:
            newest = await self._look(target, known, thorough=look or at > 0)
        version = newest.signed.manifest.version
        if at > version:
            raise NotHereError(
                tr(
                    "{name} has no version {at} yet: the newest that was found is {version}",
                    name=name,
                    at=at,
                    version=version,
                )
            )
        return newest if at in (0, version) else await self._go_back(newest, at)

    async def _look(self, target: Target, known: NameRecord | None, *, thorough: bool) -> Found:
        """Ask all sources for the newest version; keep it."""
        place = target.place
        links = [link for link in (target.link, known.link if known else None) if link is not None]
        looked = await look_up(place.name, self._sources(place.base, links), thorough=thorough)
        # A source that does not know the name is no fault, unless the user named that source.
        problems = looked.problems + (looked.without if place.base else [])
        await self._call.emit("asked", problems=problems, found=bool(looked.newest))
        record = self._choose(looked, known, place)
        if record is None:
            if known is None:
                raise _not_found(place, looked)
            return await self._get(Lead(known.link))
        mirrors = _joined(filter(is_url, looked.mirrors), *(link.mirrors for link in links))
        link = Link(
            name=place.name,
            manifest_id=record.record.manifest_id,
            manifest_torrent=record.record.manifest_torrent,
            peers=_joined(looked.peers, *(link.peers for link in links))[:MAX_PEERS],
            trackers=_joined(*(link.trackers for link in links)),
            web_seeds=_joined(self._web_seeds(place, looked), *(link.web_seeds for link in links)),
            mirrors=mirrors[:MAX_MIRRORS],
            secret=next((link.secret for link in links if link.secret), None),
        )
        return await self._take(Lead(link.fitted(), record, tuple(looked.mirrors)))

    def _sources(self, base: str, links: Iterable[Link]) -> list[RecordSource]:
        """The place that the user named, the mirrors that links and settings name, and the node's
        sources."""
        set_up = self._node.config.discovery.mirrors
        bases = _joined([base] if base else [], *(link.mirrors for link in links), set_up)
        return [
            *(MirrorSource(mirror) for mirror in self._node.mirrors(bases)),
            *self._node.sources,
        ]

    def _web_seeds(self, place: Place, looked: LookedUp) -> list[str]:
        """URLs of mirrors that the user named: these are whole. Others may be nodes with a part."""
        named = (place.base, *self._node.config.discovery.mirrors)
        return [f"{base}data/" for base in looked.mirrors if is_url(base) and base in named]

    def _choose(
        self, looked: LookedUp, known: NameRecord | None, place: Place
    ) -> SignedRecord | None:
        """The record to go by; None where no source has one that is as new as the known version.

        Raises:
            MismatchError: a fork; or a place that the user named has an older version.
        """
        if not looked.newest:
            return None
        first = looked.newest[0]
        if known is not None and first.record.version < known.version and not place.base:
            return None
        records = self._node.records
        for other in looked.newest:
            records.check_version(place.name, other.record.version, other.record.manifest_id)
        if len(looked.newest) > 1:
            ids = [other.record.manifest_id for other in looked.newest]
            raise fork_error(place.name, first.record.version, ids[0], ids[1])
        return first

    async def _get(self, lead: Lead) -> Found:
        """Get the manifest of a lead and compare it with the link."""
        link = lead.link
        ref = ManifestRef(link.manifest_id, link.manifest_torrent)
        async with self._pack_begun(link):
            mirrors = self._node.mirrors(lead.mirrors)
            signed = await get_manifest(self._node, ref, link, self._call, mirrors)
        manifest = signed.manifest
        if manifest.name != link.name:
            raise MismatchError(
                tr(
                    "the manifest that was asked for as {link} is that of {manifest}",
                    link=link.name,
                    manifest=manifest.name,
                ),
                hint="the link was changed or put together wrongly: ask for a new one",
            )
        if link.secret is not None:
            check_secret(manifest.key_check, link.secret)
        return Found(signed, replace(lead, link=replace(link, pack_torrent=manifest.pack_torrent)))

    @asynccontextmanager
    async def _pack_begun(self, link: Link) -> AsyncIterator[None]:
        """Begin to fetch the metadata of the last layer while the manifest comes from peers.

        Foreign clients unchoke a new peer only every 10 s, so both torrents wait for that at once.
        Where a mirror may have the manifest there is no need.
        """
        torrent, node = link.pack_torrent, self._node
        if (
            torrent is None
            or link.mirrors
            or not link.peers
            or node.engine.get(torrent) is not None
        ):
            yield
            return
        pack = await node.add(torrent, link.peers, link.trackers, link.web_seeds)

        async def begin() -> None:
            with suppress(P2pcloopError):  # the readers of the pack meet the error themselves
                layout = await pack.metadata()
                if layout.total_size <= pack.tuning.small_torrent:  # it is asked for whole
                    pack.fetcher.record_read(0)

        with plain_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(begin)
                yield
                nursery.cancel_scope.cancel()

    async def _take(self, lead: Lead, *, at: int = 0, before: Manifest | None = None) -> Found:
        """Get the manifest of a lead, keep it, and serve it.

        Args:
            at: the version that the user asked for, which may be an old one.
            before: the manifest that named this one as the version before it.

        Raises:
            MismatchError: as of `Records.keep`, or it cannot be the version before it. Nothing is
                kept then.
        """
        node, link = self._node, lead.link
        wanted = (link.manifest_torrent, link.pack_torrent)
        new = {torrent for torrent in wanted if torrent and node.engine.get(torrent) is None}
        # Calls that wait for the same one wait together: the last that fails takes it away.
        new |= node.resolving.keys() & set(wanted)
        node.resolving.update(new)
        try:
            found = await self._get(lead)
            manifest = found.signed.manifest
            if before is not None:
                check_previous(before, manifest)
            old = before is not None or manifest.version == at
            node.records.check(found.signed, found.lead.link, lead.record, old=old)
            for base in lead.mirrors:
                if not is_url(base):
                    await use_directory(node, base, manifest)
            named = {layer.torrent for layer in manifest.all_layers}
            for torrent in new - named - {link.manifest_torrent}:  # the link was wrong there
                await node.engine.remove(torrent, node.home.tmp)
            return await self._keep(found, old=old)
        except BaseException:  # also where the client is gone, and this is cancelled
            with trio.CancelScope(shield=True):
                for torrent in new:
                    await node.engine.remove(torrent, node.home.tmp)
            raise
        finally:
            node.resolving -= Counter(new)

    async def _keep(self, found: Found, *, old: bool) -> Found:
        node, signed, link, record = self._node, found.signed, found.lead.link, found.lead.record
        async with node.records_lock:
            node.records.check(signed, link, record, old=old)
            known = node.records.find(link.name)
            if known is not None and known.manifest_id == signed.id:
                joined = link.joined(known.link)  # a stranger's link takes no place away
                most = max(MAX_MIRRORS, len(link.mirrors))
                link = replace(joined, mirrors=joined.mirrors[:most])
            if node.engine.get(link.manifest_torrent) is None:
                await serve_manifest(node, signed, link.manifest_torrent)
            name = await trio.to_thread.run_sync(
                lambda: node.records.keep(signed, link, record=record, old=old)
            )
        if name.manifest_id == signed.id:
            link = name.link
        else:
            link = replace(link, secret=link.secret or name.link.secret).fitted()
        return replace(found, lead=replace(found.lead, link=link))

    async def _go_back(self, newest: Found, at: int) -> Found:
        """Go from version to version, each of which names the one before it."""
        found = newest
        for _ in range(MAX_STEPS):
            manifest = found.signed.manifest
            if manifest.version == at:
                return found
            if manifest.version < at or manifest.previous is None:
                break
            link = _link_near(newest.lead.link, manifest.previous)
            with trio.move_on_after(HISTORY_SECONDS) as scope:
                lead = Lead(link, mirrors=newest.lead.mirrors)
                found = await self._take(lead, before=manifest)
            if scope.cancelled_caught:
                raise NotHereError(
                    tr(
                        "the version before version {version} of {manifest} did not come within"
                        " {history_seconds:.0f} s: no source that was asked has it",
                        version=manifest.version,
                        manifest=manifest.name,
                        history_seconds=HISTORY_SECONDS,
                    )
                )
        raise NotHereError(
            tr(
                "{link} has no version {at} that is known: version {version} names none before it",
                link=newest.lead.link.name,
                at=at,
                version=found.signed.manifest.version,
            )
        )


def _not_found(place: Place, looked: LookedUp) -> NotHereError:
    asked = "; ".join(looked.problems + looked.without) or tr("no source")
    where = tr("another mirror") if place.base else tr("say where it is: URL/@key/label")
    return NotHereError(
        tr("{place} was not found; asked: {asked}", place=place.name, asked=asked),
        hint=tr("use the link of the image once, or {where}", where=where),
    )


def _link_near(link: Link, ref: ManifestRef) -> Link:
    """A link to another version, with the peers and mirrors of this one."""
    assert ref.torrent is not None, "told by a link, or by a manifest of format 2"
    return replace(link, manifest_id=ref.id, manifest_torrent=ref.torrent)


def _joined(*parts: Iterable[Item]) -> tuple[Item, ...]:
    """All items, each once, in order."""
    return tuple(dict.fromkeys(item for part in parts for item in part))
