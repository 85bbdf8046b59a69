"""Starting p2pcloopd when it is needed, and stopping it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.interpreter import module_command
from p2pcloop.client.progress import waiting_for
from p2pcloop.client.terminal import VARIABLE, notify, warn
from p2pcloop.errors import BusyError, DaemonError, storage_error
from p2pcloop.protocol.control import ControlReceiver, Event, Failure, RemoteControlError
from p2pcloop.store.home import Home
from p2pcloop.store.lease import lease_holders
from p2pcloop.words import tr

STOP_SECONDS = 60
MAX_LOG = 8 << 20
"""If daemon.log has more bytes than this, the next start renames it to daemon.log.1."""

READY_FD = 3
"""The descriptor by which a p2pcloopd that was started tells that it is ready, or why not."""

Start = Callable[[Home, int], int]
"""Starts a detached p2pcloopd on a home; it has a session of its own, the null device as its input
and daemon.log as its output. Gets the descriptor for `READY_FD`; returns the process id."""

_ATTEMPTS = 80
_PAUSE = 0.25


def spawn_daemon(home: Home, ready: int) -> int:
    """Start a p2pcloopd with an interpreter of its own; see `Start`."""
    command = [*module_command("p2pcloopd"), *daemon_options(home)]
    with open_log(home.log) as log:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, ready, READY_FD),
        ]
        # p2pcloopd never needs a passphrase, and outlives the command that was given one.
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        return os.posix_spawn(
            sys.executable, command, environment, file_actions=actions, setsid=True
        )


def ensure_daemon(
    home: Home,
    meanwhile: Callable[[], object] | None = None,
    *,
    warn: Callable[[str], None] | None = None,
    start: Start = spawn_daemon,
) -> ControlClient:
    """Connect to the p2pcloopd of `home`; start one, and say so on stderr, if none runs.

    However many commands do this at once, only one p2pcloopd starts.

    Args:
        meanwhile: called while p2pcloopd starts; not called if one runs already.
        warn: takes what the user should know of it; else that goes to stderr, and so does the word
            that it starts.
        start: starts the process.

    Raises:
        P2pcloopError: the error of the p2pcloopd that could not start.
        DaemonError: it ended without an error, or does not answer.
    """
    home.create()
    try:
        return ControlClient.connect(home)
    except NotRunningError:
        pass
    if warn is None:
        notify(
            tr(
                "starting p2pcloopd on {root} (log: {log}); it seeds until `p2pcloop daemon stop`",
                root=home.root,
                log=home.log.name,
            )
        )
    with home.starting():
        for attempt in range(_ATTEMPTS):
            try:
                return ControlClient.connect(home)
            except NotRunningError:
                pass
            try:
                start_daemon(home, meanwhile, warn=warn or _warn, start=start)
            except BusyError:
                if attempt and home.holder() is None:
                    raise  # the home is free: something else is taken, a port
                # A p2pcloopd holds the lock that is about to stop, or that was started by hand a
                # moment ago. It is no child of ours, so there is no event to wait for.
                time.sleep(_PAUSE)
    raise BusyError(
        tr("the p2pcloopd on {root} neither serves nor ends", root=home.root),
        hint=tr("{log} may say why", log=home.log),
    )


def _warn(text: str) -> None:
    warn(tr("p2pcloop: {text}", text=text))


def start_daemon(
    home: Home,
    meanwhile: Callable[[], object] | None = None,
    *,
    warn: Callable[[str], None] = _warn,
    start: Start = spawn_daemon,
) -> None:
    """Start a detached p2pcloopd and return when it is ready.

    Args:
        meanwhile: called while it starts, which takes a quarter of a second of one processor.
        warn: takes what the user should know of it.
        start: starts the process.

    Raises:
        BusyError: one runs already.
        P2pcloopError: the error of the p2pcloopd that could not start.
    """
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as ready:
        try:
            pid = start(home, write_end)
        finally:
            os.close(write_end)
        if meanwhile is not None:
            meanwhile()
        with waiting_for("p2pcloopd to start"):
            answer = ready.read()
    try:
        messages = ControlReceiver().receive(answer)
    except RemoteControlError:
        messages = []
    match messages:
        case [Event(_, "ready", told)]:
            for warning in told.get("warnings", []):
                warn(warning)
            return
        case [Failure(_, error)]:
            os.waitpid(pid, 0)
            raise error
    _, status = os.waitpid(pid, 0)
    raise DaemonError(
        tr(
            "p2pcloopd ended while it started (status {status})",
            status=os.waitstatus_to_exitcode(status),
        ),
        hint=tr("{log} may say why", log=home.log),
    )


def check_unused(home: Home) -> None:
    """Check that no guest and no command reads from the store of `home`.

    Raises:
        BusyError: some do; the message names them.
    """
    holders = lease_holders(home)
    if holders:
        raise BusyError(
            tr(
                "they read from this node and would wait until it runs again: {holders}",
                holders="; ".join(holders),
            ),
            hint="end them first, or give --force",
        )


def stop_daemon(home: Home) -> bool:
    """Have the p2pcloopd of `home` shut down, and wait for its end; return whether one ran.

    It gets a signal, as the holder of the lock. The control socket would not do: a p2pcloopd that
    is starting, or that speaks another version, has to stop, too.

    Raises:
        DaemonError: it did not end within STOP_SECONDS.
    """
    pid = home.holder()
    if pid is None:
        return False
    try:
        process = os.pidfd_open(pid)
    except ProcessLookupError:
        return False
    try:
        if home.holder() == pid:  # else it ended, and its number may be another process's
            signal.pidfd_send_signal(process, signal.SIGTERM)
        waiting = select.poll()
        waiting.register(process, select.POLLIN)
        with waiting_for("p2pcloopd to end"):
            has_ended = waiting.poll(STOP_SECONDS * 1000)
        if not has_ended:
            raise DaemonError(
                tr(
                    "p2pcloopd (process {pid}) did not stop within {stop_seconds} s",
                    pid=pid,
                    stop_seconds=STOP_SECONDS,
                ),
                hint=tr("see {log}; its state survives `kill -9 {pid}`", log=home.log, pid=pid),
            )
    finally:
        os.close(process)
    return True


def daemon_options(home: Home) -> list[str]:
    """The options of a p2pcloopd that is started for a home."""
    return ["--home", str(home.root), "--ready-fd", str(READY_FD)]


@contextmanager
def open_log(path: Path) -> Iterator[int]:
    """Open a log to append to it; one that has grown too large is renamed before."""
    try:
        if path.exists() and path.stat().st_size > MAX_LOG:
            path.replace(path.with_name(path.name + ".1"))
        # O_NONBLOCK: a pipe in its place is not waited for.
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC | os.O_NONBLOCK
        log = os.open(path, flags, 0o600)
        os.set_blocking(log, True)
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=path), err) from err
    try:
        yield log
    finally:
        os.close(log)
