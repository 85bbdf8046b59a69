"""The standard streams of a program, whatever its starter made of them, and its log on stderr."""

from __future__ import annotations

import logging
import os
import sys

from p2pcloop.text import printable


def open_standard_streams() -> None:
    """Open those of the descriptors 0 to 2 that are closed on the null device.

    Otherwise the next file or socket that is opened would be taken for a standard stream: by us
    and by the programs that we start. Called first, before anything is opened.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            if null != number:  # a lower one was opened by whoever started Python
                os.dup2(null, number)
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, closefd=False))  # noqa: SIM115  for good
    # Names of files may be no text at all (surrogates): they are told as `\udcff`.
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:  # else a test's
            reconfigure(errors="backslashreplace")


class _OneLine(logging.Formatter):
    """Messages hold what peers, servers and guests said: none of it may draw on a terminal."""

    def __init__(self, form: str, end: str) -> None:
        super().__init__(form)
        self._end = end

    def format(self, record: logging.LogRecord) -> str:
        message, _, traceback = super().format(record).partition("\nTraceback")
        line = printable(message)
        return (f"{line}\nTraceback{traceback}" if traceback else line) + self._end


def log_to_stderr(level: int | str, form: str, *, end: str = "") -> None:
    """Write the log of this process to stderr.

    Args:
        form: as of logging.Formatter, in the style of `%`.
        end: behind each line, before the line's end.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine(form, end))
    logging.basicConfig(level=level, handlers=[handler])
