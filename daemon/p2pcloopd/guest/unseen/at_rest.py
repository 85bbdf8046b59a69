"""Copies between this machine and an overlay that no guest uses, by means of an unseen guest.

The guest mounts the image and the overlay as any guest does, and runs no init: an agent alone takes
the commands that copy (guest/channel/). Nothing of the image is run.
"""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import trio

from p2pcloop.client.refs import made_on, resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import BusyError, GuestError
from p2pcloop.frozen import dataclass
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.guests import user_of_overlay
from p2pcloop.store.home import Home
from p2pcloop.store.temporary_folder import temporary_folder
from p2pcloop.words import tr
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.entry import plain_errors, run
from p2pcloopd.guest.channel.channel import Channel, GuestCommand
from p2pcloopd.guest.channel.copying import LeaveOut, Start, copy_in, copy_out
from p2pcloopd.guest.disk import choose_files, disk_of, layer_places
from p2pcloopd.guest.lifecycle import run_guest
from p2pcloopd.guest.running import RunningGuest
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.files_root import build_files_initramfs
from p2pcloopd.guest.system.initramfs import CHANNEL_MODULE, HAND_OVER, build_initramfs
from p2pcloopd.guest.with_block_server import serve_disks
from p2pcloopd.unix_listener import bind_unix_listener

_MEMORY = 256 << 20

_ALONE = replace(
    HAND_OVER,
    steps=("programs", "channel", "agent-alone"),
    modules=(CHANNEL_MODULE,),
    optional=(),
)


@dataclass(frozen=True, slots=True)
class Resting:
    """An overlay that no guest uses, and the image that it lies on.

    Attributes:
        overlay: the file; it exists.
        target: the image.
        home: of the node.
    """

    overlay: Path
    target: ImageFile | StoredRef
    home: Home


def resting(overlay: Path, base: str | None, home: Home) -> Resting:
    """Find the image of an overlay.

    Args:
        overlay: the file.
        base: the image, as the user names it; None for the one that the overlay names.
        home: of the node.

    Raises:
        BusyError: a guest of this home has the overlay open.
        P2pcloopError: it is no overlay, or its image is not known here.
    """
    if (user := user_of_overlay(home, overlay)) is not None:
        raise BusyError(
            tr("the guest {user} has {overlay} open", user=user.name, overlay=overlay),
            hint=tr("name the guest instead of the overlay: {user}:PATH", user=user.name),
        )
    target = made_on(overlay, home) if base is None else resolve_ref(base, home)
    if isinstance(target, StoredRef):
        target.check_secret()
    return Resting(overlay, target, home)


def from_overlay(rest: Resting, source: str, target: str, leave_out: LeaveOut) -> None:
    """Copy out of an overlay and the image below it. The overlay's journal is replayed, as at each
    boot; else nothing is written to it.

    Raises:
        P2pcloopError: as for `copy_out` and for boots.
    """

    async def copy(start: Start) -> None:
        await copy_out(start, source, target, leave_out)

    _with_guest(rest, copy, read_only=True)


def to_overlay(rest: Resting, source: str, target: str, leave_out: LeaveOut) -> None:
    """Copy into an overlay; errors as for `copy_in` and for boots."""

    async def copy(start: Start) -> None:
        await copy_in(start, source, target, leave_out)

    _with_guest(rest, copy, read_only=False)


def _with_guest(
    rest: Resting, copy: Callable[[Start], Awaitable[None]], *, read_only: bool
) -> None:
    files = choose_files(rest.target, rest.overlay, None, None, rest.home)
    disk = disk_of(rest.target, rest.overlay, rest.home, prefetch=False, fill=-1, files=files)
    if files is None:
        initramfs = partial(build_initramfs, ending=_ALONE)
    else:
        places = layer_places(rest.target)
        initramfs = partial(build_files_initramfs, places=places, ending=_ALONE)
    with ExitStack() as stack:
        folder = stack.enter_context(temporary_folder())
        sockets = [folder / name for name in ("vda", "vdb")[: 1 if files is None else 2]]
        spec = GuestSpec(
            sockets[0],
            memory=_MEMORY,
            console=Path(os.devnull),
            read_only=read_only,
            more_disks=tuple(sockets[1:]),
            initramfs=initramfs,
        )
        spec = replace(spec, ports_socket=spec.ports_path)
        # It is bound before the block server is forked, and belongs to this process.
        listener = stack.enter_context(bind_unix_listener(spec.ports_path))
        listener.setblocking(False)
        server = stack.enter_context(serve_disks(disk, sockets))
        run(partial(_live, spec, server, Channel(listener), copy))


async def _live(
    spec: GuestSpec,
    server: BlockServerProcess,
    channel: Channel,
    copy: Callable[[Start], Awaitable[None]],
) -> None:
    """Boot the guest, copy, and end it."""
    await server.wait_ready()
    with plain_errors():
        async with trio.open_nursery() as nursery:
            nursery.start_soon(server.finish)  # its error ends the guest
            async with trio.open_nursery() as living:
                living.start_soon(channel.serve)
                guest = await living.start(_run, spec)
                channel.wake = guest.wake_agent
                await copy(partial(_start, channel))
                living.cancel_scope.cancel()
            server.stop()


async def _run(spec: GuestSpec, *, task_status: trio.TaskStatus[RunningGuest]) -> None:
    # A signal ends it at once: it has no init that could shut down.
    result = await run_guest(spec, interrupt=lambda _number: False, task_status=task_status)
    if result.reason == "killed":  # by a signal
        raise KeyboardInterrupt
    raise GuestError(
        tr("the guest that reads the overlay ended early ({reason})", reason=result.reason),
        hint="try again",
    )


@asynccontextmanager
async def _start(channel: Channel, words: Sequence[bytes]) -> AsyncIterator[_Here]:
    async with channel.command(words, tools=True) as command:
        yield _Here(command)


class _Here:
    """A command in a guest of this process, as `copying` takes it."""

    def __init__(self, command: GuestCommand) -> None:
        self._command = command

    async def write(self, data: bytes) -> bool:
        return await self._command.send(data)

    async def end_input(self) -> None:
        self._command.end_input()

    async def read(self, *, error: bool) -> bytes:
        return await (self._command.stderr if error else self._command.stdout).read()

    async def wait(self) -> int:
        return await self._command.finish()
