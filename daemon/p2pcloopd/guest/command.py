"""`p2pcloop boot`: a guest, its block server, and a report of how it went."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from p2pcloop.cli.options import at_option, home_option
from p2pcloop.cli.output import check_writable
from p2pcloop.cli.refs import StoredRef, resolve_ref
from p2pcloop.cli.size import FILL, SIZE
from p2pcloop.errors import GuestError, P2pcloopError
from p2pcloop.making.local import ImageFile
from p2pcloop.store.home import Home
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import BlockServerSpec
from p2pcloopd.entry import plain_errors, run
from p2pcloopd.guest.disk import choose_files, disk_of, size_of
from p2pcloopd.guest.files_root import build_files_initramfs
from p2pcloopd.guest.initramfs import build_initramfs
from p2pcloopd.guest.recording import keep_recording
from p2pcloopd.guest.report import Outcome, image_facts, write_report
from p2pcloopd.guest.spec import GuestSpec, last_allowed_cpu
from p2pcloopd.guest.uml import run_guest
from p2pcloopd.unix_listener import bind_unix_listener

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
    default="8G",
    show_default=True,
    help="What a new files overlay may hold; it takes room only for what is written.",
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
@home_option
def command(
    ref: str,
    overlay: Path | None,
    overlay_mode: str | None,
    overlay_size: int,
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
    no_profile: bool,
) -> None:
    """Boot REF (a file, a link, or @key/label once known here) in User-Mode Linux.

    The image arrives while the guest runs; only what it reads crosses the wire. What it reads first
    is recorded as the image's profile, and brought ahead of the guest the next time.
    """
    outcome = Outcome(started=time.monotonic())
    logging.basicConfig(level=logging.WARNING, format="p2pcloop: %(message)s\r")
    console_file = None if console == "stdio" else Path(console)
    for output in filter(None, (report, console_file)):
        check_writable(output)
    home.create()
    target = resolve_ref(ref, home, at=at)
    if isinstance(target, StoredRef):
        target.check_secret()
    files = choose_files(target, overlay, overlay_mode, overlay_size)
    before = _status(target)
    disk = disk_of(target, overlay, home, ahead=not no_profile, fill=fill, files=files)
    fresh = overlay is None or not overlay.exists()
    with _socket_folder() as folder:
        spec = GuestSpec(
            vhost_socket=folder / "vda",
            more_disks=() if files is None else (folder / "vdb",),
            initramfs=build_initramfs if files is None else build_files_initramfs,
            memory=mem,
            network="user" if net == "user" else "none",
            kernel=kernel,
            append=f"{_published_append(target)} {append}".strip(),
            console=console_file or "stdio",
            cpu=None if cpu == -1 else last_allowed_cpu() if cpu is None else cpu,
        )
        _boot(spec, disk, outcome)
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


_END_SECONDS = 10


def _boot(spec: GuestSpec, disk: BlockServerSpec, outcome: Outcome) -> None:
    """Boot; an error is left in `outcome`."""
    try:
        with _serving(spec, disk) as block:
            run(partial(_run, spec, block, outcome))
    except P2pcloopError as err:
        outcome.error = err


def _serving(spec: GuestSpec, disk: BlockServerSpec) -> BlockServerProcess:
    """Have the guest's disks served at its sockets."""
    with ExitStack() as stack:
        first, *more = [stack.enter_context(bind_unix_listener(path)) for path in spec.disks]
        disk = replace(disk, vhost_user=first)
        if disk.files is not None:
            disk = replace(disk, files=replace(disk.files, vhost_user=more[0]))
        return BlockServerProcess(disk)


async def _run(spec: GuestSpec, block: BlockServerProcess, outcome: Outcome) -> None:
    await block.wait_ready()
    outcome.begun = time.monotonic()
    disk_gone = trio.Event()

    async def wait_for_block_server() -> None:
        outcome.block = await block.finish()
        disk_gone.set()

    async with trio.open_nursery() as serving:
        serving.start_soon(wait_for_block_server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_stuck, disk_gone, nursery.cancel_scope)
            # A guest that cannot boot has read something all the same: the report tells.
            try:
                with plain_errors():
                    outcome.guest = await run_guest(spec)
            except P2pcloopError as err:
                outcome.error = err
            nursery.cancel_scope.cancel()
        block.stop()
    if outcome.guest is None and outcome.error is None:
        raise GuestError("the guest let go of its disk and did not end; it was killed")


async def _end_when_stuck(disk_gone: trio.Event, scope: trio.CancelScope) -> None:
    """A guest that ends lets go of its disk just before; one that goes on without it spins."""
    await disk_gone.wait()
    await trio.sleep(_END_SECONDS)
    scope.cancel()


@contextmanager
def _socket_folder() -> Iterator[Path]:
    """A folder for sockets that only this user can reach; it goes at the end."""
    folder = Path(tempfile.mkdtemp(prefix="p2pcloop-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _published_append(target: ImageFile | StoredRef) -> str:
    return target.signed.manifest.boot.append if isinstance(target, StoredRef) else ""


def _status(target: ImageFile | StoredRef) -> dict[str, Any] | None:
    return target.client.call("status") if isinstance(target, StoredRef) else None
