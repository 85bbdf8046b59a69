"""What the page shows, kept up to date while browsers look, and only then.

One task follows p2pcloopd and looks at the guests, however many browsers look. Each gets the whole
state first, and then what changed, as server-sent events.
"""

from __future__ import annotations

import logging
from typing import Any

import trio

from p2pcloop.errors import P2pcloopError
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloopd.control_client import ControlClient
from p2pcloopd.web.http import Push
from p2pcloopd.web.jobs import Jobs
from p2pcloopd.web.views import NodeView, guest_facts

LOOK_SECONDS = 2
"""Between two looks at p2pcloopd and the guests. With 500 images a look takes p2pcloopd 30 ms."""

_BEHIND = 8
"""Events that a browser may be behind before it is hung up on: it connects anew."""


_log = logging.getLogger(__name__)


def encode_event(name: str, value: object) -> bytes:
    """One server-sent event."""
    return f"event: {name}\ndata: {to_json(value)}\n\n".encode()


class Live:
    """The state of the page, for all browsers that look."""

    def __init__(self, home: Home, jobs: Jobs, nursery: trio.Nursery) -> None:
        self._home = home
        self._jobs = jobs
        self._nursery = nursery
        self._looking: _Looking | None = None

    async def follow(self, push: Push) -> None:
        """Send the state and its changes, until the browser goes."""
        if self._looking is None or self._looking.ended:
            self._looking = _Looking(self._home, self._jobs)
            self._nursery.start_soon(self._looking.run)
        looking = self._looking
        send, receive = trio.open_memory_channel[bytes](_BEHIND)
        looking.viewers.add(send)
        try:
            await looking.ready.wait()
            await push(b"retry: 2000\n\n")
            if looking.state:
                await push(encode_event("state", looking.state))
            async for event in receive:
                await push(event)
        finally:
            looking.viewers.discard(send)
            if not looking.viewers:
                looking.scope.cancel()
                if self._looking is looking:
                    self._looking = None


class _Looking:
    """Keeps the state up to date from the first browser's coming to the last one's going.

    Attributes:
        viewers: get each event; one that is closed connects anew.
        state: what was told last.
        ready: set once there is a state, or will be none.
        ended: whether it looks no more.
    """

    def __init__(self, home: Home, jobs: Jobs) -> None:
        self.viewers: set[trio.MemorySendChannel[bytes]] = set()
        self.state: dict[str, Any] = {}
        self.ready = trio.Event()
        self.ended = False
        self.scope = trio.CancelScope()
        self._home = home
        self._jobs = jobs

    async def run(self) -> None:
        """Look until the scope is cancelled, or p2pcloopd goes away."""
        try:
            with self.scope:
                await self._run()
        except* P2pcloopError as err:
            _log.warning("the page cannot be kept up to date: %s", err.exceptions[0])
        finally:
            self.ended = True
            self.ready.set()
            for viewer in self.viewers:
                viewer.close()

    async def _run(self) -> None:
        view = NodeView(self._home)
        client = ControlClient(self._home.control_socket)
        async with trio.open_nursery() as nursery:
            await nursery.start(client.run)
            nursery.start_soon(self._watch, client, view)
            await view.fresh.wait()
            self.state = await self._look(view)
            self.ready.set()
            nursery.start_soon(self._tell_jobs)
            while True:
                await trio.sleep(LOOK_SECONDS)
                self._tell(await self._look(view))

    async def _watch(self, client: ControlClient, view: NodeView) -> None:
        await client.call("watch", view.take, changes=True, every=LOOK_SECONDS)

    async def _tell_jobs(self) -> None:
        """Tell of jobs at once: their user waits for them."""
        while True:
            await self._jobs.changed.wait()
            self._tell(self.state | {"jobs": self._jobs.facts()})

    async def _look(self, view: NodeView) -> dict[str, Any]:
        guests = await trio.to_thread.run_sync(guest_facts, self._home)
        return view.facts() | {"guests": guests, "jobs": self._jobs.facts()}

    def _tell(self, state: dict[str, Any]) -> None:
        """Send the changes to all who look."""
        changes = differences(self.state, state)
        self.state = state
        if not changes:
            return
        event = encode_event("change", changes)
        for viewer in tuple(self.viewers):
            try:
                viewer.send_nowait(event)
            except trio.WouldBlock:
                viewer.close()
                self.viewers.discard(viewer)


def differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, Any]:
    """What changed of a state: of `images` those that are new or others, and `gone` their names; of
    everything else all of it."""
    changes = {key: value for key, value in now.items() if before.get(key) != value}
    if "images" in changes:
        earlier, images = before.get("images", {}), now["images"]
        changes["images"] = {k: v for k, v in images.items() if earlier.get(k) != v}
        changes["gone"] = [name for name in earlier if name not in images]
    return changes
