"""Serve one virtqueue of a vhost-user-blk device in trio.

A request whose bytes are here is answered inline, in the task that waits for the kick: a task for
each request would cost several times as much as a small read. Only a request that lacks bytes, and
FLUSH, get tasks; these return their chains when they are done, in any order.
"""

from __future__ import annotations

import logging
import os
import select
import time
from collections.abc import Awaitable, Callable

import trio

from p2pcloop.errors import P2pcloopError, StorageError
from p2pcloop.image.api import Missing
from p2pcloop.protocol.vhost_state import Vring
from p2pcloop.protocol.virtio_blk import Kind, RefusedError, Request, Status, plan
from p2pcloop.protocol.virtqueue import Virtqueue, VirtqueueError
from p2pcloopd.block.backend import Backend, complete

_ONE = (1).to_bytes(8, "little")
_BATCH_REQUESTS = 256
_BATCH_BYTES = 1 << 20
"""Requests answered before the driver is called and other tasks have their turn."""

MOMENT = 0.004
"""Seconds for which the only queue of a process waits for the next kick by itself. A guest that
boots kicks again within that time, as a rule."""

_MOMENTS = 5
"""Moments after which other tasks have their turn at the latest."""

_log = logging.getLogger(__name__)


class QueueServer:
    """Serves a queue from `run` until `stop`.

    Attributes:
        queue: the ring; no other object touches it.
        vring: its `call` is read each time, since a front end may replace it.
    """

    def __init__(
        self, backend: Backend, queue: Virtqueue, vring: Vring, *, moment: float = 0
    ) -> None:
        """`moment`: seconds to wait for a kick while other tasks have to wait, too; 0 for none."""
        assert vring.kick is not None
        self.queue = queue
        self.vring = vring
        self._backend = backend
        self._kicks = _Kicks(vring.kick, moment)
        self._taking = trio.CancelScope()
        self._ended = trio.Event()
        self._nursery: trio.Nursery
        self._last_error = ""

    async def run(self) -> None:
        """Serve until `stop`, or until the ring is broken; return when all taken requests are
        done."""
        try:
            async with trio.open_nursery() as self._nursery:
                with self._taking:
                    await self._take_requests()
        finally:
            self.queue.release()
            self._ended.set()

    async def stop(self) -> None:
        """Take no more requests, and return when those that were taken are done.

        A front end that stops a queue relies on that: it does not offer a request again, so a
        dropped one would never end for the guest.
        """
        self._taking.cancel()
        await self._ended.wait()

    async def _take_requests(self) -> None:
        try:
            while True:
                self.queue.refuse_kicks()
                while self._answer_batch() or self.queue.want_kicks():
                    await self._kicks.let_others_run()
                # Tasks that wait for bytes must have them at once.
                await self._kicks.wait(alone=not self._nursery.child_tasks)
        except (VirtqueueError, OSError) as error:
            self._give_up(error)

    def _answer_batch(self) -> bool:
        """Answer what is in the ring, up to a limit; True if there may be more."""
        requests = moved = 0
        try:
            while requests < _BATCH_REQUESTS and moved < _BATCH_BYTES:
                chain = self.queue.pop()
                if chain is None:
                    return False
                request = Request(chain)
                self._answer(request)
                requests += 1
                moved += request.written
            return True
        finally:
            self._publish()

    def _answer(self, request: Request) -> None:
        status = Status.OK
        try:
            if request.kind == Kind.FLUSH:
                self._nursery.start_soon(self._finish_later, request, self._backend.flush)
                return
            call = plan(request, self._backend.device)
            try:
                call()
            except Missing as missing:
                # Without its traceback, whose frames refer to requests that are done.
                self._complete_later(request, call, missing.with_traceback(None))
                return
        except P2pcloopError as error:
            status = self._record(error)
        self._finish(request, status)
        if status is not Status.OK:
            request.release()

    def _complete_later(self, request: Request, call: Callable[[], None], missing: Missing) -> None:
        async def work() -> None:
            await complete(self._backend, call, missing)

        self._nursery.start_soon(self._finish_later, request, work)

    async def _finish_later(self, request: Request, work: Callable[[], Awaitable[None]]) -> None:
        status = Status.OK
        try:
            try:
                await work()
            except P2pcloopError as error:
                status = self._record(error)
            self._finish(request, status)
            self._publish()
        finally:
            request.release()

    def _finish(self, request: Request, status: Status) -> None:
        request.finish(status)
        self.queue.push(request.chain, request.written)

    def _publish(self) -> None:
        if not self.queue.publish() or self.vring.call is None:
            return
        try:
            os.write(self.vring.call, _ONE)
        except BlockingIOError:
            pass  # so many calls wait there that one more changes nothing
        except OSError as error:
            self._give_up(error)

    def _record(self, error: P2pcloopError) -> Status:
        """Return the status of an error for the driver; log the error unless it repeats the last.

        The device has no status for a full disk: ENOSPC too is an I/O error to the guest.
        """
        if str(error) != self._last_error:
            self._last_error = str(error)
            level = logging.INFO if isinstance(error, RefusedError) else logging.ERROR
            errno = f" (errno {error.errno})" if isinstance(error, StorageError) else ""
            _log.log(level, "vhost-user: request failed: %s%s", self._last_error, errno)
        return error.status if isinstance(error, RefusedError) else Status.IOERR

    def _give_up(self, error: Exception) -> None:
        """Leave the ring alone until the front end starts it anew; tell it, if it asked for
        that."""
        # A guest that has ended reads no more, and that is no fault.
        level = logging.DEBUG if isinstance(error, BrokenPipeError) else logging.ERROR
        _log.log(level, "vhost-user: queue stopped: %s", str(error))
        self._taking.cancel()
        if self.vring.err is not None:
            try:
                os.write(self.vring.err, _ONE)
            except OSError as failure:
                _log.log(level, "vhost-user: the front end could not be told: %s", failure)


class _Kicks:
    """Waits for the driver's kicks.

    For a kick that comes soon it waits without trio, which takes a tenth of the processor time.
    Other tasks of this process have to wait meanwhile, so it does that for a short time only.
    """

    def __init__(self, descriptor: int, moment: float) -> None:
        self._descriptor = descriptor
        self._moment = moment
        self._turn_ends = 0.0
        self._poll = select.poll()
        self._poll.register(descriptor, select.POLLIN)

    async def let_others_run(self) -> None:
        """Let other tasks run; they have to wait again after that."""
        await trio.lowlevel.checkpoint()
        self._begin_turn()

    async def wait(self, *, alone: bool) -> None:
        """Return when there was a kick.

        Args:
            alone: whether other tasks may have to wait for a moment.

        Raises:
            VirtqueueError: the descriptor was closed.
            OSError: it is none that can be read.
        """
        if not (alone and self._comes_soon()):
            await trio.lowlevel.wait_readable(self._descriptor)
            self._begin_turn()
        if not os.read(self._descriptor, 8):
            raise VirtqueueError("the kick descriptor was closed")

    def _begin_turn(self) -> None:
        self._turn_ends = time.monotonic() + _MOMENTS * self._moment

    def _comes_soon(self) -> bool:
        """Wait for a kick for a moment, unless others have waited long enough."""
        if time.monotonic() >= self._turn_ends:
            return False
        return bool(self._poll.poll(self._moment * 1000))
