"""Options that commands share, and types of their values."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from p2pcloop.client.invocation import JSON, PARTITION, QUIET, RAW
from p2pcloop.errors import UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home
from p2pcloop.units import parse_size
from p2pcloop.words import tr

_MAX_VERSION = 1 << 53  # formats/signed.py, which takes some time to import

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*://|magnet:\?", re.IGNORECASE)

_Command = TypeVar("_Command", bound=Callable[..., Any])


class FilePath(click.Path):
    """The path of a file. An empty one, or one with a `/` behind it, would be another place."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, allow_dash=True)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  click's signature
        text = os.fspath(value)
        check_given(text, param)
        if text.endswith("/") and not Path(text).is_dir():
            raise UsageError(
                tr("{text} ends in `/`, and no such folder is here", text=text), hint="leave it out"
            )
        return super().convert(value, param, ctx)


class DirectoryPath(click.Path):
    """The path of a directory."""

    def __init__(self) -> None:
        super().__init__(path_type=Path, file_okay=False)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:  # noqa: ANN401  click's signature
        text = os.fspath(value)
        check_given(text, param)
        if _URL.match(text):
            raise UsageError(
                tr("{text} is a URL, not a directory", text=text), hint="give a directory here"
            )
        return super().convert(value, param, ctx)


def check_given(text: str, param: click.Parameter | None) -> None:
    """Refuse an empty path, which would stand for the current directory.

    Raises:
        UsageError: it is empty.
    """
    if not text:
        name = tr("the path") if param is None else param.human_readable_name.upper()
        if isinstance(param, click.Option):
            name = param.opts[0]
        raise UsageError(tr("{name} is empty", name=name), hint="is a variable of the shell unset?")


def _to_home(_context: click.Context, parameter: click.Parameter, value: str | None) -> Home:
    if value is not None:
        check_given(value, parameter)
    return Home.at(value)


def _keep(name: str) -> Callable[[click.Context, click.Parameter, Any], None]:
    def keep(context: click.Context, _parameter: click.Parameter, value: Any) -> None:  # noqa: ANN401
        if value:
            context.meta[name] = value

    return keep


def quiet_option(command: _Command) -> _Command:
    """Add `--quiet`: no parameter; `is_quiet` tells."""
    return click.option(
        "--quiet",
        "-q",
        is_flag=True,
        expose_value=False,
        callback=_keep(QUIET),
        help="Show neither progress nor remarks.",
    )(command)


def home_option(command: _Command) -> _Command:
    """Add `--home DIR`, as `node_home_option` does, and `--quiet`."""
    return node_home_option(quiet_option(command))


def node_home_option(command: _Command) -> _Command:
    """Add `--home DIR` (environment: P2PCLOOP_HOME), passed as `home: Home`."""
    return click.option(
        "--home",
        metavar="DIR",
        envvar="P2PCLOOP_HOME",
        callback=_to_home,
        help="Where the node keeps its state.  [env: P2PCLOOP_HOME]",
    )(command)


def at_option(command: _Command) -> _Command:
    """Add `--at VERSION`, passed as `at: int`, 0 if it is not given."""
    return click.option(
        "--at",
        type=click.IntRange(1, _MAX_VERSION),
        metavar="VERSION",
        callback=lambda _context, _parameter, value: value or 0,
        help="This version of the image, by its number.  [default: the newest that is known]",
    )(command)


def file_options(command: _Command) -> _Command:
    """Add `--partition N` and `--raw`: no parameters; `FileChoice.current` returns them."""
    partition = click.option(
        "--partition",
        type=click.IntRange(1, 1024),
        metavar="N",
        expose_value=False,
        callback=_keep(PARTITION),
        help="Of a disk, take this partition.  [default: the one that holds the root]",
    )
    raw = click.option(
        "--raw",
        is_flag=True,
        expose_value=False,
        callback=_keep(RAW),
        help="Take a file as a whole device, whatever is on it.",
    )
    return partition(raw(command))


def new_version_option(command: _Command) -> _Command:
    """Add `--as-new-version`, passed as `as_new_version: bool`."""
    return click.option(
        "--as-new-version",
        is_flag=True,
        help="It is the next version under that name, though made of another file, or of what an"
        " older version was made of.",
    )(command)


def key_option(command: _Command) -> _Command:
    """Add `--key KEYNAME`, passed as `key_name: str | None`, None if it is not given."""
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
        help="With a key that was not made here: nothing was published under this name yet.",
    )(command)


def public_option(command: _Command) -> _Command:
    """Add `--public`, passed as `public: bool`."""
    return click.option(
        "--public",
        is_flag=True,
        help="Announce it in public, as far as the node's settings allow.",
    )(command)


def _keep_json(context: click.Context, _parameter: click.Parameter, value: bool) -> bool:
    if value:
        context.meta[JSON] = True
    return value


def json_option(command: _Command) -> _Command:
    """Add `--json`, passed as `as_json: bool`; `prints_json` tells, too."""
    return click.option(
        "--json",
        "as_json",
        is_flag=True,
        callback=_keep_json,
        help="Print JSON, for programs to read.",
    )(command)


@dataclass(frozen=True, slots=True)
class PublishOptions:
    """The values of the options of `publish_options`; `--help` explains them."""

    key_name: str | None
    first: bool
    public: bool
    home: Home
    as_json: bool


def as_one(
    kind: type, options: Sequence[Callable[..., Any]], parameter: str = "options"
) -> Callable[[_Command], Any]:
    """Add options whose values a command gets as one object.

    Args:
        kind: a dataclass with a field for each option, named like the option's parameter.
        options: decorators, in the order of `--help`.
        parameter: the command's, for the object.
    """
    names = [field.name for field in fields(kind)]

    def add(command: _Command) -> Any:  # noqa: ANN401  click's decorators are of all types
        @wraps(command)
        def wrapped(**values: Any) -> None:  # noqa: ANN401  click's values are of all types
            value = kind(**{name: values.pop(name) for name in names})
            command(**{parameter: value}, **values)

        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return add


_VERSION_OPTIONS = (key_option, first_option, public_option, home_option, json_option)

version_options = as_one(PublishOptions, _VERSION_OPTIONS)
"""Add the options of commands that publish; see `PublishOptions`."""

publish_options = as_one(PublishOptions, (file_options, *_VERSION_OPTIONS))
"""Add the options of commands that publish a file; see `PublishOptions` and `file_options`."""


if TYPE_CHECKING:
    _IntType = click.ParamType[int]
    _TextType = click.ParamType[str]
else:
    _IntType = _TextType = click.ParamType  # before click 8.2, as Debian 12 has it, not generic


class _Known(_TextType):
    """A word that a shell completes from what is known in the home (`completion.KINDS`)."""

    def __init__(self, kind: str) -> None:
        self.name = kind

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> str:
        """See `click.ParamType.convert`."""
        del param, ctx
        return str(value)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """See `click.ParamType.shell_complete`."""
        del param
        from p2pcloop.cli.completion import names_of  # noqa: PLC0415  for completion alone

        home = ctx.params.get("home") or Home.at(os.environ.get("P2PCLOOP_HOME") or None)
        offers = names_of(home.root)(self.name, incomplete)
        return [CompletionItem(offer.value, type=offer.kind) for offer in offers]


IMAGE = _Known("image")
"""The name of an image that is known here."""

REF = _Known("ref")
"""The same, or a file."""

GUEST = _Known("guest")
"""A guest, also one that has ended."""

RUNNING = _Known("running")
"""A guest that runs."""


class _Size(_IntType):
    """A number of bytes, or one with K, M, G or T (powers of 1024) behind it."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """See `click.ParamType.convert`."""
        try:
            return parse_size(str(value))
        except ValueError as err:
            self.fail(str(err), param, ctx)


class _Fill(_Size):
    """Bytes a second: a size, `full` (0, no limit) or `off` (-1)."""

    name = "fill"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """See `click.ParamType.convert`."""
        if value in ("off", "full"):
            return -1 if value == "off" else 0
        return max(1, super().convert(value, param, ctx))


SIZE = _Size()
FILL = _Fill()
