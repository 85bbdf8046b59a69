"""The command that runs, as click knows it: its name, its choices, and its end."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager
from typing import Any, TypeVar

import click

from p2pcloop.frozen import dataclass

_Resource = TypeVar("_Resource")


def running_command() -> str:
    """The name of this command for messages: "`p2pcloop export`, process 4711"."""
    context = click.get_current_context(silent=True)
    return f"`{context.command_path if context else 'p2pcloop'}`, process {os.getpid()}"


def chosen(option: str, default: Any) -> Any:  # noqa: ANN401  options are of all types
    """The value of an option that is no parameter of the command."""
    context = click.get_current_context(silent=True)
    return default if context is None else context.meta.get(option, default)


PARTITION, RAW = "p2pcloop.partition", "p2pcloop.raw"
"""The names under which a command's context holds the user's choices."""

QUIET = "p2pcloop.quiet"
"""The name of the user's wish to see neither progress nor remarks."""

JSON = "p2pcloop.json"
"""The name of the user's wish for JSON, which programs read."""

WHOLE_DISK = "p2pcloop.whole_disk"
"""The name of a mark of commands for which a file is a whole disk, as with `--raw`. It says nothing
of images that are no files."""


@dataclass(frozen=True, slots=True)
class FileChoice:
    """How the user wants an image file to be read.

    Attributes:
        partition: of a disk; 0 for the one that holds the root.
        raw: take the file as a device, even if it looks like a container or a disk.
    """

    partition: int = 0
    raw: bool = False

    @classmethod
    def current(cls) -> FileChoice:
        """The choice of the command that runs."""
        return cls(chosen(PARTITION, 0), chosen(RAW, False))


def is_quiet() -> bool:
    """Whether the user wants neither progress nor remarks."""
    return bool(chosen(QUIET, False))


def prints_json() -> bool:
    """Whether the command prints JSON: a program reads it, and no user follows its progress."""
    return bool(chosen(JSON, False))


def until_command_ends(resource: AbstractContextManager[_Resource]) -> _Resource:
    """Enter a context that is left when the command ends."""
    return click.get_current_context().with_resource(resource)
