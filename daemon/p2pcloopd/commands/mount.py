"""`p2pcloop mount`: the images that a node knows, as files."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click

from p2pcloop import words
from p2pcloop.cli.options import DirectoryPath, home_option
from p2pcloop.client.daemon import ensure_daemon, open_log
from p2pcloop.client.terminal import log_to_stderr, notify
from p2pcloop.store.home import Home
from p2pcloop.words import tr
from p2pcloopd.entry import run
from p2pcloopd.fusermount import check_device, prepare, real_path
from p2pcloopd.mount.mounting import MountSpec, serve_mount

_EPILOG = """
\b
Examples:
  p2pcloop mount p2p --detach
  ls p2p/@*/*
  qemu-img info p2p/@kbth.../debian/disk.img
  losetup --find --show --read-only p2p/@kbth.../debian/versions/3/disk.img
  p2pcloop umount p2p

Each image has a directory @KEY/LABEL with disk.img (its device, which is fetched as it is read),
manifest.json, and versions/N with the same of each version. A name that was never seen is looked
for when it is named, as `p2pcloop boot` does. Nothing can be written.
"""


@click.command(epilog=_EPILOG)
@click.argument("directory", type=DirectoryPath())
@click.option(
    "--detach", is_flag=True, help="Return once it is mounted; it is served in the background."
)
@click.option(
    "--allow-other",
    is_flag=True,
    help="Other users of this machine may read it, too; where root allows it.",
)
@home_option
def command(directory: Path, home: Home, *, detach: bool, allow_other: bool) -> None:
    """Show the images that this node knows as files below DIRECTORY, which must be empty.

    It lasts until Ctrl-C or `p2pcloop umount`. Files that are open then stay readable until they
    are closed.
    """
    log_to_stderr(logging.WARNING, "p2pcloop: %(message)s")
    path = real_path(directory)
    check_device()
    prepare(path, lambda text: notify(tr("p2pcloop: {text}", text=text)))
    ensure_daemon(home).close()
    spec = MountSpec(home, path, everyone=allow_other)
    if not detach:
        end = tr("Ctrl-C or `p2pcloop umount {directory}` ends it", directory=directory)
        run(
            partial(
                serve_mount,
                spec,
                lambda: notify(tr("mounted at {directory}; {end}", directory=directory, end=end)),
            )
        )
        return
    from p2pcloopd.commands.background import in_background  # noqa: PLC0415  only with --detach

    mounted = in_background(partial(_serve, spec), tr("the mount"))
    notify(
        tr(
            "mounted at {mounted}; `p2pcloop umount {directory}` ends it",
            mounted=mounted,
            directory=directory,
        )
    )


def _serve(spec: MountSpec, started: Callable[[str], None]) -> int:
    """Serve in the background; what is to be told goes to a log of the home."""

    def ready() -> None:
        with open_log(spec.home.mount_log) as log:
            os.dup2(log, 2)
        words.use({})  # logs are English
        started(str(spec.path))

    run(partial(serve_mount, spec, ready))
    return 0
