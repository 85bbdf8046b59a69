"""QEMU's machine protocol (QMP), the client's side; sans-io.

Messages are JSON objects, one a line (QEMU Machine Protocol Specification; docs/interop/qmp-spec in
QEMU's sources). QEMU greets; the client leaves the mode of negotiation by `qmp_capabilities`;
then commands and their answers have the same `id`, and events come in between.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from p2pcloop.errors import FormatError
from p2pcloop.words import tr

MAX_LINE = 1 << 20
"""Bytes of a message at most: QEMU's longest answers, descriptions of itself, are not asked for."""


@dataclass(frozen=True, slots=True)
class Greeting:
    """QEMU is there.

    Attributes:
        version: of QEMU: major, minor, micro.
    """

    version: tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class Return:
    """A command was carried out.

    Attributes:
        number: the command's.
        value: its result.
    """

    number: int
    value: Any


@dataclass(frozen=True, slots=True)
class Refusal:
    """A command was refused.

    Attributes:
        number: the command's; None where QEMU could not read one.
        text: why.
    """

    number: int | None
    text: str


@dataclass(frozen=True, slots=True)
class MachineEvent:
    """Something happened in the machine.

    Attributes:
        name: `SHUTDOWN`, `VSERPORT_CHANGE` and so on.
        data: what belongs to it.
    """

    name: str
    data: Mapping[str, Any]


QmpMessage = Greeting | Return | Refusal | MachineEvent


def encode_command(number: int, name: str, arguments: Mapping[str, Any]) -> bytes:
    """Return a command as it is sent."""
    command = {"execute": name, "arguments": arguments, "id": number}
    return json.dumps(command).encode() + b"\n"


class QmpReceiver:
    """Turns bytes from QEMU into messages."""

    def __init__(self) -> None:
        self._rest = b""

    def receive(self, data: bytes) -> list[QmpMessage]:
        """Take what came next, and return the messages that are complete.

        Raises:
            FormatError: it is no QMP, or a message is too long.
        """
        *lines, self._rest = (self._rest + data).split(b"\n")
        if len(self._rest) > MAX_LINE:
            raise FormatError(
                tr("QEMU sent a message of more than {max_line} bytes", max_line=MAX_LINE)
            )
        return [_parse(line) for line in lines if line.strip()]


def _parse(line: bytes) -> QmpMessage:
    try:
        fields = json.loads(line)
        if "QMP" in fields:
            numbers = fields["QMP"]["version"]["qemu"]
            return Greeting((int(numbers["major"]), int(numbers["minor"]), int(numbers["micro"])))
        if "return" in fields:
            return Return(int(fields["id"]), fields["return"])
        if "error" in fields:
            number = fields.get("id")
            return Refusal(None if number is None else int(number), str(fields["error"]["desc"]))
        return MachineEvent(str(fields["event"]), dict(fields.get("data", {})))
    except (ValueError, TypeError, KeyError, RecursionError) as err:
        raise FormatError(
            tr("QEMU sent what is no message of its protocol: {line!r}", line=line[:80])
        ) from err
