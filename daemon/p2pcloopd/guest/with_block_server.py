"""A guest and its block server, from the start of both to the end of both."""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from p2pcloop import words
from p2pcloop.client.progress import without_waits
from p2pcloop.errors import GuestError, P2pcloopError, StorageError
from p2pcloop.frozen import dataclass
from p2pcloop.store.guests import OwnGuest
from p2pcloop.words import tr, translated
from p2pcloopd.block.process import BlockServerProcess
from p2pcloopd.block.spec import BlockServerSpec
from p2pcloopd.control_server import open_listener
from p2pcloopd.entry import plain_errors, run
from p2pcloopd.guest.answer import Answer
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.console.console import is_our_terminal
from p2pcloopd.guest.console.escape import BRIEF
from p2pcloopd.guest.console.screen import Log
from p2pcloopd.guest.console.status_line import status_line
from p2pcloopd.guest.control_socket import Reachable, run_reachable
from p2pcloopd.guest.events import Events
from p2pcloopd.guest.progress import Progress
from p2pcloopd.guest.report import Outcome
from p2pcloopd.guest.result import GuestResult
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system.initramfs import CHANNEL_MODULE
from p2pcloopd.guest.system.kernel import Kernel, has_module
from p2pcloopd.guest.vm import Vm
from p2pcloopd.unix_listener import bind_unix_listener

if TYPE_CHECKING:
    from p2pcloopd.guest.channel.waking import Woken

_END_SECONDS = 10

_WAKE_SECONDS = 10.0
"""A resumed guest is woken once what it touches then is here, or after so long: its clock is wrong
until then."""

_LATE_SECONDS = 30
"""A guest without a login prompt is up by then: p2pcloopd is started."""

_log = logging.getLogger(__name__)


def report_keys(overlay: Path | None) -> None:
    """Tell a user at a terminal about the escape key, and about changes that will be lost."""
    if is_our_terminal(sys.stdin.fileno()):
        told = [BRIEF, *([tr("no overlay: changes last for this boot")] if overlay is None else [])]
        print(
            *(f"p2pcloop: {translated(line)}" for line in told),
            sep="\n",
            file=sys.stderr,
            flush=True,
        )


Live = Callable[[GuestSpec, Events], Awaitable[GuestResult]]
"""Runs a guest to its end, as `run_guest` does."""

LateNode = Callable[[], object] | None
"""Starts the p2pcloopd of the guest's home; it blocks. None where one runs, or is of no use."""


@dataclass(frozen=True, slots=True)
class ReadyGuest:
    """A guest that is about to be booted.

    Attributes:
        own: its directory.
        spec: what it is.
        disk: the image, and how its block server serves it.
        outcome: gets how it went.
        listener: of its control socket, or None.
        late_node: called once the guest shows its prompt, or lacks bytes, or takes its time.
    """

    own: OwnGuest
    spec: GuestSpec
    disk: BlockServerSpec
    outcome: Outcome
    listener: trio.SocketListener | None = None
    late_node: LateNode = None


def _boot(ready: ReadyGuest, live: Live) -> None:
    """Boot a guest and wait for its end; an error is left in its outcome."""
    try:
        with serve_disks(ready.disk, ready.spec.disks, ready.spec.vm) as block:
            run(partial(_run, ready, block, live))
    except P2pcloopError as err:
        ready.outcome.error = err


def open_control(own: OwnGuest, stack: ExitStack) -> trio.SocketListener | None:
    """Listen on a guest's control socket until `stack` is closed.

    To be called before the guest's record is written: a program that finds the guest can connect,
    and is answered once the kernel runs.

    Returns:
        None where the file system of the home takes no sockets, for example; the user is told.
    """
    try:
        return stack.enter_context(open_listener(own.folder.socket_path))
    except P2pcloopError as err:
        _log.warning("`attach` and `logs --follow` do not reach the guest %s: %s", own.name, err)
        return None


def boot_reachable(
    ready: ReadyGuest, in_background: Callable[[str], None] | None, *, keep: bool, quiet: bool
) -> None:
    """Boot a guest that other programs can reach, and wait for its end.

    Args:
        in_background: called with its name once the guest runs in the background; None in the
            foreground. In the background, messages for the user go to the guest's log.
        keep: keep its record and log once it has run.
        quiet: show one line of progress on the terminal until the guest's first prompt.
    """
    own = ready.own
    log = Log(own.folder.log_path)
    with ExitStack() as stack:
        stack.callback(log.close)
        spec, channel = _with_channel(ready.spec, stack)
        if in_background is not None:
            # Before the block server is forked: its messages belong there, too.
            os.dup2(log.fd, sys.stderr.fileno())
            words.use({})  # logs are English

        def on_start() -> None:
            if keep:
                own.keep()
            if in_background is not None:
                in_background(own.name)

        if quiet:
            line = stack.enter_context(status_line())
            begun = time.time() - (time.monotonic() - ready.outcome.started)
            spec = replace(spec, progress=Progress(line, own.folder, begun))
        reach = Reachable(own.name, ready.listener, channel, log, on_start)
        _boot(replace(ready, spec=spec), partial(run_reachable, reach))


def _with_channel(spec: GuestSpec, stack: ExitStack) -> tuple[GuestSpec, Channel]:
    """Give a guest a channel for commands, where its kernel can have one.

    The socket is bound before the block server is forked, and belongs to this process.
    """
    kernel = spec.kernel
    if spec.firmware is not None:
        return spec, Channel(
            None, tr("the guest boots by its disk's own boot loader, without an agent")
        )
    if isinstance(kernel, Kernel) and not has_module(kernel, CHANNEL_MODULE):
        missing = tr(
            "the guest's kernel ({release}) lacks the module {channel_module}",
            release=kernel.release,
            channel_module=CHANNEL_MODULE,
        )
        return spec, Channel(None, missing)
    if spec.vm == "qemu":
        channel = Channel(None)
        return replace(spec, ports_user=channel), channel
    listener = stack.enter_context(bind_unix_listener(spec.ports_path))
    listener.setblocking(False)
    return replace(spec, ports_socket=spec.ports_path), Channel(listener)


def serve_disks(
    disk: BlockServerSpec, sockets: Sequence[Path], vm: Vm = "uml"
) -> BlockServerProcess:
    """Fork the process that serves an image, and its files overlay if it has one, at sockets. These
    are in a folder of their own."""
    disk = replace(disk, leftovers=(*disk.leftovers, sockets[0].parent))
    with ExitStack() as stack:
        first, *more = [stack.enter_context(bind_unix_listener(path)) for path in sockets]
        if vm == "qemu":
            files = disk.files and replace(disk.files, nbd=more[0])
            return BlockServerProcess(replace(disk, nbd=first, files=files), successors=True)
        disk = replace(disk, vhost_user=first)
        if disk.files is not None:
            disk = replace(disk, files=replace(disk.files, vhost_user=more[0]))
        return BlockServerProcess(disk)


class _Node:
    """p2pcloopd, which is started while a guest runs."""

    def __init__(self, start: LateNode) -> None:
        self._start = start
        self._wanted = trio.Event()
        self._started = trio.Event()
        if start is None:
            self._started.set()

    def want(self) -> None:
        """Have it started now, if it was not yet."""
        self._wanted.set()

    async def run(self) -> None:
        """Start it once it is wanted."""
        if self._start is None:
            return
        with trio.move_on_after(_LATE_SECONDS):
            await self._wanted.wait()
        try:
            with without_waits():  # the guest prints meanwhile
                await trio.to_thread.run_sync(self._start, abandon_on_cancel=True)
        except (P2pcloopError, OSError) as err:
            hint = getattr(err, "hint", None)
            _log.warning("p2pcloopd does not start: %s%s", err, f"; {hint}" if hint else "")
        self._started.set()

    async def finish(self) -> None:
        """Return once it was started: it is told at the guest's end what was used."""
        self.want()
        await self._started.wait()


async def _run(ready: ReadyGuest, block: BlockServerProcess, live: Live) -> None:
    outcome = ready.outcome
    await block.wait_ready()
    outcome.begun = time.monotonic()
    stuck, answer = trio.CancelScope(), Answer()

    def on_disk(attached: bool) -> None:
        # A guest lets go of its disk just before it ends; one that goes on without a disk spins.
        stuck.deadline = math.inf if attached else trio.current_time() + _END_SECONDS

    async def wait_for_block_server() -> None:
        async with trio.open_nursery() as telling:
            if ready.spec.resume is not None:
                telling.start_soon(_tell_answer, answer, block)
            outcome.block = await block.finish(on_disk, node.want)
            telling.cancel_scope.cancel()

    async with trio.open_nursery() as serving:
        node = _Node(ready.late_node)
        serving.start_soon(node.run)
        serving.start_soon(wait_for_block_server)
        with stuck:
            # Even a guest that cannot boot has read something, and the report tells it.
            try:
                with plain_errors():
                    begins = partial(on_disk, attached=True)
                    events = Events(
                        partial(_hear, outcome, answer),
                        boot=begins,
                        prompt=node.want,
                        address=partial(_keep_address, ready.own),
                    )
                    outcome.guest = await live(_served(ready, block, answer), events)
            except P2pcloopError as err:
                outcome.error = err
        await node.finish()
        block.stop()
    if outcome.guest is None and outcome.error is None:
        raise GuestError("the guest let go of its disk and did not end; it was killed")


def _hear(outcome: Outcome, answer: Answer, data: bytes) -> None:
    outcome.hear(data)
    answer.hear()


def _keep_address(own: OwnGuest, address: str) -> None:
    try:
        own.learn_address(address)
    except StorageError as err:  # it only informs
        _log.warning("the address of the guest %s is not recorded: %s", own.name, err)


async def _tell_answer(answer: Answer, block: BlockServerProcess) -> None:
    await answer.wait()
    block.answered()


def _served(guest: ReadyGuest, block: BlockServerProcess, answer: Answer) -> GuestSpec:
    """A guest as it was described, with what its block server does for it. One whose memory arrives
    while it runs goes on only once most of what it reads first is here."""
    spec = replace(guest.spec, copy_disk=block.copy_overlay)
    if spec.resume is None or guest.disk.memory is None:
        return spec

    async def ready() -> None:
        await block.enough()
        guest.outcome.went_on = time.monotonic()
        answer.begin()

    resume = replace(spec.resume, ready=ready, device_state=block.device_state)

    waking = spec.waking
    if waking is None:
        return replace(spec, resume=resume)

    async def due() -> None:
        await resume.gone_on.wait()
        if waking.late:
            await answer.wait(math.inf)  # it was asked, and this machine may be busy
        with trio.move_on_after(_WAKE_SECONDS):
            await block.arrived()

    def found(woken: Woken) -> None:
        guest.outcome.wake(reseeds=woken.reseeds)

    return replace(spec, resume=resume, waking=replace(waking, due=due, found=found))


def run_one(ready: ReadyGuest) -> None:
    """Run a guest for the one command that its first root has, and wait for its end."""
    from p2pcloopd.guest.one_command import run_command  # noqa: PLC0415  not for `boot`

    if ready.spec.vm == "qemu":
        _boot(ready, partial(run_command, None))
        return
    path = ready.spec.ports_path
    # It is bound before the block server is forked, and belongs to this process.
    with bind_unix_listener(path) as listener:
        listener.setblocking(False)
        spec = replace(ready.spec, ports_socket=path)
        _boot(replace(ready, spec=spec), partial(run_command, listener))
