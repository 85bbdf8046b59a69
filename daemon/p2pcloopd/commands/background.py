"""Runs the rest of a command in the background, once it has told how it began."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from io import RawIOBase
from types import FrameType
from typing import NoReturn

from p2pcloop.client.terminal import report_error
from p2pcloop.errors import GuestError, P2pcloopError, storage_error
from p2pcloop.protocol.control import ControlReceiver, Event, Failure, Message, encode
from p2pcloop.words import tr

_RECEIVE_SIZE = 1 << 16
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_STREAMS = (0, 1)


def in_background(work: Callable[[Callable[[str], None]], int], what: str = tr("the guest")) -> str:
    """Fork; the child does `work` in a session of its own, without a terminal.

    Returns in the parent once the child calls what it was given, and never in the child. Until
    then the child has the parent's standard error. This must be called before trio runs, and
    without other threads.

    Args:
        work: gets the function to call, with the guest's name, once the guest runs; returns an
            exit code.
        what: runs, for an error's message. (Of a mount the name is its directory.)

    Returns:
        The guest's name.

    Raises:
        P2pcloopError: the child's, if it failed before.
        GuestError: the child died.
    """
    read_end, write_end = os.pipe()
    pid = os.fork()
    if not pid:
        os.close(read_end)
        _work_and_exit(work, write_end)
    os.close(write_end)
    with open(read_end, "rb", buffering=0) as answer:
        with _passing_on(pid):
            messages = _first_message(answer)
    match messages:
        case [Event(_, "started", {"name": str(name)})]:
            return name
        case [Failure(_, error)]:
            os.waitpid(pid, 0)
            raise error
    _, status = os.waitpid(pid, 0)
    code = os.waitstatus_to_exitcode(status)
    raise GuestError(
        tr("{what} ended while it started (status {code})", what=what, code=code),
        hint="without --detach it may say why; one that the system killed (status -9) may have had"
        " too little memory",
    )


@contextmanager
def _passing_on(pid: int) -> Iterator[None]:
    """End the child, too, if a signal ends this process meanwhile."""

    def end(number: int, _frame: FrameType | None) -> NoReturn:
        os.kill(pid, signal.SIGTERM)  # our child, which was not waited for
        os.waitpid(pid, 0)
        raise SystemExit(128 + number)

    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _first_message(answer: RawIOBase) -> list[Message]:
    """The first message, or nothing if the child died. It is not read to its end: processes that
    the child forks have the other end open, too."""
    receiver = ControlReceiver()
    while data := answer.read(_RECEIVE_SIZE):
        if messages := receiver.receive(data):
            return messages
    return []


def _work_and_exit(work: Callable[[Callable[[str], None]], int], output: int) -> NoReturn:
    """Be the child, to its end. It ends by `_exit`: what the parent has open is not its own."""
    code = 1
    told = False

    def tell(message: Event | Failure) -> None:
        nonlocal told
        if not told:
            told = True
            try:
                os.write(output, encode(message))
            except BrokenPipeError:  # the parent was killed: nothing was promised to its user
                os.kill(os.getpid(), signal.SIGTERM)
            os.close(output)

    try:
        os.setsid()
        null = os.open(os.devnull, os.O_RDWR)
        for stream in _STREAMS:
            os.dup2(null, stream)
        os.close(null)
        code = work(lambda name: tell(Event(0, "started", {"name": name})))
    except (P2pcloopError, OSError) as err:
        failure = err if isinstance(err, P2pcloopError) else storage_error(_system(err), err)
        code = failure.exit_code
        if told:
            report_error(failure)  # into the guest's log
        tell(Failure(0, failure))
    except BaseException:
        import traceback  # noqa: PLC0415  for a bug of ours only

        traceback.print_exc()
    finally:
        os._exit(code)


def _system(err: OSError) -> str:
    return tr("cannot use {path}", path=err.filename) if err.filename else tr("the system refused")
