"""Resolving: from a link, or a name and where to ask for it, to a manifest that may be believed.

What may be refused is refused first (a signature, a version that goes back, a fork, another image's
secret); then it is kept. What is known is changed by nothing that is refused.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar

import trio

from p2pcloop.errors import FormatError, MismatchError, NotHereError, P2pcloopError
from p2pcloop.formats.lineage import check_previous
from p2pcloop.formats.link import MAX_PEERS, Link, is_link, parse_link
from p2pcloop.formats.manifest import Manifest, ManifestRef, SignedManifest
from p2pcloop.formats.place import Place, is_url, parse_place
from p2pcloop.formats.record import SignedRecord
from p2pcloop.formats.seal import check_secret
from p2pcloop.store.name_table import NameRecord
from p2pcloop.store.records import fork_error
from p2pcloopd.engine.transfer import SMALL
from p2pcloopd.entry import plain_errors
from p2pcloopd.names.lookup import HISTORY_SECONDS, LookedUp, MirrorSource, RecordSource, look_up
from p2pcloopd.node.control_server import Call
from p2pcloopd.node.directories import use_directory
from p2pcloopd.node.manifests import get_manifest, serve_manifest
from p2pcloopd.node.node import Node

Item = TypeVar("Item")

MAX_STEPS = 4096
"""The most versions that are gone back through to find an older one."""

MAX_MIRRORS = 16
"""The most mirrors of a name that are remembered."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a REF stands for, before it is known whether that exists.

    Attributes:
        place: a name, and where its record lies if the REF says so.
        link: the link, if the REF is one.
    """

    place: Place
    link: Link | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """A version of an image, with what led to it.

    Attributes:
        signed: its manifest.
        link: to this version.
        record: its record, or None where a link led to it.
        mirrors: bases, of directories too, of mirrors that have it, besides those of the link.
    """

    signed: SignedManifest
    link: Link
    record: SignedRecord | None = None
    mirrors: tuple[str, ...] = ()


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
        raise FormatError(f"the directory {place.base!r} is not absolute")
    return Target(place)


async def find_version(
    node: Node, target: Target, call: Call, *, at: int = 0, look: bool = False
) -> Found:
    """Find a version of an image and keep it under its name.

    Args:
        at: the version that is wanted; 0 for that of a link, or the newest of a name.
        look: ask everybody for the newest, whatever is known here.

    Raises:
        NotHereError: nobody has it.
        MismatchError: it goes back, it forks, it is not signed by its key, or the secret is
            another image's.
        FormatError: what was found is no manifest.
    """
    name = target.place.name
    known = node.records.find(name)
    if known is not None and at in known.versions and target.link is None:
        link = _link_near(known.link, known.versions[at])
        return await _take(node, link, call, at=at)
    if target.link is not None and not (look and known):
        newest = await _take(node, target.link, call, at=at)
    elif known is not None and not (look or target.place.base or at > known.version):
        newest = await _get(node, known.link, call)
    else:
        newest = await _look(node, target, known, call, thorough=look or at > 0)
    version = newest.signed.manifest.version
    if at > version:
        raise NotHereError(
            f"{name} has no version {at} yet: the newest that was found is {version}"
        )
    return newest if at in (0, version) else await _go_back(node, newest, at, call)


async def _look(
    node: Node, target: Target, known: NameRecord | None, call: Call, *, thorough: bool
) -> Found:
    """Ask everybody for the newest version; keep it."""
    place = target.place
    links = [link for link in (target.link, known.link if known else None) if link is not None]
    looked = await look_up(place.name, _sources(node, place.base, links), thorough=thorough)
    # To know nothing of a name is no fault, unless the user said that it is known there.
    problems = looked.problems + (looked.without if place.base else [])
    await call.emit("asked", problems=problems, found=bool(looked.newest))
    record = _choose(node, looked, known, place)
    if record is None:
        if known is None:
            asked = "; ".join(looked.problems + looked.without) or "nobody"
            raise NotHereError(
                f"{place.name} was not found; asked: {asked}",
                hint="use the link of the image once, or "
                + ("another mirror" if place.base else "say where it is: URL/@key/label"),
            )
        return await _get(node, known.link, call)
    mirrors = _joined(filter(is_url, looked.mirrors), *(link.mirrors for link in links))
    link = Link(
        name=place.name,
        manifest_id=record.record.manifest_id,
        manifest_torrent=record.record.manifest_torrent,
        peers=_joined(looked.peers, *(link.peers for link in links))[:MAX_PEERS],
        trackers=_joined(*(link.trackers for link in links)),
        web_seeds=_joined(_web_seeds(node, place, looked), *(link.web_seeds for link in links)),
        mirrors=mirrors[:MAX_MIRRORS],
        secret=next((link.secret for link in links if link.secret), None),
    )
    return await _take(node, link.fitted(), call, record, looked.mirrors)


def _web_seeds(node: Node, place: Place, looked: LookedUp) -> list[str]:
    """Those mirrors that the user named are whole; others may be nodes that have a part."""
    named = (place.base, *node.config.discovery.mirrors)
    return [f"{base}data/" for base in looked.mirrors if is_url(base) and base in named]


def _choose(
    node: Node, looked: LookedUp, known: NameRecord | None, place: Place
) -> SignedRecord | None:
    """The record to go by; None where nobody has one, or none that is as new as what is known.

    Raises:
        MismatchError: a fork; or a place that the user named has an older version.
    """
    if not looked.newest:
        return None
    first = looked.newest[0]
    if known is not None and first.record.version < known.version and not place.base:
        return None
    for other in looked.newest:
        node.records.check_version(place.name, other.record.version, other.record.manifest_id)
    if len(looked.newest) > 1:
        ids = [other.record.manifest_id for other in looked.newest]
        raise fork_error(place.name, first.record.version, ids[0], ids[1])
    return first


def _sources(node: Node, base: str, links: Iterable[Link]) -> list[RecordSource]:
    """The place that the user named, mirrors that links name, and whoever else may know."""
    bases = _joined([base] if base else [], *(link.mirrors for link in links))
    return [*(MirrorSource(mirror) for mirror in node.mirrors(bases)), *node.sources]


async def _get(
    node: Node,
    link: Link,
    call: Call,
    record: SignedRecord | None = None,
    mirrors: Iterable[str] = (),
) -> Found:
    """Get the manifest of a link and compare it with what was said of it."""
    ref = ManifestRef(link.manifest_id, link.manifest_torrent)
    async with _pack_begun(node, link):
        signed = await get_manifest(node, ref, link, call, node.mirrors(mirrors))
    manifest = signed.manifest
    if manifest.name != link.name:
        raise MismatchError(
            f"the manifest that was asked for as {link.name} is that of {manifest.name}",
            hint="the link was changed or put together wrongly: ask for a new one",
        )
    if link.secret is not None:
        check_secret(manifest.key_check, link.secret)
    link = replace(link, pack_torrent=manifest.pack_torrent)
    return Found(signed, link, record, tuple(mirrors))


@asynccontextmanager
async def _pack_begun(node: Node, link: Link) -> AsyncIterator[None]:
    """Have the metadata of the image's last layer on its way while its manifest comes from peers.

    Foreign clients unchoke who is connected every 10 s only: so both torrents wait for that at
    once. Where a mirror may have it there is no need.
    """
    torrent = link.pack_torrent
    if torrent is None or link.mirrors or not link.peers or node.engine.get(torrent) is not None:
        yield
        return
    pack = await node.add(torrent, link.peers, link.trackers, link.web_seeds)

    async def begin() -> None:
        with suppress(P2pcloopError):  # whoever reads is told
            layout = await pack.metadata()
            if layout.total_size <= SMALL:  # which its first reader asks for whole
                pack.transfer.note_read(0)

    with plain_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(begin)
            yield
            nursery.cancel_scope.cancel()


async def _take(
    node: Node,
    link: Link,
    call: Call,
    record: SignedRecord | None = None,
    mirrors: Iterable[str] = (),
    *,
    at: int = 0,
    before: Manifest | None = None,
) -> Found:
    """Get the manifest of a link, keep it, and serve it.

    Args:
        at: the version that the user asked for, which may be an old one.
        before: the version that named this one as the one before it.

    Raises:
        MismatchError: as of `Records.keep`, or it cannot be the version before; nothing is kept.
    """
    wanted = (link.manifest_torrent, link.pack_torrent)
    new = [torrent for torrent in wanted if torrent and node.engine.get(torrent) is None]
    try:
        found = await _get(node, link, call, record, mirrors)
        manifest = found.signed.manifest
        if before is not None:
            check_previous(before, manifest)
        old = before is not None or manifest.version == at
        node.records.check(found.signed, found.link, record, old=old)
        for base in found.mirrors:
            if not is_url(base):
                await use_directory(node, base, manifest)
        named = {layer.torrent for layer in manifest.all_layers}
        for torrent in set(new) - named - {link.manifest_torrent}:  # the link was wrong there
            await node.engine.remove(torrent, node.home.tmp)
        return await _keep(node, found, old=old)
    except P2pcloopError:
        for torrent in new:
            await node.engine.remove(torrent, node.home.tmp)
        raise


async def _keep(node: Node, found: Found, *, old: bool) -> Found:
    signed, link, record = found.signed, found.link, found.record
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
        return replace(found, link=name.link)
    return replace(found, link=replace(link, secret=link.secret or name.link.secret).fitted())


async def _go_back(node: Node, newest: Found, at: int, call: Call) -> Found:
    """Go from version to version, each of which names the one before it."""
    found = newest
    for _ in range(MAX_STEPS):
        manifest = found.signed.manifest
        if manifest.version == at:
            return found
        if manifest.version < at or manifest.previous is None:
            break
        link = _link_near(newest.link, manifest.previous)
        with trio.move_on_after(HISTORY_SECONDS) as scope:
            found = await _take(node, link, call, mirrors=newest.mirrors, before=manifest)
        if scope.cancelled_caught:
            raise NotHereError(
                f"the version before version {manifest.version} of {manifest.name} did not come"
                f" within {HISTORY_SECONDS:.0f} s: nobody who is asked has it"
            )
    raise NotHereError(
        f"{newest.link.name} has no version {at} that is known: version"
        f" {found.signed.manifest.version} names none before it"
    )


def _link_near(link: Link, ref: ManifestRef) -> Link:
    """A link to another version, which may be had where this one may."""
    assert ref.torrent is not None, "told by a link, or by a manifest of format 2"
    return replace(link, manifest_id=ref.id, manifest_torrent=ref.torrent)


def _joined(*parts: Iterable[Item]) -> tuple[Item, ...]:
    """All items, each once, in order."""
    return tuple(dict.fromkeys(item for part in parts for item in part))
