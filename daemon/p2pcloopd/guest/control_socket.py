"""A guest's own control socket: who may reach it, follows its console and types there.

The protocol is that of p2pcloopd's control socket (protocol/control.py). docs/formats/control.md
lists the operations. The socket lies in the guest's directory (store/guests.py), which only its
user can enter.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from dataclasses import replace
from functools import cache, partial
from typing import TYPE_CHECKING, Any

import trio

from p2pcloop.formats.packing import Fields
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.control_server import Call, ServerWords, serve_control
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.channel.operations import Commands
from p2pcloopd.guest.console.messages import say
from p2pcloopd.guest.console.prompts import PromptWatch
from p2pcloopd.guest.console.screen import Log, Recent
from p2pcloopd.guest.events import Events
from p2pcloopd.guest.lifecycle import run_attended
from p2pcloopd.guest.result import GuestResult
from p2pcloopd.guest.running import RunningGuest
from p2pcloopd.guest.spec import GuestSpec

if TYPE_CHECKING:
    from p2pcloopd.guest.suspending import Suspends

_MAX_INPUT = 1 << 16
_MAX_POSITION = 1 << 62
_MAX_ROWS = 1 << 15


@dataclass(frozen=True, slots=True)
class Reachable:
    """Where other programs reach a guest.

    Attributes:
        name: of the guest.
        listener: of its control socket; None where there is none.
        channel: to its agent.
        log: gets what it prints.
        on_start: called once it runs and its socket is served; of a resumed guest, once that has
            its state and goes on.
    """

    name: str
    listener: trio.SocketListener | None
    channel: Channel
    log: Log
    on_start: Callable[[], None]


async def run_reachable(reach: Reachable, spec: GuestSpec, events: Events) -> GuestResult:
    """Run a guest as `run_guest` does; meanwhile serve its control socket and its channel, and keep
    its log.

    Raises:
        P2pcloopError: as for `run_guest`.
    """
    recent = Recent()
    output = Output(reach.log, recent)

    async def attend(nursery: trio.Nursery, guest: RunningGuest) -> None:
        nursery.start_soon(reach.channel.serve)
        nursery.start_soon(output.wait_for_prompt)
        reach.channel.wake = guest.wake_agent
        if spec.waking is not None:
            from p2pcloopd.guest.channel.waking import wake_up  # noqa: PLC0415  few guests

            recent.prompted = True
            nursery.start_soon(wake_up, reach.channel, spec.waking, say)
        if spec.session is not None:
            from p2pcloopd.guest.channel.display_session import (  # noqa: PLC0415  few guests
                keep_session,
            )

            nursery.start_soon(keep_session, reach.channel, spec.session, say)
        if reach.listener is not None:

            @cache
            def suspends() -> Suspends:
                from p2pcloopd.guest.suspending import Suspends  # noqa: PLC0415  few guests

                return Suspends(guest, reach.channel, spec, nursery)

            perform = partial(_perform, guest, recent, Commands(reach.channel), suspends)
            serve = partial(serve_control, reach.listener, perform, server=_words(reach.name))
            await nursery.start(serve)
        if spec.resume is not None:
            await spec.resume.gone_on.wait()
        reach.on_start()

    def take(data: bytes) -> None:
        events.console(data)
        output.take(data)

    return await run_attended(spec, attend, replace(events, console=take))


def _words(name: str) -> ServerWords:
    return ServerWords(
        tr("the guest {name}", name=name),
        tr("`p2pcloop logs {name}`", name=name),
        tr("shut it down with `p2pcloop stop {name}`", name=name),
    )


class Output:
    """What the guest prints, to those who follow it and to its log."""

    def __init__(self, log: Log, recent: Recent) -> None:
        self._log = log
        self._recent = recent
        self._lost = 0
        self._watch = PromptWatch()

    async def wait_for_prompt(self) -> None:
        """Note when the guest has shown its first prompt."""
        await self._watch.wait()
        self._recent.prompted = True

    def take(self, data: bytes) -> None:
        """Take what was printed next. A full disk must not end the guest: the log has a gap."""
        self._recent.take(data)
        if not self._recent.prompted:  # later output says nothing new
            self._watch.take(data)
        gap = (
            tr("\n[{lost} bytes are lost: the disk was full]\n", lost=self._lost)
            if self._lost
            else ""
        )
        try:
            self._log.write(gap.encode() + data)
        except OSError as err:
            if not self._lost:
                say(tr("goes on without its log, which cannot be written: {why}", why=err.strerror))
            self._lost += len(data)
        else:
            self._lost = 0


async def _perform(
    guest: RunningGuest,
    recent: Recent,
    commands: Commands,
    suspends: Callable[[], Suspends],
    call: Call,
) -> dict[str, Any]:
    fields = Fields(dict(call.args), f"`{call.op}`")
    match call.op:
        case "console_position":
            fields.end()
            return {"position": recent.position, "prompted": recent.prompted}
        case "console_output":
            after = fields.integer("after", -1, _MAX_POSITION)
            fields.end()
            position, data = await recent.read(recent.start() if after < 0 else after)
            return {"position": position, "data": data}
        case "console_input":
            data = fields.blob("data", _MAX_INPUT)
            fields.end()
            await guest.send_console(data)
            return {}
        case "console_size":
            rows, columns = (fields.integer(key, 1, _MAX_ROWS) for key in ("rows", "columns"))
            fields.end()
            guest.set_window_size(struct.pack("4H", rows, columns, 0, 0))
            return {}
        case "suspend" | "suspend_end":
            return await suspends().perform(call, fields)
    return await commands.perform(call, fields)
