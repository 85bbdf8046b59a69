"""What the page's buttons start: commands of p2pcloop, as their user would type them.

So a button does what its command does, with its checks, its words and its exit code.
"""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import trio

from p2pcloop.errors import BusyError, FormatError, StorageError
from p2pcloop.formats.packing import Fields
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.tasks import Pulse
from p2pcloopd.web.words import said

MAX_RUNNING = 16
MAX_KEPT = 20
"""Jobs that have ended and are shown yet."""

_MAX_SAID = 4000
"""Characters of its output that a job keeps: the last ones."""

_MAX_WORD = 8192
_DRAIN_SECONDS = 1
"""What a command leaves behind may hold its output open: it is read no longer than this."""

_PROGRAM = "from p2pcloop.cli.main import main; main()"


@dataclass(slots=True)
class Job:
    """A command that was started.

    Attributes:
        number: unique while p2pcloopd runs.
        words: behind `p2pcloop`, for people: what comes on standard input is not among them.
        started: when, in seconds of Unix time.
        language: of the viewer who started it.
        said: the end of what it printed.
        code: its exit code, once it has ended.
    """

    number: int
    words: Sequence[str]
    started: float
    language: str
    said: str = ""
    code: int | None = None

    def facts(self) -> dict[str, Any]:
        """For the page."""
        return {
            "id": self.number,
            "what": printable(shlex.join(["p2pcloop", *self.words])),
            "started": self.started,
            "said": self.said,
            "code": self.code,
        }


class Jobs:
    """The jobs of a node's page.

    Attributes:
        changed: notified when one began, printed something or ended.
    """

    def __init__(self, home: Home, nursery: trio.Nursery) -> None:
        self.changed = Pulse()
        self._home = home
        self._nursery = nursery
        self._jobs: dict[int, Job] = {}
        self._numbers = time.time_ns() // 1_000_000  # unique over restarts of this process

    def facts(self) -> list[dict[str, Any]]:
        """For the page: the newest first."""
        return [job.facts() for job in reversed(self._jobs.values())]

    @property
    def running(self) -> int:
        """How many have not ended."""
        return sum(job.code is None for job in self._jobs.values())

    def start(self, asked: Mapping[str, Any], language: str) -> Job:
        """Start what a button stands for, for a viewer of a language.

        Raises:
            FormatError: there is no such button, or its fields are wrong.
            BusyError: too many run.
        """
        words, typed = command_of(asked)
        if self.running >= MAX_RUNNING:
            raise BusyError(
                tr("{max_running} jobs run", max_running=MAX_RUNNING),
                hint="wait until one has ended",
            )
        self._numbers += 1
        job = self._jobs[self._numbers] = Job(self._numbers, words, time.time(), language)
        ended = [number for number, each in self._jobs.items() if each.code is not None]
        for number in ended[:-MAX_KEPT]:
            del self._jobs[number]
        self._nursery.start_soon(self._run, job, typed)
        self.changed.notify()
        return job

    async def _run(self, job: Job, typed: str) -> None:
        try:
            await self._run_command(job, typed)
        except OSError as err:
            job.said, job.code = (
                said(tr("the command cannot be run: {why}", why=err.strerror), job.language),
                StorageError.exit_code,
            )
        self.changed.notify()

    async def _run_command(self, job: Job, typed: str) -> None:
        """Run a command to its end. It is not ended with this process: the user asked for it."""
        isolated = "-I" if sys.flags.isolated else "-P"
        process = await trio.lowlevel.open_process(
            [sys.executable, isolated, "-c", _PROGRAM, *job.words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            cwd=self._folder(),
            env=_environment(job.language) | {"P2PCLOOP_HOME": str(self._home.root)},
            start_new_session=True,
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._follow, job, process)
            assert process.stdin is not None, "it was asked for"
            async with process.stdin as stdin:
                with suppress(trio.BrokenResourceError):  # it does not read it
                    await stdin.send_all(typed.encode())
            job.code = await process.wait()
            nursery.cancel_scope.deadline = trio.current_time() + _DRAIN_SECONDS

    def _folder(self) -> Path:
        """Where commands run: a path that the user types is from there."""
        try:
            folder = Path.home()
        except RuntimeError:  # the user of a service may have none
            return self._home.root
        return folder if os.access(folder, os.X_OK) else self._home.root

    async def _follow(self, job: Job, process: trio.Process) -> None:
        assert process.stdout is not None, "it was asked for"
        text = ""
        async with process.stdout as stream:
            async for data in stream:
                text = (text + data.decode(errors="replace"))[-_MAX_SAID:]
                job.said = "\n".join(map(printable, text.split("\n")))
                self.changed.notify()


def _environment(language: str) -> dict[str, str]:
    """The variables of a command that speaks a language, whatever that of p2pcloopd is."""
    found = dict(os.environ)
    if everything := found.get("LC_ALL"):  # it comes before LC_MESSAGES
        found = {name: value for name, value in found.items() if not name.startswith("LC_")}
        found["LANG"] = everything
    # In the locale C, which a service may have, LANGUAGE alone counts for nothing.
    return found | {"LC_MESSAGES": language, "LANGUAGE": language}


def command_of(asked: Mapping[str, Any]) -> tuple[list[str], str]:
    """The words of a button's command behind `p2pcloop`, and what comes on its standard input.

    Raises:
        FormatError: there is no such button, or its fields are wrong.
    """
    fields = Fields(dict(asked), tr("a request of the page"))
    make = _BUTTONS.get(fields.text("do", 20))
    if make is None:
        raise FormatError("the page has no such button")
    words, typed = make(fields)
    fields.end()
    return words, typed


def _word(fields: Fields, name: str) -> str:
    """A word that the user typed, never an option."""
    text = fields.text(name, _MAX_WORD).strip()
    if not text:
        raise FormatError(tr("`{name}` is empty", name=name))
    return text


def _options(fields: Fields, *names: str) -> list[str]:
    """Options whose fields are not empty."""
    given = {name: fields.text(name, _MAX_WORD).strip() for name in names}
    return [f"--{name}={value}" for name, value in given.items() if value]


def _fetch_link(fields: Fields) -> tuple[list[str], str]:
    # A link may hold a secret, and other users of this machine can list the words of commands.
    return ["fetch", "-"], _word(fields, "ref") + "\n"


def _on_image(command: str) -> Callable[[Fields], tuple[list[str], str]]:
    return lambda fields: ([command, "--", _word(fields, "ref")], "")


def _boot(fields: Fields) -> tuple[list[str], str]:
    ref = _word(fields, "ref")
    options = _options(fields, "name", "mem", "overlay", "net", "vm", "display")
    return ["boot", "--detach", *options, "--", ref], ""


def _publish(fields: Fields) -> tuple[list[str], str]:
    file = _word(fields, "file")
    return ["publish", *_options(fields, "name", "message"), "--", file], ""


_BUTTONS: dict[str, Callable[[Fields], tuple[list[str], str]]] = {
    "fetch": _on_image("fetch"),
    "fetch-link": _fetch_link,
    "pin": _on_image("pin"),
    "unpin": _on_image("unpin"),
    "boot": _boot,
    "stop": lambda fields: (["stop", "--", _word(fields, "name")], ""),
    "start": lambda fields: (["start", "--", _word(fields, "name")], ""),
    "publish": _publish,
}
