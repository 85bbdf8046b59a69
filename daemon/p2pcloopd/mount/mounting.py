"""A mount from its start to its end."""

from __future__ import annotations

import logging
import os
import shlex
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import trio

from p2pcloop.store.home import Home
from p2pcloopd.control_client import ReconnectingClient
from p2pcloopd.entry import allow_many_files
from p2pcloopd.fusermount import (
    TABLE,
    Mounted,
    is_connected,
    is_shown,
    mount,
    mounted_at,
    unmount_command,
)
from p2pcloopd.mount.images import Images
from p2pcloopd.mount.tree import Known, Root
from p2pcloopd.mount.tree_server import TreeServer

_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class MountSpec:
    """What is mounted where.

    Attributes:
        home: the node whose images are shown.
        path: a directory that `fusermount.prepare` has checked.
        everyone: other users may read it, too.
    """

    home: Home
    path: Path
    everyone: bool = False


async def serve_mount(spec: MountSpec, ready: Callable[[], None]) -> None:
    """Mount and serve until the tree is unmounted and nothing of it is open any more.

    What counts is the mount namespace of this process. One that was made meanwhile (a container, a
    sandbox) has the mount as well, and does not hear of its end: that would keep it for ever.

    A signal unmounts it. A second one ends it at once: programs that still have a file of it open
    get errors.

    Args:
        ready: called when the tree can be used.

    Raises:
        UsageError: fusermount3 refuses.
        KernelProtocolError: the kernel is too old.
    """
    allow_many_files()
    fd = mount(spec.path, everyone=spec.everyone)
    ours = mounted_at(spec.path)
    try:
        async with trio.open_nursery() as nursery:
            client = ReconnectingClient(spec.home.control_socket, lambda: _report_gone(spec.home))
            await nursery.start(client.run)
            images = Images(spec.home, client, nursery, spec.path)
            server = TreeServer(fd, Root(Known(spec.home, client, images, int(time.time()))))
            nursery.start_soon(_serve, server, fd, spec.path, ours, nursery.cancel_scope)
            nursery.start_soon(_end_unmounted, ours, server, nursery.cancel_scope)
            await nursery.start(_unmount_at_signal, spec.path, ours, server, nursery.cancel_scope)
            ready()
    finally:
        await _unmount_if_it_lives(fd, spec.path, ours)
        os.close(fd)


async def _serve(
    server: TreeServer, fd: int, path: Path, ours: Mounted | None, scope: trio.CancelScope
) -> None:
    try:
        await server.run()
    finally:
        # Not only once all is closed: until then, requests would wait for a server that is gone.
        await _unmount_if_it_lives(fd, path, ours)
    scope.cancel()


async def _end_unmounted(ours: Mounted | None, server: TreeServer, scope: trio.CancelScope) -> None:
    """End once the file system is mounted nowhere here, and nothing of it is open."""
    if ours is None:
        return
    async with trio.open_nursery() as nursery:
        # A look and the wait behind it are two steps. A change between them is lost for this
        # watch, as each descriptor is told once. The other one waits meanwhile, or looks later.
        for _ in range(2):
            nursery.start_soon(_watch_mounts, ours, nursery.cancel_scope)
    await server.wait_unused()
    scope.cancel()


async def _watch_mounts(ours: Mounted, gone: trio.CancelScope) -> None:
    with TABLE.open("rb") as table:
        while is_shown(ours):
            # The file is always readable and never writable: a wait for the latter ends by the
            # error alone.
            await trio.lowlevel.wait_writable(table)
    gone.cancel()


async def _unmount_if_it_lives(fd: int, path: Path, ours: Mounted | None) -> None:
    """Unmount after an error, or after a second signal before the first was done: a mount without
    its process would be in the way. Nothing is asked of the tree for it.

    Once a file system is unmounted, the next one may get its numbers: so its successor at the same
    place would look like it, but for the descriptor.
    """
    if is_connected(fd):
        with trio.CancelScope(shield=True):
            await _unmount(path, ours)


async def _unmount_at_signal(
    path: Path,
    ours: Mounted | None,
    server: TreeServer,
    scope: trio.CancelScope,
    *,
    task_status: trio.TaskStatus[None],
) -> None:
    with trio.open_signal_receiver(*_SIGNALS) as signals:
        task_status.started()
        async for _ in signals:
            break
        await _unmount(path, ours)
        if server.open_files:
            _log.warning(
                "%s is unmounted; open files are served until they are closed: %d; a second Ctrl-C"
                " ends this at once",
                *(path, server.open_files),
            )
        async for _ in signals:
            break
        scope.cancel()


async def _unmount(path: Path, ours: Mounted | None) -> None:
    """Unmount our file system, if it is still there; files of it may be open."""
    if ours is None or mounted_at(path) != ours:
        return
    done = await trio.run_process(
        unmount_command(path), capture_stdout=True, capture_stderr=True, check=False
    )
    if done.returncode:
        _log.warning("%s", done.stderr.decode("utf-8", "replace").strip())


def _report_gone(home: Home) -> None:
    _log.warning(
        "a reader waits: no p2pcloopd runs on %s; start it with `p2pcloop daemon start --home %s`",
        *(home.root, shlex.quote(str(home.root))),
    )
