"""Changes that the node keeps for each machine: an overlay each, named after its network card.

A machine that is connected anew goes on as if nothing had been, so nothing may have been lost that
it wrote. What it has not flushed is in this process alone. So beside each overlay lies a file
`MAC.boot`: it names the boot that wrote last, and says `whole` once all of it is in the overlay,
with the overlay's inode, time of its last change (nanoseconds) and size: it must be the same file
when that boot goes on. If this process was killed it says `open`, and that boot is refused. The
overlay then is as after a power failure of the machine, at its last flush, which a new boot of it
can use.

Two machines may have one address. So a disk waits for a while for the boot that had it, when the
connection broke and when this process has just started.
"""

from __future__ import annotations

import logging
import shutil
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import trio

from p2pcloop.errors import P2pcloopError, UsageError
from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.home import replace_file
from p2pcloop.units import format_size
from p2pcloop.words import tr
from p2pcloopd.block.opening import Disk, open_overlay
from p2pcloopd.block.source import LocalBackend, StoredBackend
from p2pcloopd.block.spec import BlockServerSpec

SUFFIX = ".delta"

RESERVED_SECONDS = 30
"""For so long a machine that has lost its connection may take to notice it (nbd_root.c: 20 s), and
to connect anew."""

MAX_OVERLAYS = 1024
"""In a folder; a machine on the LAN can have one made for any hardware address."""

MIN_FREE = 1 << 30
"""Bytes that are free on the folder's disk, else no further machine gets an overlay."""

_WHOLE = "whole "

_log = logging.getLogger(__name__)


def check_folder(folder: Path) -> None:
    """Refuse a folder in which no overlays can be kept.

    Raises:
        UsageError: it is no folder.
    """
    if not folder.is_dir():
        raise UsageError(
            tr("{folder} is no folder, for the machines' changes", folder=folder),
            hint=tr("make it: mkdir {folder}", folder=folder),
        )


@dataclass(slots=True)
class _Changes:
    boot: str
    backend: LocalBackend | StoredBackend


@dataclass(slots=True)
class KeptChanges:
    """The overlays of the machines of one image.

    Attributes:
        folder: where they lie.
        spec: of the image.
        disk: the image.
        started: since when machines that ran before may come back, by trio's clock.
    """

    folder: Path
    spec: BlockServerSpec
    disk: Disk
    started: float = field(default_factory=trio.current_time)
    _open: dict[str, _Changes] = field(default_factory=dict)
    _busy: dict[str, str] = field(default_factory=dict)
    """Machines whose overlay is being opened or closed, and a clause that says so."""
    _reserved: dict[str, tuple[str, float]] = field(default_factory=dict)
    """By machine: the boot that has lost its connection, and when another one may have the disk."""

    def refusal(self, mac: str, boot: str, *, again: bool) -> str | None:
        """Why a machine cannot go on with its changes, or begin with them; None if it can."""
        if mac in self._busy:
            return self._busy[mac]
        if again and (refusal := self._cannot_go_on(mac, boot)) is not None:
            return refusal
        if self._reserved_for(mac) not in (None, boot):
            return tr(
                "a machine with this network card had its disk just now, and may come back: it"
                " is waited for {reserved_seconds} s",
                reserved_seconds=RESERVED_SECONDS,
            )
        path = self._path(mac)
        if mac in self._open:
            return None
        if not path.exists():
            return self._no_room()
        try:
            made_on = Overlay.inspect(path).image_id
        except P2pcloopError as err:
            return tr("the node cannot use {path}: {err}", path=path, err=err)
        if made_on != self.disk.image.device.image.image_id:
            return tr(
                "{path} on the node has changes of another image, or of another version of it:"
                " serve that one (--at), or move the file away",
                path=path.name,
            )
        return None

    async def backend(self, mac: str, boot: str) -> LocalBackend | StoredBackend:
        """The disk of a machine, with its changes; they stay open until `close`.

        When it returns, the boot is named on the disk as the one that writes.

        Raises:
            P2pcloopError: they cannot be opened; then `MAC.boot` is as before.
        """
        changes = self._open.get(mac)
        if changes is not None and changes.boot == boot:
            return changes.backend
        self._busy[mac] = "the node still opens the changes of this machine"
        try:
            opened = changes or _Changes("", await self._with_overlay(mac))
            try:
                await trio.to_thread.run_sync(self._write_boot, mac, f"{boot} open")
            except BaseException:
                if changes is None:
                    opened.backend.device.close_overlay()
                raise
            # No checkpoint since: what the disk says is known here, too.
            opened.boot = boot
            self._open[mac] = opened
        finally:
            del self._busy[mac]
        self._reserved.pop(mac, None)
        return opened.backend

    def lost(self, mac: str, boot: str) -> None:
        """The connection of a machine broke: its disk waits a while for it alone."""
        self._reserved[mac] = boot, trio.current_time() + RESERVED_SECONDS

    async def close(self, mac: str) -> None:
        """Make the changes of a machine that has gone durable, and close them. It may come back
        meanwhile, and has to wait."""
        if (changes := self._open.pop(mac, None)) is None:
            return
        self._busy[mac] = "the node still writes down the changes of this machine"
        try:
            with trio.CancelScope(shield=True):
                await changes.backend.flush()
                await trio.to_thread.run_sync(self._write_whole, mac, changes.boot)
        except P2pcloopError as err:
            _log.error("changes of the machine %s are lost: %s", mac, err)
        finally:
            changes.backend.device.close_overlay()
            del self._busy[mac]

    async def close_all(self) -> None:
        """The same of all machines."""
        for mac in list(self._open):
            await self.close(mac)

    def _no_room(self) -> str | None:
        """Why no overlay can be made for one more machine."""
        if sum(1 for _ in self.folder.glob("*" + SUFFIX)) >= MAX_OVERLAYS:
            return tr(
                "the node keeps changes of {max_overlays} machines, and no more: remove those"
                " in {folder} that are not needed",
                max_overlays=MAX_OVERLAYS,
                folder=self.folder,
            )
        free = shutil.disk_usage(self.folder).free
        if free < MIN_FREE:
            return tr(
                "the node's disk has {free} left, and takes no changes of further machines"
                " below {min_free}",
                free=format_size(free),
                min_free=format_size(MIN_FREE),
            )
        return None

    def _cannot_go_on(self, mac: str, boot: str) -> str | None:
        if (changes := self._open.get(mac)) is not None:
            whole = changes.boot == boot
        else:
            named, said = self._read_boot(mac)
            whole = named == boot and said.startswith(_WHOLE)
            if whole and said != _WHOLE + _facts(self._path(mac)):
                return tr(
                    "{name} on the node was moved or changed while this machine waited: start the"
                    " machine again",
                    name=self._path(mac).name,
                )
        if whole:
            return None
        return (
            "the node has ended before it wrote down all that this machine had written, or another"
            " machine has had its disk since: start the machine again"
        )

    def _reserved_for(self, mac: str) -> str | None:
        """The boot that alone may have a machine's disk now."""
        now = trio.current_time()
        if mac in self._reserved:
            boot, until = self._reserved[mac]
            if now < until:
                return boot
            del self._reserved[mac]
        if mac in self._open or now >= self.started + RESERVED_SECONDS:
            return None
        boot, said = self._read_boot(mac)
        return boot if said.startswith(_WHOLE) else None

    async def _with_overlay(self, mac: str) -> LocalBackend | StoredBackend:
        base = self.disk.image.device
        spec = replace(self.spec, overlay=self._path(mac))
        manifest = spec.image if isinstance(spec.image, SignedManifest) else None
        overlay = await trio.to_thread.run_sync(
            partial(
                open_overlay,
                *(spec, base.image.image_id, base.image.size),
                manifest_id=None if manifest is None else manifest.id,
                name="" if manifest is None else str(manifest.manifest.name),
            )
        )
        assert overlay is not None, "the spec has one"
        return self.disk.image.with_overlay(overlay)

    def _read_boot(self, mac: str) -> tuple[str, str]:
        """The boot that wrote last, and what is said of it."""
        try:
            boot, _, said = self._boot_path(mac).read_text().strip().partition(" ")
        except (OSError, ValueError):
            return "", ""
        return boot, said

    def _write_boot(self, mac: str, text: str) -> None:
        replace_file(self._boot_path(mac), f"{text}\n".encode())

    def _write_whole(self, mac: str, boot: str) -> None:
        self._write_boot(mac, f"{boot} {_WHOLE}{_facts(self._path(mac))}")

    def _path(self, mac: str) -> Path:
        return self.folder / (mac.replace(":", "-") + SUFFIX)

    def _boot_path(self, mac: str) -> Path:
        return self._path(mac).with_suffix(".boot")


def _facts(path: Path) -> str:
    """What is different once a file was replaced or written; empty where there is none."""
    try:
        facts = path.stat()
    except OSError:
        return ""
    return f"{facts.st_ino} {facts.st_mtime_ns} {facts.st_size}"
