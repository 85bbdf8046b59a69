"""A command's guest, from its REF to its report."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from functools import partial
from types import ModuleType
from typing import Any

from p2pcloop.cli.output import check_writable
from p2pcloop.client.refs import StoredRef, resolve_ref
from p2pcloop.client.terminal import log_to_stderr
from p2pcloop.making.local import ImageFile
from p2pcloopd.block.spec import BlockServerSpec, FilesOverlay
from p2pcloopd.commands.guest_options import GuestOptions
from p2pcloopd.guest.disk import choose_files, disk_of, layer_places, size_of
from p2pcloopd.guest.files_root import build_files_initramfs
from p2pcloopd.guest.initramfs import HAND_OVER, Part, build_initramfs
from p2pcloopd.guest.kernel import Kernel
from p2pcloopd.guest.recording import keep_recording
from p2pcloopd.guest.report import Outcome, image_facts, write_report
from p2pcloopd.guest.spec import GuestResult, GuestSpec, last_allowed_cpu


def run_session(
    ref: str,
    options: GuestOptions,
    start: Callable[[ModuleType, GuestSpec, BlockServerSpec, Outcome], None],
    *,
    prefetch: bool,
    ending: Part = HAND_OVER,
    words: str = "",
) -> GuestResult:
    """Run a guest to its end; keep its first reads as a profile, and write the report.

    Args:
        ref: the image.
        options: of the command.
        start: runs the guest; it gets `p2pcloopd.guest.boot`, which is loaded while p2pcloopd
            starts.
        prefetch: fetch the image's profile ahead of the guest, and record a profile.
        ending: what its first root does once the root is there.
        words: the command's own for the kernel.

    Raises:
        P2pcloopError: there was no guest, or none to its end.
    """
    outcome = Outcome(started=time.monotonic())
    log_to_stderr(logging.WARNING, "p2pcloop: %(message)s", end="\r")
    if options.report is not None:
        check_writable(options.report)
    home, overlay = options.home, options.overlay
    home.create()
    target = resolve_ref(ref, home, at=options.at, meanwhile=_load)
    if isinstance(target, StoredRef):
        target.check_secret()
    files = choose_files(target, overlay, options.overlay_mode, options.overlay_size, home)
    before = _status(target)
    disk = disk_of(target, overlay, home, prefetch=prefetch, fill=options.fill, files=files)
    fresh = overlay is None or not overlay.exists()
    with (booting := _load()).socket_folder() as folder:
        spec = GuestSpec(
            vhost_socket=folder / "vda",
            more_disks=() if files is None else (folder / "vdb",),
            initramfs=_first_root(target, files, ending),
            memory=options.mem,
            network="user" if options.net == "user" else "none",
            kernel=options.kernel,
            append=_append(target, words, options.append),
            cpu=_cpu(options.cpu),
        )
        start(booting, spec, disk, outcome)
    try:
        recorded = keep_recording(home, size_of(target), outcome, fresh=fresh)
        if options.report is not None:
            facts = image_facts(target, before, home) | outcome.facts()
            write_report(options.report, facts | {"overlay_mode": disk.mode, "profile": recorded})
    finally:
        outcome.check()
    assert outcome.guest is not None
    return outcome.guest


def _cpu(asked: int | None) -> int | None:
    if asked is None:
        return last_allowed_cpu()
    return None if asked == -1 else asked


def _load() -> ModuleType:
    """Load the modules that run guests: an eighth of a second, while p2pcloopd starts."""
    return importlib.import_module("p2pcloopd.guest.boot")


def _first_root(
    target: ImageFile | StoredRef, files: FilesOverlay | None, ending: Part
) -> Callable[[Kernel], bytes]:
    """The function that makes the guest's initramfs."""
    if files is None:
        return partial(build_initramfs, ending=ending)
    return partial(build_files_initramfs, places=layer_places(target), ending=ending)


def _append(target: ImageFile | StoredRef, *words: str) -> str:
    """Words for the kernel: the publisher's, ours, and the user's, of which the last one counts."""
    published = target.signed.manifest.boot.append if isinstance(target, StoredRef) else ""
    return " ".join(filter(None, (published, *words)))


def _status(target: ImageFile | StoredRef) -> dict[str, Any] | None:
    return target.client.call("status") if isinstance(target, StoredRef) else None
