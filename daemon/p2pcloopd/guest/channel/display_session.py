"""A session on a guest's display: a command that the agent starts in each boot of the guest."""

from __future__ import annotations

from collections.abc import Callable

import trio

from p2pcloop.errors import GuestError, P2pcloopError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.entry import plain_errors
from p2pcloopd.guest.channel.channel import Channel, GuestCommand, Output
from p2pcloopd.guest.system.scripts import script

_TAIL = 4096
_LINES = 4


@dataclass(frozen=True, slots=True)
class Session:
    """What runs on the display.

    Attributes:
        command: for the image's shell.
        user: who runs it; None for the image's first ordinary user, or root where it has none.
    """

    command: str
    user: str | None = None


async def keep_session(channel: Channel, session: Session, say: Callable[[str], None]) -> None:
    """Start the session in this boot and in each later one, until cancelled.

    Args:
        channel: to the guest's agent.
        session: what to start.
        say: called when a session has begun, or ended, or cannot begin.
    """
    while True:
        try:
            await channel.wait_open()
            await _run_once(channel, session, say)
        except GuestError as err:
            if channel.is_missing:
                say(tr("has no session: {err}", err=err))
                return
        except P2pcloopError as err:
            say(tr("has no session: {err}", err=err))
        await channel.wait_gone()


async def _run_once(channel: Channel, session: Session, say: Callable[[str], None]) -> None:
    text, words = script("session"), (session.user or "", session.command)
    command_line = [text.encode(), b"session", *(word.encode() for word in words)]
    output = _Tail(session, say)
    async with channel.command(command_line, tools=True) as command:
        command.end_input()
        with plain_errors():
            async with trio.open_nursery() as nursery:
                nursery.start_soon(output.read_output, command)
                nursery.start_soon(output.read, command.stderr)
                code = await command.finish()
    said = f": {output.last_words}" if output.last_words else tr(", without a word")
    say(
        tr(
            "has no session any more: `{command}` ended with exit status {code}{said}",
            command=session.command,
            code=code,
            said=said,
        )
    )


class _Tail:
    """The end of what a session says."""

    def __init__(self, session: Session, say: Callable[[str], None]) -> None:
        self._session = session
        self._say = say
        self._tail = b""

    @property
    def last_words(self) -> str:
        """The last lines, as one."""
        return " / ".join(self._tail.decode(errors="replace").split("\n")[-_LINES - 1 :]).strip(
            " /"
        )

    async def read_output(self, command: GuestCommand) -> None:
        """Read who the session runs as, and then its output."""
        head = b""
        while b"\n" not in head and len(head) < _TAIL and (data := await command.stdout.read()):
            head += data
        user, begun, rest = head.partition(b"\n")
        if begun:
            name = user.decode(errors="replace")
            why = (
                tr(", since it has no ordinary user")
                if name == "root" != self._session.user
                else ""
            )
            self._say(
                tr(
                    "starts `{command}` as {name}{why}",
                    command=self._session.command,
                    name=name,
                    why=why,
                )
            )
        self._take(rest)
        await self.read(command.stdout)

    async def read(self, output: Output) -> None:
        """Read an output to its end."""
        while data := await output.read():
            self._take(data)

    def _take(self, data: bytes) -> None:
        self._tail = (self._tail + data)[-_TAIL:]
