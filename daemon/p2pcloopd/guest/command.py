"""`p2pcloop boot`: a guest, its block server, and a report of how it went."""

from __future__ import annotations

import logging
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import click
import trio

from p2pcloop.cli.daemon_control import ensure_daemon
from p2pcloop.cli.options import home_option, to_json
from p2pcloop.cli.refs import StoredRef, resolve_ref
from p2pcloop.cli.size import SIZE
from p2pcloop.cli.traffic import measure_traffic
from p2pcloop.errors import GuestError, storage_error
from p2pcloop.image.local import ImageFile
from p2pcloop.store.home import Home
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.server import TEMPORARY, BlockServerSpec
from p2pcloopd.entry import run
from p2pcloopd.guest.spec import GuestResult, GuestSpec, last_allowed_cpu
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
    help="A User-Mode Linux kernel.  [default: linux.uml of this system]",
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
@home_option
def command(
    ref: str,
    overlay: Path | None,
    mem: int,
    net: str,
    kernel: Path | None,
    append: str,
    console: str,
    cpu: int | None,
    report: Path | None,
    home: Home,
) -> None:
    """Boot REF (a file, a link, or @key/label once known here) in User-Mode Linux.

    The image arrives while the guest runs; only what it reads crosses the wire.
    """
    started = time.monotonic()
    logging.basicConfig(level=logging.WARNING, format="p2pcloop: %(message)s\r")
    home.create()
    target = resolve_ref(ref, home)
    before = _status(target)
    with _vhost_socket() as path:
        spec = GuestSpec(
            vhost_socket=path,
            memory=mem,
            network="user" if net == "user" else "none",
            kernel=kernel,
            append=f"{_published_append(target)} {append}".strip(),
            console="stdio" if console == "stdio" else Path(console),
            cpu=None if cpu == -1 else last_allowed_cpu() if cpu is None else cpu,
        )
        outcome = _boot(spec, target, overlay, home)
    if report is not None:
        facts = _facts(target, outcome, before, home) | {
            "boot_seconds": outcome.since(started, outcome.guest.boot_seconds),
            "total_seconds": time.monotonic() - started,
        }
        _write_report(report, facts)
    raise click.exceptions.Exit(outcome.guest.exit_code)


_END_SECONDS = 10


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How guest and block server ended; `begun` is when the guest was started (monotonic)."""

    begun: float
    guest: GuestResult
    block: dict[str, Any]

    def since(self, started: float, seconds: float | None) -> float | None:
        """Seconds counted from the guest's start, counted from the command's start instead."""
        return None if seconds is None else self.begun - started + seconds


def _boot(
    spec: GuestSpec, target: ImageFile | StoredRef, overlay: Path | None, home: Home
) -> _Outcome:
    with bind_unix_listener(spec.vhost_socket) as listener:
        block = BlockServerProcess(
            BlockServerSpec(
                home=home,
                image=target.signed if isinstance(target, StoredRef) else target,
                overlay=TEMPORARY if overlay is None else overlay,
                vhost_user=listener,
                once=True,
            )
        )
    with block:
        return run(partial(_run, spec, block))


async def _run(spec: GuestSpec, block: BlockServerProcess) -> _Outcome:
    await block.wait_ready()
    begun = time.monotonic()
    report: dict[str, Any] = {}
    disk_gone = trio.Event()

    async def wait_for_block_server() -> None:
        report.update(await block.finish())
        disk_gone.set()

    guest: GuestResult | None = None
    async with trio.open_nursery() as serving:
        serving.start_soon(wait_for_block_server)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_end_when_stuck, disk_gone, nursery.cancel_scope)
            guest = await run_guest(spec)
            nursery.cancel_scope.cancel()
        block.stop()
    if guest is None:
        raise GuestError("the guest let go of its disk and did not end; it was killed")
    return _Outcome(begun, guest, report)


async def _end_when_stuck(disk_gone: trio.Event, scope: trio.CancelScope) -> None:
    """A guest that ends lets go of its disk just before; one that goes on without it spins."""
    await disk_gone.wait()
    await trio.sleep(_END_SECONDS)
    scope.cancel()


@contextmanager
def _vhost_socket() -> Iterator[Path]:
    """A path for a socket that only this user can reach, in a folder that goes at the end."""
    folder = Path(tempfile.mkdtemp(prefix="p2pcloop-"))
    try:
        yield folder / "vda"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _published_append(target: ImageFile | StoredRef) -> str:
    return target.signed.manifest.boot.append if isinstance(target, StoredRef) else ""


def _status(target: ImageFile | StoredRef) -> dict[str, Any] | None:
    return target.client.call("status") if isinstance(target, StoredRef) else None


def _facts(
    target: ImageFile | StoredRef, outcome: _Outcome, before: dict[str, Any] | None, home: Home
) -> dict[str, Any]:
    """What is known after a boot; a local image crosses no wire."""
    facts: dict[str, Any] = {
        "exit": outcome.guest.reason,
        "exit_code": outcome.guest.exit_code,
        "seconds": outcome.guest.seconds,
        "block_server": outcome.block,
        "bytes_received": 0,
        "sources": {},
    }
    if isinstance(target, ImageFile):
        return facts | {"image": str(target.path), "image_stored": target.size}
    manifest = target.signed.manifest
    facts |= {
        "image": target.name,
        "manifest": target.signed.id,
        "image_size": manifest.size,
        "image_stored": sum(layer.pack_length for layer in manifest.layers),
    }
    if before is not None:
        # A connection of its own: p2pcloopd may have been started anew under a running guest.
        with ensure_daemon(home) as client:
            facts |= measure_traffic(before, client.call("status"))
    return facts


def _write_report(path: Path, facts: dict[str, Any]) -> None:
    try:
        path.write_text(to_json(facts) + "\n")
    except OSError as err:
        raise storage_error(f"cannot write the report {path}", err) from err
