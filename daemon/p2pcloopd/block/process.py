"""A block server of one's own: the process that `boot` forks for its guest.

It is forked, not started anew: the modules are loaded already, so it serves a third of a second
earlier. Two pipes connect parent and child. Over one the child sends messages of the control
protocol: an event when it is ready, one when a vhost-user front end connects or leaves, one when it
needs p2pcloopd and has no connection to one, at last its report or its error. The other carries
orders, a line each; an empty one says that a resumed guest has answered, the last one that the
parent goes on. When the parent closes it or ends, the child makes all durable and ends. Without
that last line the parent was killed, and the child deletes what it would have deleted.

Where the guest can do without its disk for a moment, a block server that is killed has a successor:
then the child is one that only forks block servers (successors.py).
"""

from __future__ import annotations

import contextlib
import math
import os
import select
import shutil
import signal
import socket
from collections.abc import Callable, Iterable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, Self

import trio

from p2pcloop.errors import DaemonError, GuestError, P2pcloopError
from p2pcloop.formats.overlay_remains import Remains
from p2pcloop.protocol.control import ControlReceiver, Event, Failure, Message, Reply, encode
from p2pcloop.words import tr
from p2pcloopd.block.opening import Disk
from p2pcloopd.block.server import serve
from p2pcloopd.block.source import StoredBackend
from p2pcloopd.block.spec import BlockServerSpec, Inherited, MemoryPart
from p2pcloopd.block.successors import run_successors
from p2pcloopd.entry import run

_RECEIVE_SIZE = 65536
_ATTACHED = ("detached", "attached")
"""Names of the events, by whether a front end has connected."""

_FAREWELL = b"."
"""The last order: the parent goes on."""

_READY, _WANTING, _DEVICES = "ready", "wanting", "devices"
_ENOUGH, _ARRIVED = "enough", "arrived"

_COPIED = "copied"
"""The order was obeyed: a `folder`, in which the worker was to copy its overlay. `path` is the
copy, or `error` says why there is none."""


class BlockServerProcess:
    """The child that serves one guest; as a context manager, it has ended when it is left."""

    def __init__(self, spec: BlockServerSpec, *, successors: bool = False) -> None:
        """Fork; this must happen before trio runs, and without other threads.

        Args:
            successors: another one goes on if it is killed, with all writes that were acknowledged.
                Front ends must connect anew then, and reads of memory just wait.
        """
        self._output, child_output = os.pipe()
        child_lifeline, self._lifeline = os.pipe()
        self._receiver = ControlReceiver()
        self._received: list[Message] = []
        self._enough = trio.Event()
        self._arrived = trio.Event()
        self._has_devices = trio.Event()
        self._memory = spec.memory
        self._copying: bytes | None = None
        self._copied, self._copies = trio.open_memory_channel[Event](math.inf)
        self._pid = os.fork()
        if not self._pid:
            os.close(self._output)
            os.close(self._lifeline)
            be = _found_a_line if successors else _serve_and_exit
            be(spec, child_output, child_lifeline)
        os.close(child_output)
        os.close(child_lifeline)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()
        # It may still write a message, which must not meet a closed pipe. The pipe ends with the
        # last of all that write to it, even if the one that forks them was killed.
        while os.read(self._output, _RECEIVE_SIZE):
            pass
        os.waitpid(self._pid, 0)
        os.close(self._output)

    def stop(self) -> None:
        """Tell it to make all durable and end."""
        if self._lifeline >= 0:
            with contextlib.suppress(OSError):  # it has ended
                os.write(self._lifeline, _FAREWELL + b"\n")
            os.close(self._lifeline)
            self._lifeline = -1

    async def copy_overlay(self, folder: Path) -> Path:
        """Have it copy its overlay, while nothing writes; `finish` must run meanwhile.

        Args:
            folder: for the copy, whose path is returned.

        Raises:
            GuestError: it has ended, or cannot.
        """
        self._copying = order = os.fsencode(folder)
        try:
            os.write(self._lifeline, _to_line(order))
        except OSError as err:
            raise GuestError("the guest's block server has ended") from err
        while (event := await self._copies.receive()).fields["folder"] != order:
            pass  # one that was killed had told that it would not come
        self._copying = None
        if "path" not in event.fields:
            raise GuestError(
                tr("the guest's changes cannot be copied: {error}", error=event.fields["error"])
            )
        return Path(os.fsdecode(event.fields["path"]))

    async def wait_ready(self) -> None:
        """Return when a front end may connect.

        Raises:
            P2pcloopError: the error that kept it from serving.
        """
        while not isinstance(await self._next(), Event):
            pass

    async def enough(self) -> None:
        """Return when a resumed guest may go on, since most of what it reads first is here
        (`Arrivals.enough`); `finish` must run meanwhile."""
        await self._enough.wait()

    async def arrived(self) -> None:
        """Return when all is here that a resumed guest's profile names; `finish` must run
        meanwhile."""
        await self._arrived.wait()

    def answered(self) -> None:
        """Tell it that a resumed guest has answered: what is needed later is fetched then."""
        with contextlib.suppress(OSError):  # it has ended
            os.write(self._lifeline, b"\n")

    async def device_state(self) -> bytes:
        """Return what QEMU wrote of a resumed guest's devices, once it is here; `finish` must run
        meanwhile."""
        await self._has_devices.wait()
        assert self._memory is not None
        assert self._memory.devices is not None
        return os.pread(self._memory.devices.file, self._memory.devices.part.length, 0)

    async def finish(
        self,
        attached: Callable[[bool], None] = lambda _: None,
        wanting: Callable[[], None] = lambda: None,
    ) -> dict[str, Any]:
        """Wait until it has made all durable; return its report.

        Args:
            attached: called with True when a vhost-user front end has connected, with False when it
                has left.
            wanting: called when it needs p2pcloopd and has no connection to one.

        Raises:
            P2pcloopError: the error that made it end.
        """
        while True:
            message = await self._next()
            if isinstance(message, Reply):
                return message.result
            if isinstance(message, Event) and message.event in _ATTACHED:
                attached(message.event == _ATTACHED[True])
            elif isinstance(message, Event) and message.event == _WANTING:
                wanting()
            elif isinstance(message, Event) and message.event == _ENOUGH:
                self._enough.set()
            elif isinstance(message, Event) and message.event == _ARRIVED:
                self._arrived.set()
            elif isinstance(message, Event) and message.event == _DEVICES:
                self._has_devices.set()
            elif isinstance(message, Event) and message.event == _READY and self._copying:
                error = "the block server was killed meanwhile"
                fields = {"folder": self._copying, "error": error}
                self._copied.send_nowait(Event(0, _COPIED, fields))
            elif isinstance(message, Event) and message.event == _COPIED:
                self._copied.send_nowait(message)

    async def _next(self) -> Message:
        while not self._received:
            await trio.lowlevel.wait_readable(self._output)
            data = os.read(self._output, _RECEIVE_SIZE)
            if not data:
                if self._memory is not None:
                    from p2pcloopd.block.memory_server import (  # noqa: PLC0415  for few guests
                        refuse_all,
                    )

                    # Else the guest's machine would wait for ever, even once it is killed.
                    refuse_all(self._memory.file)
                raise DaemonError("the block server died", hint="what it said stands above")
            self._received = self._receiver.receive(data)
        message = self._received.pop(0)
        if isinstance(message, Failure):
            raise message.error
        return message


def _found_a_line(spec: BlockServerSpec, output: int, lifeline: int) -> NoReturn:
    """Be the child that forks block servers, to the end of the last."""
    exit_code = 1
    try:
        _leave_signals_to_the_parent()
        guest = os.getppid()
        spec.home.create()
        remains = Remains.create(spec.home.tmp)
        pushes = None
        if spec.memory is not None:
            os.close(spec.memory.file.file)  # it is for readers
            pushes = _fork_pusher(spec.memory, [output, lifeline])

        def work(predecessors: int) -> NoReturn:
            inherited = Inherited(remains, predecessors, guest, pushes)
            # What came before is not known any more: what is touched now is not what is touched
            # first.
            record = spec.record_touches and not predecessors
            own = replace(spec, inherited=inherited, record_touches=record)
            _serve_and_exit(own, output, lifeline)

        exit_code = run_successors(work, lambda: not _is_cut(lifeline))
    except P2pcloopError as err:
        _send(output, Failure(0, err))
    finally:
        os._exit(exit_code)


def _fork_pusher(memory: MemoryPart, others: Iterable[int]) -> socket.socket:
    """Fork the process that pushes pages; return the socket to it, at whose end it ends.

    Args:
        others: descriptors that are not its own.
    """
    from p2pcloopd.block.memory_push import push_sockets, run_pusher  # noqa: PLC0415  for few guests

    sender, receiver = push_sockets()
    if not os.fork():
        for fd in others:
            os.close(fd)
        sender.close()
        run_pusher(receiver, memory.file.device)
        os._exit(0)
    receiver.close()
    return sender


def _is_cut(lifeline: int) -> bool:
    poll = select.poll()
    poll.register(lifeline, 0)  # it may hold an order that is not taken yet
    return bool(poll.poll(0))


def _leave_signals_to_the_parent() -> None:
    """The parent handles these: it shuts the guest down in order, and the guest needs its disk."""
    os.setsid()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


def _serve_and_exit(spec: BlockServerSpec, output: int, lifeline: int) -> NoReturn:
    """Be the child that serves, to its end. It ends by `_exit`, so that it cleans up nothing of the
    parent's, unless that was killed."""
    exit_code, killed = 1, list[bool]()
    try:
        _leave_signals_to_the_parent()
        _send(output, _serve(spec, output, lifeline, partial(killed.append, True)))
        exit_code = 0
    except BaseException:
        import traceback  # noqa: PLC0415  for a bug of ours only

        traceback.print_exc()
    finally:
        if killed:
            _clear_up(spec.leftovers)
        os._exit(exit_code)


def _clear_up(leftovers: Iterable[Path]) -> None:
    """Delete what the process that ran the guest has left: it was killed."""
    for path in leftovers:
        shutil.rmtree(path, ignore_errors=True)
        with contextlib.suppress(OSError):  # it was a folder
            path.unlink()


def _serve(
    spec: BlockServerSpec, output: int, lifeline: int, on_killed: Callable[[], object]
) -> Reply | Failure:
    ready = partial(_send, output, Event(0, _READY))
    orders, obeyed = trio.open_memory_channel[Path | None](math.inf)
    stopped = partial(_follow, lifeline, orders, on_killed)
    obey = partial(_obey, output, obeyed)

    def attached(has_come: bool) -> None:
        _send(output, Event(0, _ATTACHED[has_come]))

    wanting = partial(_send, output, Event(0, _WANTING))
    enough = partial(_send, output, Event(0, _ENOUGH))
    devices = partial(_send, output, Event(0, _DEVICES))
    arrived = partial(_send, output, Event(0, _ARRIVED))
    be = partial(serve, spec, ready, stopped, attached, wanting, obey, enough, devices, arrived)
    try:
        return Reply(0, run(be))
    except P2pcloopError as err:
        return Failure(0, err)


def _to_line(folder: bytes) -> bytes:
    """The order for a folder; its path may hold line breaks."""
    return folder.hex().encode() + b"\n"


def _from_line(line: bytes) -> Path:
    return Path(os.fsdecode(bytes.fromhex(line.decode())))


async def _follow(
    lifeline: int,
    orders: trio.MemorySendChannel[Path | None],
    on_killed: Callable[[], object],
) -> None:
    """Take orders until the parent closes the pipe, or ends: folders, or None for `answered`."""
    held, ends = b"", False
    while True:
        await trio.lowlevel.wait_readable(lifeline)
        data = os.read(lifeline, _RECEIVE_SIZE)
        if not data:
            if not ends:
                on_killed()
            return
        *lines, held = (held + data).split(b"\n")
        for line in lines:
            if line == _FAREWELL:
                ends = True
            else:
                orders.send_nowait(_from_line(line) if line else None)


async def _obey(output: int, orders: trio.MemoryReceiveChannel[Path | None], disk: Disk) -> None:
    """Copy the overlay into each folder that is ordered; note when the guest has answered."""
    async for folder in orders:
        if folder is None:
            if isinstance(disk.image, StoredBackend):
                disk.image.prefetch.answered.set()
            continue
        overlay = disk.image.device.overlay
        fields: dict[str, Any]
        try:
            if overlay is None:
                raise GuestError("its changes are no blocks of its image")
            # If the suspend is given up, the guest writes on while this copies.
            path = await trio.to_thread.run_sync(overlay.prepare_copy(), folder)
            fields = {"path": os.fsencode(path)}
        except P2pcloopError as err:
            fields = {"error": str(err)}
        _send(output, Event(0, _COPIED, {"folder": os.fsencode(folder), **fields}))


def _send(fd: int, message: Message) -> None:
    data = encode(message)
    # A parent that is gone needs no message.
    with contextlib.suppress(BrokenPipeError):
        while data:
            data = data[os.write(fd, data) :]
