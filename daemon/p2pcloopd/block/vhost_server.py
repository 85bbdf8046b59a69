"""The vhost-user-blk front end of the block server: the socket, the guest's memory, the queues.

This is a thin adapter round `p2pcloop.protocol.vhost_session`: it receives messages and
descriptors, maps memory, and starts and stops a `QueueServer` for each queue.
"""

from __future__ import annotations

import array
import contextlib
import logging
import mmap
import os
import select
import socket
from collections import deque
from collections.abc import Callable, Sequence
from typing import Protocol

import trio

from p2pcloop.protocol import vhost_session, virtio_blk, virtqueue
from p2pcloop.protocol.vhost_session import Session
from p2pcloop.protocol.vhost_state import MemoryChanged, Region, RingChanged, Vring
from p2pcloop.protocol.vhost_user import (
    MAX_REGIONS,
    Message,
    MessageReader,
    ProtocolError,
    RefusedError,
)
from p2pcloop.protocol.virtqueue import GuestMemory, MemoryRegion, Virtqueue, VirtqueueError
from p2pcloop.words import tr
from p2pcloopd import accepting
from p2pcloopd.block.backend import Backend
from p2pcloopd.block.vhost_queue import QueueServer

_MAX_AHEAD = 64
"""Messages that a front end may send while a queue that it stops still ends. One that sends more is
dropped."""

_FD_SIZE = array.array("i").itemsize

_log = logging.getLogger(__name__)


async def serve_vhost_user(
    backend: Backend,
    listener: trio.socket.SocketType,
    attached: Callable[[bool], None] = lambda _: None,
    *,
    moment: float = 0,
) -> None:
    """Serve a device to one front end after the other; a second one at a time is refused.

    Args:
        backend: what is served; it is not closed.
        listener: a listening unix socket, which is closed at the end.
        attached: called with True when a front end has connected, with False when it has left.
        moment: as of `QueueServer`; for the only device of a process.
    """
    served: _Served | None = None

    async def handle(stream: trio.SocketStream) -> None:
        nonlocal served
        while served is not None:
            if not served.has_gone():
                _log.warning("vhost-user: a second front end was refused: one is connected already")
                await stream.aclose()
                return
            await served.ended.wait()
        served = _Served(stream.socket)
        attached(True)
        try:
            await serve_front_end(backend, stream.socket, moment=moment)
        finally:
            served.ended.set()
            served = None
            attached(False)

    # It goes on where a connection cannot be accepted: that is told and tried again.
    await accepting.serve(handle, [trio.SocketListener(listener)])


class _Served:
    """The front end that is connected now.

    Attributes:
        ended: set when all that served it here has ended.
    """

    def __init__(self, connection: trio.socket.SocketType) -> None:
        self.ended = trio.Event()
        self._hang_up = select.poll()
        self._hang_up.register(connection, select.POLLRDHUP)

    def has_gone(self) -> bool:
        """Whether it has hung up, even if the end was not read yet."""
        return bool(self._hang_up.poll(0))


class ServedQueue(Protocol):
    """A queue that is being served, as `QueueServer` is."""

    queue: Virtqueue

    async def run(self) -> None: ...

    async def stop(self) -> None: ...


class VhostDevice(Protocol):
    """A virtio device that can be served here.

    Attributes:
        features: feature bits of the device; those of its queues are added.
        config: its configuration space.
        queues: the number of queues that it has at most.
    """

    @property
    def features(self) -> int: ...

    @property
    def config(self) -> bytes: ...

    @property
    def queues(self) -> int: ...

    def serve_queue(self, index: int, queue: Virtqueue, vring: Vring) -> ServedQueue:
        """Return what serves a queue once its `run` is called."""


class _BlockDevice:
    """A virtio-blk device in front of a backend."""

    queues = virtio_blk.MAX_QUEUES

    def __init__(self, backend: Backend, moment: float) -> None:
        self._backend = backend
        self._moment = moment
        self.features = virtio_blk.offered_features(backend.device)
        self.config = virtio_blk.config_space(backend.device)

    def serve_queue(self, index: int, queue: Virtqueue, vring: Vring) -> QueueServer:  # noqa: ARG002  all are alike
        return QueueServer(self._backend, queue, vring, moment=self._moment)


async def serve_front_end(
    backend: Backend, connection: trio.socket.SocketType, *, moment: float = 0
) -> None:
    """Serve a block device to the front end at the other end of a socket; see `serve_device`."""
    await serve_device(_BlockDevice(backend, moment), connection)


async def serve_device(device: VhostDevice, connection: trio.socket.SocketType) -> None:
    """Serve the front end at the other end of a socket until it leaves, then close the socket.

    Requests that still wait for bytes when it leaves are dropped. A front end that breaks the
    protocol is logged and dropped.
    """
    with connection:
        front_end = _FrontEnd(device, connection)
        try:
            async with trio.open_nursery() as nursery:
                await front_end.converse(nursery)
                nursery.cancel_scope.cancel()
        finally:
            front_end.close()


class _FrontEnd:
    """One connection: its session, the memory it shares and the queues being served."""

    def __init__(self, device: VhostDevice, connection: trio.socket.SocketType) -> None:
        self._device = device
        self._socket = connection
        self._reader = MessageReader()
        self._session = Session(
            offered=device.features
            | virtqueue.F_INDIRECT_DESC
            | virtqueue.F_EVENT_IDX
            | vhost_session.F_PROTOCOL_FEATURES,
            config=device.config,
            vrings=tuple(Vring() for _ in range(device.queues)),
        )
        self._memory = _Mapping([])
        self._queues: dict[int, ServedQueue] = {}
        self._ahead: deque[Message] = deque()

    async def converse(self, nursery: trio.Nursery) -> None:
        """Carry out the front end's messages until it leaves or breaks the protocol."""
        try:
            while (message := await self._next()) is not None:
                if not await self._obey(message, nursery):
                    return
        except ProtocolError as error:
            _log.error("vhost-user: connection closed: %s", error)
        except OSError as error:
            _log.info("vhost-user: connection lost: %s", error)

    def close(self) -> None:
        """Unmap and close everything; no queue is being served any more."""
        self._queues.clear()
        self._memory.close()
        ahead = [fd for message in self._ahead for fd in message.fds]
        _close([*self._session.take_all(), *self._reader.fds, *ahead])

    async def _next(self) -> Message | None:
        return self._ahead.popleft() if self._ahead else await self._receive()

    async def _receive(self) -> Message | None:
        while True:
            data, ancillary, flags, _ = await self._socket.recvmsg(
                self._reader.wanted,
                socket.CMSG_SPACE(MAX_REGIONS * _FD_SIZE),
                socket.MSG_CMSG_CLOEXEC,
            )
            fds = array.array("i")
            for level, kind, value in ancillary:
                if (level, kind) == (socket.SOL_SOCKET, socket.SCM_RIGHTS):
                    fds.frombytes(value[: len(value) - len(value) % _FD_SIZE])
            if not data or flags & socket.MSG_CTRUNC:
                _close(fds)
            if not data:
                return None
            if flags & socket.MSG_CTRUNC:
                raise ProtocolError(
                    tr(
                        "a message with more than {max_regions} descriptors, or than can be open"
                        " here",
                        max_regions=MAX_REGIONS,
                    )
                )
            for fd in fds:
                # A descriptor must not make this process wait in a read or write. One of O_PATH
                # takes neither.
                with contextlib.suppress(OSError):
                    os.set_blocking(fd, False)
            message = self._reader.receive(data, fds)
            if message is not None:
                return message

    async def _obey(self, message: Message, nursery: trio.Nursery) -> bool:
        """Carry out a message and answer it; False if the front end has gone meanwhile."""
        refused = False
        try:
            effect = self._session.handle(message)
            if effect is not None:
                if not await self._stop_queues(effect):
                    return False
                self._carry_out(effect, nursery)
        except (RefusedError, VirtqueueError) as error:
            _log.error("vhost-user: refused: %s", str(error))
            refused = True
        finally:
            _close(self._session.take_unused())
        reply = self._session.reply(message, refused=refused)
        while reply:
            reply = reply[await self._socket.send(reply) :]
        return True

    async def _stop_queues(self, effect: MemoryChanged | RingChanged) -> bool:
        """Stop the queues that an effect touches; False if the front end left before they ended."""
        indexes = list(self._queues) if isinstance(effect, MemoryChanged) else [effect.index]
        stopping = {index: self._queues.pop(index) for index in indexes if index in self._queues}
        stopped = not stopping
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._cancel_at_end, nursery.cancel_scope)
            for index, server in stopping.items():
                await server.stop()
                self._session.vrings[index].base = server.queue.next_available
            stopped = True
            nursery.cancel_scope.cancel()
        return stopped

    async def _cancel_at_end(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` if the front end leaves; keep its messages meanwhile for later."""
        with contextlib.suppress(ProtocolError, OSError):
            while len(self._ahead) < _MAX_AHEAD and (message := await self._receive()) is not None:
                self._ahead.append(message)
        scope.cancel()

    def _carry_out(self, effect: MemoryChanged | RingChanged, nursery: trio.Nursery) -> None:
        vrings = self._session.vrings
        if isinstance(effect, MemoryChanged):
            self._memory.close()
            self._memory = _Mapping([])
            self._memory = _Mapping(self._session.regions)
            indexes = [index for index, vring in enumerate(vrings) if vring.running]
        else:
            indexes = [effect.index] if vrings[effect.index].running else []
        for index in indexes:
            self._start_queue(index, nursery)

    def _start_queue(self, index: int, nursery: trio.Nursery) -> None:
        vring = self._session.vrings[index]
        if vring.addresses is None:
            raise RefusedError(tr("queue {index} was started before it was laid out", index=index))
        descriptors, used, available = vring.addresses
        queue = Virtqueue(
            self._memory.memory,
            size=vring.size,
            descriptors=descriptors,
            available=available,
            used=used,
            next_available=vring.base,
            features=self._session.features,
        )
        self._queues[index] = self._device.serve_queue(index, queue, vring)
        nursery.start_soon(self._queues[index].run)


class _Mapping:
    """Guest memory mapped into this process."""

    def __init__(self, regions: Sequence[Region]) -> None:
        self._maps: list[mmap.mmap] = []
        try:
            self.memory = GuestMemory([self._map(region) for region in regions])
        except (OSError, ValueError, OverflowError) as error:
            self._unmap()
            raise RefusedError(tr("guest memory cannot be mapped: {error}", error=error)) from error

    def close(self) -> None:
        """Unmap it all."""
        self.memory.release()
        self._unmap()

    def _map(self, region: Region) -> MemoryRegion:
        skipped = region.file_offset % mmap.ALLOCATIONGRANULARITY
        mapped = mmap.mmap(region.fd, region.size + skipped, offset=region.file_offset - skipped)
        self._maps.append(mapped)
        view = memoryview(mapped)[skipped:]
        return MemoryRegion(region.guest_address, region.user_address, view)

    def _unmap(self) -> None:
        for mapped in self._maps:
            # A view may live on in an exception's traceback; its end unmaps the memory.
            with contextlib.suppress(BufferError):
                mapped.close()
        self._maps.clear()


def _close(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):  # it is closed, whatever its file system says of it
            os.close(fd)
