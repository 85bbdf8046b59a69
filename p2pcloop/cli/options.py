"""Options that commands share."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import click

from p2pcloop.store.home import Home

_MAX_VERSION = 1 << 53  # formats/signed.py, which takes some time to import

_PARTITION, _RAW = "p2pcloop.partition", "p2pcloop.raw"

_Command = TypeVar("_Command", bound=Callable[..., Any])


def _to_home(_context: click.Context, _parameter: click.Parameter, value: str | None) -> Home:
    return Home.at(value)


def home_option(command: _Command) -> _Command:
    """Add `--home DIR` (environment: P2PCLOOP_HOME), passed as `home: Home`."""
    return click.option(
        "--home",
        metavar="DIR",
        envvar="P2PCLOOP_HOME",
        callback=_to_home,
        help="Where the node keeps its state.  [env: P2PCLOOP_HOME]",
    )(command)


def at_option(command: _Command) -> _Command:
    """Add `--at VERSION`, passed as `at: int`, 0 where it is not given."""
    return click.option(
        "--at",
        type=click.IntRange(1, _MAX_VERSION),
        metavar="VERSION",
        callback=lambda _context, _parameter, value: value or 0,
        help="This version of the image, by its number.  [default: the newest that is known]",
    )(command)


@dataclass(frozen=True, slots=True)
class FileChoice:
    """What of an image file the user wants.

    Attributes:
        partition: of a disk, 0 for the one that holds the root.
        raw: the file is a device, whatever is on it.
    """

    partition: int = 0
    raw: bool = False

    @classmethod
    def current(cls) -> FileChoice:
        """That of the command that runs."""
        context = click.get_current_context(silent=True)
        meta = {} if context is None else context.meta
        return cls(meta.get(_PARTITION, 0), meta.get(_RAW, False))


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(context: click.Context, _parameter: click.Parameter, value: Any) -> None:  # noqa: ANN401
        if value:
            context.meta[name] = value

    return keep


def file_options(command: _Command) -> _Command:
    """Add `--partition N` and `--raw`, which `FileChoice.current` tells: they are no parameters."""
    partition = click.option(
        "--partition",
        type=click.IntRange(1, 1024),
        metavar="N",
        expose_value=False,
        callback=_keep(_PARTITION),
        help="Of a disk, take this partition.  [default: the one that holds the root]",
    )
    raw = click.option(
        "--raw",
        is_flag=True,
        expose_value=False,
        callback=_keep(_RAW),
        help="Take a file as a whole device, whatever is on it.",
    )
    return partition(raw(command))


def new_version_option(command: _Command) -> _Command:
    """Add `--as-new-version`, passed as `as_new_version: bool`."""
    return click.option(
        "--as-new-version",
        is_flag=True,
        help="It is the next version under that name, though made of another file.",
    )(command)


def key_option(command: _Command) -> _Command:
    """Add `--key KEYNAME`, passed as `key_name: str | None`, None where it is not given."""
    return click.option(
        "--key",
        "key_name",
        metavar="KEYNAME",
        help="The key that signs, one of `p2pcloop key list`.  [default: default]",
    )(command)


def first_option(command: _Command) -> _Command:
    """Add `--first-version`, passed as `first: bool`."""
    return click.option(
        "--first-version",
        "first",
        is_flag=True,
        help="With an imported key: nothing was published under this name yet.",
    )(command)


def public_option(command: _Command) -> _Command:
    """Add `--public`, passed as `public: bool`."""
    return click.option(
        "--public",
        is_flag=True,
        help="Announce it to everybody, as far as the node's settings allow.",
    )(command)


def json_option(command: _Command) -> _Command:
    """Add `--json`, passed as `as_json: bool`."""
    return click.option(
        "--json", "as_json", is_flag=True, help="Print JSON, for programs to read."
    )(command)


def running_command() -> str:
    """This command in words of the user: "`p2pcloop export`, process 4711"."""
    context = click.get_current_context(silent=True)
    return f"`{context.command_path if context else 'p2pcloop'}`, process {os.getpid()}"


def to_json(value: object) -> str:
    """One line of JSON; bytes are written in hexadecimal, objects by their text."""
    import json  # noqa: PLC0415  only those who print it pay for it

    return json.dumps(
        value, default=lambda item: item.hex() if isinstance(item, bytes) else str(item)
    )
