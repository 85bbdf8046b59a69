"""Getting a manifest by its id: from the home, from mirrors, or by its torrent; and serving it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterable
from functools import partial
from pathlib import Path
from typing import TypeVar

import trio

from p2pcloop.errors import (
    FormatError,
    MismatchError,
    NotHereError,
    P2pcloopError,
    UnreachableError,
    storage_error,
)
from p2pcloop.formats.link import Link
from p2pcloop.formats.manifest import (
    MAX_MANIFEST_SIZE,
    ManifestRef,
    SignedManifest,
    open_manifest,
)
from p2pcloop.words import tr
from p2pcloopd.control_server import Call
from p2pcloopd.names.lookup import LOOK_SECONDS, Mirror
from p2pcloopd.node.node import Node

Result = TypeVar("Result")

MANIFEST_FILE = "manifest"
MANIFEST_PREFIX = "manifest-"

HEAD_START_SECONDS = 1.0
"""How long mirrors alone are asked, before peers are, too."""


async def get_manifest(
    node: Node, ref: ManifestRef, near: Link, call: Call, mirrors: Iterable[Mirror] = ()
) -> SignedManifest:
    """Get a manifest from wherever it may be had first; waits for peers as long as it takes.

    Args:
        near: a link whose peers and mirrors may have it.
        mirrors: others that may have it.

    Raises:
        MismatchError: what is there is another manifest, or is not signed by its key.
        FormatError: what is there is none.
        NotHereError, UnreachableError: no mirror has it, and there are no peers to ask.
    """
    try:
        return await trio.to_thread.run_sync(node.records.manifest, ref.id)
    except (NotHereError, FormatError, MismatchError):
        pass
    readers = [*mirrors, *node.mirrors(near.mirrors)]
    if not readers:
        return await _from_torrent(node, ref, near, call)
    tried = trio.Event()

    async def from_mirrors() -> SignedManifest:
        try:
            return await first_of(*(partial(_from_mirror, reader, ref) for reader in readers))
        finally:
            tried.set()

    async def from_peers() -> SignedManifest:
        with trio.move_on_after(HEAD_START_SECONDS):
            await tried.wait()
        return await _from_torrent(node, ref, near, call)

    peers = near.peers or node.finds_peers(near)
    return await first_of(from_mirrors, *([from_peers] if peers else []))


async def serve_manifest(
    node: Node, signed: SignedManifest, torrent: bytes | None = None, *, public: bool = False
) -> bytes:
    """Serve a manifest as a torrent of its own; return the info hash.

    Args:
        torrent: what the info hash must be.

    Raises:
        MismatchError: it is another one; nothing is served.
        StorageError: the disk refused.
    """
    try:
        staging = Path(tempfile.mkdtemp(prefix=MANIFEST_PREFIX, dir=node.home.tmp))
    except OSError as err:
        raise storage_error(tr("cannot write in {tmp}", tmp=node.home.tmp), err) from err
    try:
        await trio.to_thread.run_sync(_stage, staging, signed.data)
        return (await node.engine.seed(staging, public=public, expected=torrent)).info_hash
    except MismatchError as err:
        raise MismatchError(
            tr(
                "the manifest of {manifest} has another torrent than was told",
                manifest=signed.manifest.name,
            ),
            hint="the link or the record was put together wrongly: ask for a new one",
        ) from err
    finally:
        # What the engine has not taken over.
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(partial(shutil.rmtree, staging, ignore_errors=True))


async def first_of(*attempts: Callable[[], Awaitable[Result]]) -> Result:
    """What the first attempt to succeed returns; the others are cancelled.

    Raises:
        P2pcloopError: all failed; this is what the last of them said.
    """
    results: list[Result] = []
    errors: list[P2pcloopError] = []

    async def run(attempt: Callable[[], Awaitable[Result]]) -> None:
        try:
            results.append(await attempt())
            nursery.cancel_scope.cancel()
        except P2pcloopError as err:
            errors.append(err)

    async with trio.open_nursery() as nursery:
        for attempt in attempts:
            nursery.start_soon(run, attempt)
    if not results:
        raise errors[-1]
    return results[0]


def check_manifest(signed: SignedManifest, ref: ManifestRef) -> SignedManifest:
    """Return a manifest if it is the one that was asked for.

    Raises:
        MismatchError: it is not.
    """
    if signed.id != ref.id:
        raise MismatchError(
            tr(
                "asked for manifest {id} and got another, of {manifest}",
                id=ref.id.hex(),
                manifest=signed.manifest.name,
            ),
            hint="the link was changed or put together wrongly: ask for a new one",
        )
    return signed


async def _from_mirror(mirror: Mirror, ref: ManifestRef) -> SignedManifest:
    with trio.move_on_after(LOOK_SECONDS):
        try:
            return check_manifest(open_manifest(await mirror.manifest(ref.id)), ref)
        except (FormatError, MismatchError) as err:
            raise type(err)(f"{mirror.base}: {err}", hint=err.hint) from err
    raise UnreachableError(tr("{base}: no answer in time", base=mirror.base))


async def _from_torrent(node: Node, ref: ManifestRef, near: Link, call: Call) -> SignedManifest:
    if ref.torrent is None:
        raise NotHereError(tr("no manifest {id} is known here, nor its torrent", id=ref.id.hex()))
    torrent = await node.add(ref.torrent, near.peers, near.trackers, ())
    report = partial(node.reports.report_if_waiting, torrent, call)
    found = await report(torrent.metadata)
    if [str(path) for path, _ in found.files] != [MANIFEST_FILE]:
        raise FormatError("the link's torrent is not that of a manifest")
    if not 0 < found.total_size <= MAX_MANIFEST_SIZE:
        raise FormatError(
            tr(
                "a manifest of {total_size} bytes is over {max_manifest_size}",
                total_size=found.total_size,
                max_manifest_size=MAX_MANIFEST_SIZE,
            )
        )
    read = partial(torrent.read, 0, found.total_size)
    return check_manifest(open_manifest(await report(read)), ref)


def _stage(staging: Path, data: bytes) -> None:
    """Put a manifest into a directory for the engine."""
    try:
        (staging / "data").mkdir()
        (staging / "data" / MANIFEST_FILE).write_bytes(data)
    except OSError as err:
        raise storage_error(tr("cannot write in {staging}", staging=staging), err) from err
