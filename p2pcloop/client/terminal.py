"""What programs share at the terminal: standard streams, log, errors, passphrases."""

from __future__ import annotations

import io
import logging
import os
import sys
from contextlib import suppress
from typing import TYPE_CHECKING, Literal, get_args

import click

from p2pcloop.client.invocation import is_quiet
from p2pcloop.errors import P2pcloopError, UsageError
from p2pcloop.text import printable, to_json, without_secrets
from p2pcloop.words import tr, translated

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

_ERASE = "\r\033[K"
"""To the beginning of the line, and nothing in it (ECMA-48: CR, EL)."""

STDOUT_NAMES = frozenset({"-", "/dev/stdout", "/dev/fd/1", "/proc/self/fd/1"})
"""What a user calls the standard output where a file is asked for."""

OUTPUT = tr("the standard output")
"""What errors of the standard output name as their file."""

_drawn: list[str] = []
"""The line on the terminal that shows progress and is not ended, if there is one."""


def say(text: str, *, err: bool = False) -> None:
    """Write a text for people, in their language, to the standard output."""
    click.echo(translated(text), err=err)


def notify(text: str) -> None:
    """Write a remark for the user to stderr, unless `--quiet` was given."""
    if not is_quiet():
        warn(text)


def warn(text: str) -> None:
    """Write a line that the user should see to stderr; it is lost where that takes no more (a full
    disk). It takes the place of a line that shows progress."""
    try:
        click.echo(f"{line_start()}{translated(text)}", err=True)
    except OSError:
        _to_null(2)


def draw_line(text: str) -> None:
    """Show a line on the terminal in place of that which was drawn last, and do not end it.

    Args:
        text: "" to take the line away: what is printed next begins there.
    """
    with suppress(OSError):  # as of `warn`
        click.echo(f"{_ERASE}{text}", nl=False, err=True)
    _drawn[:] = [text] if text else []


def leave_line() -> None:
    """End the line that was drawn last: it stays."""
    _drawn.clear()
    with suppress(OSError):  # as of `warn`
        click.echo(err=True)


def line_start() -> str:
    """What takes away a line that was drawn, before another one is written in its place."""
    if not _drawn:
        return ""
    _drawn.clear()
    return _ERASE


def _to_null(stream: int) -> None:
    """Have what is still written to a standard stream, and what it holds yet, go nowhere."""
    null = os.open(os.devnull, os.O_WRONLY)
    os.dup2(null, stream)
    os.close(null)


class _Named(io.FileIO):
    """A standard stream whose errors name it, as errors of files name the file."""

    def __init__(self, number: int, name: str) -> None:
        super().__init__(number, "w", closefd=False)
        self._told_as = name

    def write(self, data: ReadableBuffer, /) -> int:
        try:
            return super().write(data)
        except OSError as err:
            err.filename = self._told_as
            raise


_closed: set[int] = set()


def check_output_open() -> None:
    """Refuse to write the output of a command to a standard output that is closed.

    Raises:
        UsageError: it was closed when the command started.
    """
    if 1 in _closed:
        raise UsageError(
            "the standard output is closed: what is to be written there would be lost",
            hint="give it a file or a pipe, or give OUT",
        )


def open_standard_streams() -> None:
    """Open each of the descriptors 0 to 2 that is closed, on the null device.

    Otherwise this program and those that it starts would take the next file or socket for a
    standard stream. To be called before anything is opened.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            _closed.add(number)
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:  # a lower descriptor was closed, too
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  for good
    _name_output()
    # Names of files may be no text (surrogates): they are written as `\udcff`.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # else a test's
            reconfigure(errors="backslashreplace")


def _name_output() -> None:
    """Have errors of the standard output name it."""
    old = sys.stdout
    if old is sys.__stdout__ and isinstance(old, io.TextIOWrapper):  # else a test's
        sys.stdout = io.TextIOWrapper(
            io.BufferedWriter(_Named(1, OUTPUT)),
            encoding=old.encoding,
            line_buffering=old.line_buffering,
        )


class OneLine(logging.Formatter):
    """Keeps a terminal from obeying words of peers, servers and guests that messages hold, and
    secrets of links and URLs out of logs, which are shown to others."""

    def __init__(self, form: str, end: str = "") -> None:
        super().__init__(form)
        self._end = end

    def format(self, record: logging.LogRecord) -> str:
        message, _, traceback = super().format(record).partition("\nTraceback")
        line = without_secrets(printable(message))
        line = line_start() + line
        return (f"{line}\nTraceback{traceback}" if traceback else line) + self._end


def log_to_stderr(level: int | str, form: str, *, end: str = "") -> None:
    """Write the log of this process to stderr.

    Args:
        form: as of logging.Formatter, in the style of `%`.
        end: text before the end of each line.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(OneLine(form, end))
    logging.basicConfig(level=level, handlers=[handler])


def report_error(err: P2pcloopError, *, as_json: bool = False) -> int:
    """Write an error to stderr; return the exit code.

    Args:
        as_json: write it to the standard output as well, as JSON (docs/commands.md).
    """
    if as_json and not err.facts_told:
        known = (each for each in type(err).__mro__ if each.__module__ == P2pcloopError.__module__)
        _tell_json(next(known).__name__, str(err), err.hint, err.exit_code)
    # A message may hold words of strangers: names of files, of a guest or a server.
    told = f"p2pcloop: {printable(translated(err.message))}"
    if err.hint:
        told += f"\n  {translated(tr('hint'))}: {printable(translated(err.hint))}"
    try:
        click.echo(told, err=True)
    except OSError:  # the exit code still tells
        sys.stderr = None
    _drop_unwritten()
    return err.exit_code


def _drop_unwritten() -> None:
    """Drop output that its stream refuses: the interpreter would report that once more."""
    try:
        if sys.stdout is not None:
            sys.stdout.flush()
    except OSError:
        _to_null(1)


def report_usage(err: click.ClickException, *, as_json: bool = False) -> int:
    """Write an error of the command line's syntax, as `report_error` does."""
    if as_json:
        _tell_json("UsageError", err.format_message(), None, err.exit_code)
    try:
        err.show()
    except OSError:
        sys.stderr = None
    return err.exit_code


def _tell_json(kind: str, message: str, hint: str | None, exit_code: int) -> None:
    facts = {"class": kind, "message": message, "hint": hint, "exit_code": exit_code}
    try:
        click.echo(to_json({"error": facts}))
    except OSError:  # the standard error still tells
        sys.stdout = None


VARIABLE = "P2PCLOOP_PASSPHRASE"


def ask_passphrase(what: str) -> str:
    """The passphrase of a protected key: from the environment for scripts, else from the terminal.

    Args:
        what: the key, for the question.

    Raises:
        UsageError: there is no terminal.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return given
    _check_terminal(tr("{what} is protected by a passphrase", what=what))
    question = tr("passphrase of {what}", what=what)
    return str(click.prompt(translated(question), hide_input=True, err=True))


def choose_passphrase(what: str) -> str:
    """A new passphrase: from the environment, else typed twice at the terminal.

    Raises:
        UsageError: it is empty, or there is no terminal.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        _check_terminal(tr("a passphrase is wanted"))
        question = tr("new passphrase of {what}", what=what)
        given = str(
            click.prompt(
                translated(question),
                default="",  # so that an empty one comes here, and is refused with a reason
                show_default=False,
                hide_input=True,
                confirmation_prompt=True,
                err=True,
            )
        )
    if not given:
        raise UsageError("an empty passphrase protects nothing", hint="leave out --passphrase")
    return given


Trust = Literal["yes", "no", "always"]


def ask_trust(what: str) -> Trust:
    """Ask at the terminal whether another user's machine may go on here.

    Args:
        what: a clause that says what it is.
    """
    say(
        tr(
            "{what}: a machine that goes on here with all that runs in it, in a sandbox"
            " (docs/security.md)",
            what=what,
        ),
        err=True,
    )
    choice = click.Choice(get_args(Trust))
    answer: Trust = click.prompt(
        translated(tr("Trust its key, and go on?")), type=choice, default="no", err=True
    )
    return answer


def _check_terminal(why: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            tr("{why}, and there is no terminal to ask at", why=why),
            hint=tr("set {variable} for this command", variable=VARIABLE),
        )
