"""The log of p2pcloopd, and of what it starts, on standard error: lines for people, or JSON for
programs."""

from __future__ import annotations

import logging
import sys
from datetime import UTC, datetime

from p2pcloop.client.terminal import OneLine
from p2pcloop.formats.config import LogFormat
from p2pcloop.text import to_json, without_secrets
from p2pcloopd.tasks import Pulse

_LINES = "%(asctime)s %(levelname)s %(name)s: %(message)s"


class JsonLines(logging.Formatter):
    """One JSON object a line (docs/daemon.md)."""

    def format(self, record: logging.LogRecord) -> str:
        facts = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
        }
        if record.exc_info:
            facts["traceback"] = without_secrets(self.formatException(record.exc_info))
        return to_json(facts)


class LogOutput:
    """The log of this process.

    A level that was given as an option holds until the setting is another than at the start.

    Attributes:
        changed: other settings were taken over.
    """

    def __init__(self, level: str | None) -> None:
        """Write lines from now on.

        Args:
            level: of the option, or None.
        """
        self._given = level
        self._set: str | None = None
        self._form: LogFormat = "lines"
        self.changed = Pulse()
        self._handler = logging.StreamHandler(sys.stderr)
        self._handler.setFormatter(OneLine(_LINES))
        logging.basicConfig(level=(level or "info").upper(), handlers=[self._handler])

    def set_up(self, level: str, form: LogFormat) -> None:
        """Take over settings."""
        if self._set not in (None, level):
            self._given = None
        self._set, self._form = level, form
        logging.root.setLevel((self._given or level).upper())
        self._handler.setFormatter(JsonLines() if form == "json" else OneLine(_LINES))
        self.changed.notify()

    def settings(self) -> dict[str, str]:
        """The arguments of `set_up` for a process that shares the log."""
        level = logging.getLevelName(logging.root.level)
        return {"level": level.lower(), "form": self._form}
