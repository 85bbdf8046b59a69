"""The programs as a user runs them: nodes with a home each, and guests on a terminal."""

from __future__ import annotations

import contextlib
import io
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple, Self

from p2pcloop.client.control_client import ControlClient
from p2pcloop.errors import NotHereError
from p2pcloop.protocol.control import ControlReceiver, Event
from p2pcloop.store.guests import find_guest, list_guests
from p2pcloop.store.home import Home
from tests.support.documented import check_documented
from tests.support.fork_server import Forked, fork_program
from tests.support.waiting import BOUND, wait_until
from tools.console import Console
from tools.tiny_image import SHELL_PROMPT

GUEST_OPTIONS = ("--mem", "128M", "--append", "quiet")
"""Options of guests that suffice for tests."""

EXEC = ("exec", "--wait", str(round(BOUND)))
"""For guests in QEMU: those boot slowly on a machine that has other work."""

NO_HEDGE: dict[str, float] = {"exact_hedge": BOUND, "exact_limit": BOUND}
"""Constants of a node which asks peers for nothing that a server is asked for, though that does not
answer within a second: on a busy machine one may not."""

_LOGIN = "import os, sys; os.login_tty(os.dup(0)); os.execv(sys.argv[1], sys.argv[1:])"

P2PCLOOP = Path(sys.executable).with_name("p2pcloop")
"""The console script that `pip install` made."""


class Done(NamedTuple):
    """What a program that has ended said."""

    out: str
    err: str


class Node:
    """One node: a home, and the commands on it. p2pcloopd is started by those that need it, or by
    `start`; the home stays when it is ended and started again.

    Attributes:
        root: P2PCLOOP_HOME, with a path short enough for a socket.
        inside: words before each command (`nsenter ...`), for a node in a namespace of its own.
        process: the p2pcloopd that `start` started, until `end`.
        tuning: constants of the engine (tuning.py) that its p2pcloopd has otherwise, where that is
            a fork: what a busy machine would let happen now and then.
    """

    def __init__(
        self,
        root: Path,
        config: str = "",
        inside: Sequence[str] = (),
        tuning: Mapping[str, float] | None = None,
    ) -> None:
        self.root = root
        self.inside = tuple(inside)
        self.tuning = dict(tuning or {})
        self.environment = os.environ | {"P2PCLOOP_HOME": str(root)}
        self.process: Forked | None = None
        if config:
            self.configure(config)

    @property
    def home(self) -> Home:
        return Home.at(self.root)

    def configure(self, config: str) -> None:
        """Write config.toml."""
        self.root.mkdir(mode=0o700, exist_ok=True)
        self.home.config.write_text(config)

    def start(self) -> None:
        """Start p2pcloopd as a child of this process; return when it is ready."""
        self.process, said = self.launch()
        [message] = ControlReceiver().receive(said)
        assert isinstance(message, Event), message
        assert message.event == "ready"

    def launch(self) -> tuple[Forked, bytes]:
        """Start p2pcloopd; return it and what it says when it is ready or has failed."""
        self.home.create()
        read_end, write_end = os.pipe()
        with open(self.home.log, "ab") as log, open(read_end, "rb") as ready:
            words = ["--home", str(self.root), "--ready-fd", "3"]
            fds = {0: 0, 1: 1, 2: log.fileno(), 3: write_end}
            process = fork_program("p2pcloopd", words, os.environ, fds, tuning=self.tuning)
            os.close(write_end)
            return process, ready.read()

    def end(self, number: signal.Signals) -> int:
        """Send the p2pcloopd that `start` started a signal; return its exit code."""
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(BOUND)
        self.process = None
        return code

    def connect(self) -> ControlClient:
        """A client of the p2pcloopd that runs."""
        return ControlClient.connect(self.home)

    def call(self, op: str, **args: Any) -> dict[str, Any]:
        """Have the p2pcloopd that runs do one operation."""
        with self.connect() as client:
            return client.call(op, **args)

    def stage(self, files: Mapping[str, bytes], top: str = "layer") -> Path:
        """Put the files of a torrent where the operation `seed` takes them; the directory."""
        staging = Path(tempfile.mkdtemp(dir=self.home.tmp))
        for name, data in files.items():
            path = staging / "data" / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return staging

    def command(self, *words: str | Path) -> list[str]:
        """The argument list of `p2pcloop WORDS` on this node."""
        return [*self.inside, str(P2PCLOOP), *map(str, words)]

    @contextlib.contextmanager
    def started(self, *words: str | Path, **options: Any) -> Iterator[subprocess.Popen[str]]:
        """A running command; it is killed when the block is left, if it has not ended."""
        with started(self.command(*words), env=self.environment, **options) as process:
            yield process

    def run(self, *words: str | Path, code: int = 0) -> Done:
        """Run a command to its end and check its exit code."""
        if self.inside:
            with self.started(*words) as process:
                done, returned = Done(*process.communicate(timeout=BOUND)), process.returncode
        else:
            done, returned = self._forked(*words)
        assert returned == code, (words, returned, done, self.tail())
        return done

    def _forked(self, *words: str | Path) -> tuple[Done, int | None]:
        (out, out_end), (err, err_end) = os.pipe(), os.pipe()
        with open(os.devnull) as null:
            fds = {0: null.fileno(), 1: out_end, 2: err_end}
            process = fork_program(
                "p2pcloop", [str(w) for w in words], self.environment, fds, tuning=self.tuning
            )
        os.close(out_end)
        os.close(err_end)
        said = process.communicate([out, err], BOUND)
        # Its ends of lines are made "\n", as those of `started` are.
        texts = (io.StringIO(each.decode(), newline=None).getvalue() for each in said)
        return Done(*texts), process.returncode

    def json(self, *words: str | Path, code: int = 0) -> dict[str, Any]:
        """Run a command with --json; return what it printed."""
        answer: dict[str, Any] = json.loads(self.run(*words, "--json", code=code).out)
        check_documented(words, answer)
        return answer

    def seed(self, image: Path, label: str = "image", *options: str) -> dict[str, Any]:
        """Seed an image, which may be noise; return what the command said."""
        return self.json("seed", image, "--name", label, "--raw", *options)

    def torrents(self) -> dict[str, dict[str, Any]]:
        """What `status` tells of each torrent, by its info hash in hexadecimal."""
        return {torrent["info_hash"]: torrent for torrent in self.json("status")["torrents"]}

    def signal(self, number: signal.Signals) -> None:
        """Send the node's p2pcloopd a signal; after SIGKILL, wait for its end."""
        pid = self.home.holder()
        assert pid is not None, f"no p2pcloopd runs on {self.root}"
        with pidfd(pid) as process:
            signal.pidfd_send_signal(process, number)
            if number == signal.SIGKILL:
                assert wait_readable(process), "p2pcloopd outlives SIGKILL"

    def tail(self) -> str:
        """The end of p2pcloopd's log, for a failure's message."""
        log = self.home.log
        return log.read_text()[-2000:] if log.exists() else "(no daemon.log)"

    def remove(self) -> None:
        """End its guests in the background and its p2pcloopd, whatever state they are in."""
        for guest in list_guests(self.home):
            if guest.state == "running":
                with contextlib.suppress(NotHereError):  # it was about to end, and is forgotten
                    self.kill_guest(guest.record.name)
        if self.process is not None:
            self.end(signal.SIGKILL)
        pid = self.home.holder() if self.root.exists() else None
        if pid is not None:
            with contextlib.suppress(ProcessLookupError), pidfd(pid) as process:  # it may just end
                signal.pidfd_send_signal(process, signal.SIGKILL)
                assert wait_readable(process), "p2pcloopd outlives SIGKILL"

    def kill_guest(self, name: str) -> None:
        """End a guest with all of its processes at once."""
        for process in descendants(find_guest(self.home, name).record.pid):
            process.kill()
            process.wait()


class Nodes:
    """Makes nodes and takes all of them down."""

    def __init__(self) -> None:
        # pytest's own directories are too deep for a socket's name.
        self.directory = Path(tempfile.mkdtemp(prefix="p2pe-"))
        self._nodes: list[Node] = []

    def make(
        self,
        config: str = "",
        inside: Sequence[str] = (),
        root: Path | None = None,
        tuning: Mapping[str, float] | None = None,
    ) -> Node:
        """A node that does not run yet."""
        node = Node(root or self.directory / f"n{len(self._nodes)}", config, inside, tuning)
        self._nodes.append(node)
        return node

    def start(self, config: str = "", tuning: Mapping[str, float] | None = None) -> Node:
        """Make a node, and start its p2pcloopd."""
        node = self.make(config, tuning=tuning)
        node.start()
        return node

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        for node in self._nodes:
            node.remove()
        wait_until(self._is_removed, f"that nothing writes into {self.directory}")

    def _is_removed(self) -> bool:
        """Remove the directory. What a killed command has forked may still write there: its block
        server makes all durable, and ends."""
        with contextlib.suppress(OSError):
            shutil.rmtree(self.directory)
        return not self.directory.exists()


class OnTerminal(Console):
    """A command of p2pcloop, on a terminal of its own, where a guest's console is seen."""

    def __init__(
        self,
        node: Node,
        *words: str | Path,
        controlling: bool = False,
        installed: bool = True,
    ) -> None:
        """Start `p2pcloop WORDS`.

        Args:
            controlling: whether it is the command's controlling terminal, which then gets its
                standard error, too.
            installed: whether it is the installed program, and not a fork.
        """

        def fork(_: Sequence[str], terminal: int, errors: int) -> Forked:
            fds = {0: terminal, 1: terminal, 2: errors}
            return fork_program(
                "p2pcloop", said, node.environment, fds, session=True, tuning=node.tuning
            )

        said = [str(word) for word in words]
        # A guest that must be ended is none that a test still wants something of.
        logs = Path(tempfile.mkdtemp(prefix="console-", dir=node.root.parent))
        self.log, self.errors = logs / "out", logs / "err"
        command = node.command(*words)
        if controlling:
            command = [sys.executable, "-c", _LOGIN, *command]
        super().__init__(
            command, log=self.log, errors=self.errors, env=node.environment, patience=0,
            start=None if installed or node.inside else fork,
        )  # fmt: skip

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if error is not None:
            error.add_note(f"console:\n{self.printed[-3000:]}\nstderr:\n{self.said}")
        super().__exit__(kind, error, trace)

    @property
    def printed(self) -> str:
        """All that the console showed so far."""
        return self.log.read_text(errors="replace")

    @property
    def said(self) -> str:
        """What the command itself said on standard error so far."""
        return self.errors.read_text(errors="replace")

    def prompt(self) -> None:
        """Wait for the guest's shell."""
        self.expect(SHELL_PROMPT, BOUND)

    def sh(self, command: str) -> str:
        """Run a command in the guest's shell; return what it printed."""
        return self.run(command, BOUND)


class Guest(OnTerminal):
    """A guest that `p2pcloop boot` runs on a terminal of its own: a fork, where it need not be the
    installed program."""

    def __init__(
        self, node: Node, ref: str | Path, *options: str | Path, installed: bool = False
    ) -> None:
        super().__init__(node, "boot", ref, *GUEST_OPTIONS, *options, installed=installed)

    def processes(self) -> list[Process]:
        """`boot`, its block server, and what runs the guest."""
        return descendants(self.process.pid)

    def kill(self) -> None:
        """End the guest, its block server and `boot` at once."""
        # A block server that sees its worker end would fork the next one.
        for process in self.processes():
            process.send(signal.SIGSTOP)
        boot, *others = self.processes()
        # Block server and guest first: `boot` must not end them in its own way.
        for process in [*reversed(others), boot]:
            process.kill()
        self.wait(BOUND)
        for process in others:
            process.wait()

    def power_off(self) -> None:
        """Shut the guest down from inside; `boot` must end well."""
        self.send_line("poweroff")
        code = self.wait(BOUND)
        assert code == 0, (code, self.printed[-2000:], self.said)


class Process(NamedTuple):
    """A process, told from a later one of the same number by when it started."""

    pid: int
    start: str

    def runs(self) -> bool:
        """Whether it has not ended; a zombie has."""
        fields = _stat(self.pid)
        return fields is not None and fields[19] == self.start and fields[0] not in "ZX"

    def program(self) -> str:
        """The name of the program that it runs (proc_pid_comm(5)); empty when it has ended."""
        try:
            return Path(f"/proc/{self.pid}/comm").read_text().strip()
        except OSError:
            return ""

    def wait(self) -> None:
        """Wait for its end, at most `BOUND` seconds."""
        with contextlib.suppress(ProcessLookupError), pidfd(self.pid) as fd:
            if self.runs():
                assert wait_readable(fd), f"process {self.pid} does not end"

    def kill(self) -> None:
        """End it at once, if it has not ended."""
        self.send(signal.SIGKILL)

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, if it has not ended."""
        with contextlib.suppress(ProcessLookupError), pidfd(self.pid) as fd:
            if self.runs():
                signal.pidfd_send_signal(fd, number)


def descendants(pid: int) -> list[Process]:
    """The process, its children, theirs, and so on; parents come before their children."""
    children: dict[int, list[Process]] = {}
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        fields = _stat(int(entry.name))
        if fields is not None:
            process = Process(int(entry.name), fields[19])
            children.setdefault(int(fields[1]), []).append(process)
            if process.pid == pid:
                found.append(process)
    for process in found:
        found += children.get(process.pid, [])
    return found


def descendant(pid: int, program: str) -> Process:
    """The process's descendant that runs a program; waits until one does: where a program is
    started by others (bubblewrap), their processes are seen before it."""
    found: list[Process] = []

    def is_found() -> bool:
        found[:] = [process for process in descendants(pid) if process.program() == program]
        return bool(found)

    wait_until(is_found, f"process {pid} has started no {program}")
    return found[0]


def _stat(pid: int) -> list[str] | None:
    """The fields of /proc/PID/stat from the third (the state) on."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return None


@contextlib.contextmanager
def started(command: Sequence[str | Path], **options: Any) -> Iterator[subprocess.Popen[str]]:
    """A running program whose output is piped; it is killed when the block is left."""
    pipes: dict[str, Any] = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "text": True,
    }
    with subprocess.Popen([str(word) for word in command], **(pipes | options)) as process:
        try:
            yield process
        finally:
            process.kill()


def tool(*words: str | Path, code: int = 0) -> str:
    """Run a foreign program to its end; its standard output."""
    with started(words, env=os.environ | {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}) as run:
        out, err = run.communicate(timeout=BOUND)
    assert run.returncode == code, (words, run.returncode, out, err)
    return out


def read_until(process: subprocess.Popen[str], text: str) -> str:
    """Read a program's standard error up to the line that holds `text`; return that line.

    Lines that came together wait in the stream, and its descriptor does not tell of them: so what
    ends this is a program that ends.
    """
    assert process.stderr is not None
    seen = []
    late = threading.Timer(BOUND, process.kill)
    late.start()
    try:
        for line in iter(process.stderr.readline, ""):
            if text in line:
                return line
            seen.append(line)
    finally:
        late.cancel()
        late.join()
    raise AssertionError(f"no {text!r} in {seen}")


@contextlib.contextmanager
def pidfd(pid: int) -> Iterator[int]:
    """A descriptor of a process, readable once it has ended."""
    fd = os.pidfd_open(pid)
    try:
        yield fd
    finally:
        os.close(fd)


def wait_readable(fd: int) -> bool:
    """Wait, at most `BOUND` seconds, until a descriptor is readable."""
    waiting = select.poll()
    waiting.register(fd, select.POLLIN)
    return bool(waiting.poll(BOUND * 1000))
