"""Start p2pcloopd when it is needed, once, and stop it."""

from __future__ import annotations

import os
import select
import signal
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.terminal import VARIABLE, notify
from p2pcloop.errors import BusyError, DaemonError, storage_error
from p2pcloop.protocol.control import ControlReceiver, Event, Failure, RemoteControlError
from p2pcloop.store.home import Home
from p2pcloop.store.lease import lease_holders

STOP_SECONDS = 60
MAX_LOG = 8 << 20
"""A daemon.log of more bytes than this is put away as daemon.log.1 at the next start."""

_READY_FD = 3
_ATTEMPTS = 80
_PAUSE = 0.25


def ensure_daemon(home: Home, meanwhile: Callable[[], object] | None = None) -> ControlClient:
    """Connect to the p2pcloopd of `home`; start one, and say so on stderr, where none runs.

    However many commands do this at once, one p2pcloopd comes of it.

    Args:
        meanwhile: called while one starts; not called where one runs.

    Raises:
        P2pcloopError: what p2pcloopd said when it could not start.
        DaemonError: it ended without a word, or cannot be talked to.
    """
    home.create()
    try:
        return ControlClient.connect(home)
    except NotRunningError:
        pass
    notify(
        f"starting p2pcloopd on {home.root} (log: {home.log.name});"
        " it seeds until `p2pcloop daemon stop`"
    )
    with home.starting():
        for attempt in range(_ATTEMPTS):
            try:
                return ControlClient.connect(home)
            except NotRunningError:
                pass
            try:
                start_daemon(home, meanwhile)
            except BusyError:
                if attempt and home.holder() is None:
                    raise  # not the home is taken, but something else: a port
                # A p2pcloopd that is about to stop, or one started by hand a moment ago, holds the
                # lock: it is no child of ours, so there is nothing to wait on.
                time.sleep(_PAUSE)
    raise BusyError(
        f"the p2pcloopd on {home.root} neither serves nor ends", hint=f"{home.log} may say why"
    )


def start_daemon(home: Home, meanwhile: Callable[[], object] | None = None) -> None:
    """Start a detached p2pcloopd and return when it is ready.

    It gets its own session, the null device as input and daemon.log as output.

    Args:
        meanwhile: called while it starts, a quarter of a second's work on another processor.

    Raises:
        BusyError: one runs already.
        P2pcloopError: what it said when it could not start.
    """
    read_end, write_end = os.pipe()
    with open(read_end, "rb") as ready:
        try:
            pid = _spawn(home, write_end)
        finally:
            os.close(write_end)
        if meanwhile is not None:
            meanwhile()
        answer = ready.read()
    try:
        messages = ControlReceiver().receive(answer)
    except RemoteControlError:
        messages = []
    match messages:
        case [Event(_, "ready", told)]:
            for warning in told.get("warnings", []):
                notify(f"p2pcloop: {warning}")
            return
        case [Failure(_, error)]:
            os.waitpid(pid, 0)
            raise error
    _, status = os.waitpid(pid, 0)
    raise DaemonError(
        f"p2pcloopd ended while it started (status {os.waitstatus_to_exitcode(status)})",
        hint=f"{home.log} may say why",
    )


def check_unused(home: Home) -> None:
    """Check that nobody reads from the store of `home`.

    Raises:
        BusyError: guests or commands do; it names them.
    """
    holders = lease_holders(home)
    if holders:
        raise BusyError(
            f"they read from this node and would wait until it runs again: {'; '.join(holders)}",
            hint="end them first, or give --force",
        )


def stop_daemon(home: Home) -> bool:
    """Stop the p2pcloopd of `home` in order and wait for its end; return whether one ran.

    By a signal to the holder of the lock, not through the control socket: so it also works on one
    that is starting or that speaks another version.

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
        if home.holder() == pid:  # else it ended meanwhile, and the number may be another's
            signal.pidfd_send_signal(process, signal.SIGTERM)
        waiting = select.poll()
        waiting.register(process, select.POLLIN)
        if not waiting.poll(STOP_SECONDS * 1000):
            raise DaemonError(
                f"p2pcloopd (process {pid}) did not stop within {STOP_SECONDS} s",
                hint=f"see {home.log}; its state survives `kill -9 {pid}`",
            )
    finally:
        os.close(process)
    return True


def _spawn(home: Home, ready: int) -> int:
    # -P: a package called p2pcloopd in the current directory must not be taken for ours.
    command = [sys.executable, "-P", "-m", "p2pcloopd"]
    command += ["--home", str(home.root), "--ready-fd", str(_READY_FD)]
    with _open_log(home) as log:
        actions = [
            (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
            (os.POSIX_SPAWN_DUP2, log, 1),
            (os.POSIX_SPAWN_DUP2, log, 2),
            (os.POSIX_SPAWN_DUP2, ready, _READY_FD),
        ]
        # It never asks for a passphrase, and outlives the command for which that was given.
        environment = {name: value for name, value in os.environ.items() if name != VARIABLE}
        return os.posix_spawn(
            sys.executable, command, environment, file_actions=actions, setsid=True
        )


@contextmanager
def _open_log(home: Home) -> Iterator[int]:
    try:
        if home.log.exists() and home.log.stat().st_size > MAX_LOG:
            home.log.replace(home.log.with_name(home.log.name + ".1"))
        flags = os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC
        log = os.open(home.log, flags, 0o600)
    except OSError as err:
        raise storage_error(f"cannot write {home.log}", err) from err
    try:
        yield log
    finally:
        os.close(log)
