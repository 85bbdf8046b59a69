"""Changes that the node keeps for each machine: an overlay each, named after its network card.

A machine that is connected anew goes on as if nothing had been, so nothing may have been lost that
it wrote. What it has not flushed is in this process alone. So beside each overlay lies a file
`MAC.boot`: it names the boot that wrote last, and says `whole` once all of it is in the overlay. If
this process was killed it says `open`, and that boot is refused. The overlay then is as after a
power failure of the machine, at its last flush, which a new boot of it can use.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from p2pcloop.errors import P2pcloopError, UsageError
from p2pcloop.formats.manifest import SignedManifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.home import replace_file
from p2pcloopd.block.opening import Disk, open_overlay
from p2pcloopd.block.source import LocalBackend, StoredBackend
from p2pcloopd.block.spec import BlockServerSpec

SUFFIX = ".delta"

_log = logging.getLogger(__name__)


def check_folder(folder: Path) -> None:
    """Refuse a folder in which no overlays can be kept.

    Raises:
        UsageError: it is no folder.
    """
    if not folder.is_dir():
        raise UsageError(
            f"{folder} is no folder, for the machines' changes", hint=f"make it: mkdir {folder}"
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
    """

    folder: Path
    spec: BlockServerSpec
    disk: Disk
    _open: dict[str, _Changes] = field(default_factory=dict)
    _closing: set[str] = field(default_factory=set)

    def refusal(self, mac: str, boot: str, *, again: bool) -> str | None:
        """Why a machine cannot go on with its changes, or begin with them; None if it can."""
        if mac in self._closing:
            return "the node still writes down the changes of this machine"
        path = self._path(mac)
        if again and not self._goes_on(mac, boot):
            return (
                "the node has ended before it wrote down all that this machine had written: start"
                " the machine again"
            )
        if mac in self._open or not path.exists():
            return None
        try:
            made_on = Overlay.inspect(path).image_id
        except P2pcloopError as err:
            return f"the node cannot use {path}: {err}"
        if made_on != self.disk.image.device.image.image_id:
            return (
                f"{path.name} on the node has changes of another image, or of another version of"
                " it: serve that one (--at), or move the file away"
            )
        return None

    def backend(self, mac: str, boot: str) -> LocalBackend | StoredBackend:
        """The disk of a machine, with its changes; they stay open until `close`.

        Raises:
            P2pcloopError: they cannot be opened.
        """
        changes = self._open.get(mac)
        if changes is None:
            changes = self._open[mac] = _Changes("", self._with_overlay(mac))
        if changes.boot != boot:
            self._write_boot(mac, boot, "open")
            changes.boot = boot
        return changes.backend

    async def close(self, mac: str) -> None:
        """Make the changes of a machine that has gone durable, and close them. It may come back
        meanwhile, and has to wait."""
        if (changes := self._open.pop(mac, None)) is None:
            return
        self._closing.add(mac)
        try:
            with trio.CancelScope(shield=True):
                await changes.backend.flush()
            self._write_boot(mac, changes.boot, "whole")
        except P2pcloopError as err:
            _log.error("changes of the machine %s are lost: %s", mac, err)
        finally:
            changes.backend.device.close_overlay()
            self._closing.discard(mac)

    async def close_all(self) -> None:
        """The same of all machines."""
        for mac in list(self._open):
            await self.close(mac)

    def _goes_on(self, mac: str, boot: str) -> bool:
        if (changes := self._open.get(mac)) is not None:
            return changes.boot == boot
        try:
            return self._boot_path(mac).read_text() == f"{boot} whole\n"
        except OSError:
            return False

    def _with_overlay(self, mac: str) -> LocalBackend | StoredBackend:
        base = self.disk.image.device
        spec = replace(self.spec, overlay=self._path(mac))
        manifest = spec.image if isinstance(spec.image, SignedManifest) else None
        overlay = open_overlay(
            spec,
            base.image.image_id,
            base.image.size,
            manifest_id=None if manifest is None else manifest.id,
            name="" if manifest is None else str(manifest.manifest.name),
        )
        assert overlay is not None, "the spec has one"
        return self.disk.image.with_overlay(overlay)

    def _write_boot(self, mac: str, boot: str, state: str) -> None:
        replace_file(self._boot_path(mac), f"{boot} {state}\n".encode())

    def _path(self, mac: str) -> Path:
        return self.folder / (mac.replace(":", "-") + SUFFIX)

    def _boot_path(self, mac: str) -> Path:
        return self._path(mac).with_suffix(".boot")
