"""`p2pcloop boot`: a guest, its block server, and a report of how it went."""

from __future__ import annotations

import importlib
import logging
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import click

from p2pcloop.cli.options import at_option, file_options, home_option
from p2pcloop.cli.output import check_writable
from p2pcloop.cli.refs import StoredRef, resolve_ref
from p2pcloop.cli.size import FILL, SIZE
from p2pcloop.cli.streams import log_to_stderr
from p2pcloop.making.local import ImageFile
from p2pcloop.store.home import Home
from p2pcloopd.block.spec import FilesOverlay
from p2pcloopd.guest.disk import choose_files, disk_of, layer_places, size_of
from p2pcloopd.guest.files_root import build_files_initramfs
from p2pcloopd.guest.initramfs import AUTOLOGIN, build_initramfs
from p2pcloopd.guest.kernel import Kernel
from p2pcloopd.guest.recording import keep_recording
from p2pcloopd.guest.report import Outcome, image_facts, write_report
from p2pcloopd.guest.spec import GuestSpec, last_allowed_cpu

_EPILOG = """
\b
Examples:
  p2pcloop boot debian.cloop
  p2pcloop boot 'magnet:?xt=...' --overlay mine.delta
  p2pcloop boot @key/debian --overlay mine.delta --net user --mem 1G

\b
Keys: Ctrl-C shuts the guest down in order, once more ends it; Ctrl-\\ is the guest's Ctrl-C.
"""


@click.command(epilog=_EPILOG)
@click.argument("ref")
@click.option(
    "--overlay",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Keep changes in FILE, made where it does not exist; without, they last for this boot.",
)
@click.option(
    "--overlay-mode",
    type=click.Choice(["block", "files"]),
    help="Keep changed blocks, or changed files beside the image.  [default: files where the image"
    " cannot be written (iso9660, squashfs, erofs), else block]",
)
@click.option(
    "--overlay-size",
    type=SIZE,
    help="What a new files overlay may hold; it takes room only for what is written."
    "  [default: 8G]",
)
@click.option("--mem", type=SIZE, default="512M", show_default=True, help="The guest's memory.")
@click.option(
    "--net",
    type=click.Choice(["user", "none"]),
    default="none",
    show_default=True,
    help="`user` lets the guest open connections to the outside; the host's loopback is closed.",
)
@click.option(
    "--kernel",
    type=click.Path(path_type=Path),
    metavar="PATH",
    help="A User-Mode Linux kernel; `system` is this system's.  [env: P2PCLOOP_KERNEL]  [default:"
    " what tools/get-uml-kernel unpacked, or else this system's]",
)
@click.option(
    "--autologin",
    is_flag=True,
    help="Log root in at the console, for this boot; the image is not changed.",
)
@click.option("--append", default="", metavar="ARGS", help="Words for the kernel's command line.")
@click.option(
    "--console",
    default="stdio",
    show_default=True,
    metavar="stdio|FILE",
    help="Where the guest's console is; a FILE only gets what the guest prints.",
)
@click.option(
    "--cpu",
    type=int,
    metavar="N",
    help="The CPU the guest runs on (it is one CPU's worth of work); -1 for any.  [last allowed]",
)
@click.option(
    "--report",
    type=click.Path(path_type=Path),
    metavar="FILE.json",
    help="Write what was measured to this file.",
)
@click.option(
    "--fill",
    type=FILL,
    default="off",
    show_default=True,
    metavar="off|RATE|full",
    help="Bring the rest of the image when there is time: RATE bytes a second (500K), or all.",
)
@click.option(
    "--no-profile", is_flag=True, help="Read nothing ahead of the guest, and record no profile."
)
@at_option
@file_options
@home_option
def command(
    ref: str,
    overlay: Path | None,
    overlay_mode: str | None,
    overlay_size: int | None,
    mem: int,
    net: str,
    kernel: Path | None,
    append: str,
    console: str,
    cpu: int | None,
    report: Path | None,
    fill: int,
    at: int,
    home: Home,
    *,
    autologin: bool,
    no_profile: bool,
) -> None:
    """Boot REF (a file, a link, or @key/label once known here) in User-Mode Linux.

    The image arrives while the guest runs; only what it reads crosses the wire. What it reads first
    is recorded as the image's profile, and brought ahead of the guest the next time.
    """
    outcome = Outcome(started=time.monotonic())
    log_to_stderr(logging.WARNING, "p2pcloop: %(message)s", end="\r")
    console_file = None if console == "stdio" else Path(console)
    for output in filter(None, (report, console_file)):
        check_writable(output)
    home.create()
    target = _find(ref, home, at)
    files = choose_files(target, overlay, overlay_mode, overlay_size, home)
    before = _status(target)
    disk = disk_of(target, overlay, home, ahead=not no_profile, fill=fill, files=files)
    fresh = overlay is None or not overlay.exists()
    with (booting := _load()).socket_folder() as folder:
        spec = GuestSpec(
            vhost_socket=folder / "vda",
            more_disks=() if files is None else (folder / "vdb",),
            initramfs=_first_root(target, files),
            memory=mem,
            network="user" if net == "user" else "none",
            kernel=kernel,
            append=_append(target, append, autologin=autologin),
            console=console_file or "stdio",
            cpu=None if cpu == -1 else last_allowed_cpu() if cpu is None else cpu,
        )
        booting.boot(spec, disk, outcome)
    try:
        recorded = keep_recording(home, size_of(target), outcome, fresh=fresh)
        if report is not None:
            facts = image_facts(target, before, home) | outcome.facts()
            write_report(report, facts | {"overlay_mode": disk.mode, "profile": recorded})
    finally:
        # Of two errors the boot's is the one to tell.
        if outcome.error is not None:
            raise outcome.error
    assert outcome.guest is not None
    raise click.exceptions.Exit(outcome.guest.exit_code)


def _load() -> ModuleType:
    """What runs guests takes an eighth of a second to load: done while p2pcloopd starts."""
    return importlib.import_module("p2pcloopd.guest.boot")


def _find(ref: str, home: Home, at: int) -> ImageFile | StoredRef:
    target = resolve_ref(ref, home, at=at, meanwhile=_load)
    if isinstance(target, StoredRef):
        target.check_secret()
    return target


def _first_root(
    target: ImageFile | StoredRef, files: FilesOverlay | None
) -> Callable[[Kernel], bytes]:
    """What makes the guest's initramfs."""
    if files is None:
        return build_initramfs
    return partial(build_files_initramfs, places=layer_places(target))


def _append(target: ImageFile | StoredRef, append: str, *, autologin: bool) -> str:
    """Words for the kernel: the publisher's, ours, and the user's, of which the last one counts."""
    published = target.signed.manifest.boot.append if isinstance(target, StoredRef) else ""
    return " ".join(filter(None, (published, AUTOLOGIN if autologin else "", append)))


def _status(target: ImageFile | StoredRef) -> dict[str, Any] | None:
    return target.client.call("status") if isinstance(target, StoredRef) else None
