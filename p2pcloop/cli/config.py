"""`p2pcloop config`: the settings of a node."""

from __future__ import annotations

import os
import shlex
import subprocess
import tomllib
from typing import Any

import click

from p2pcloop.cli.options import home_option, json_option
from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.terminal import notify, say
from p2pcloop.errors import NotHereError, UsageError, storage_error
from p2pcloop.formats.config import (
    SETTINGS,
    Config,
    check_config,
    read_settings,
    read_text,
    value_of,
)
from p2pcloop.store.home import Home, replace_file
from p2pcloop.text import printable, to_json
from p2pcloop.words import tr

_EDITORS = ("VISUAL", "EDITOR")
_EDITOR = "vi"


@click.group("config")
def command() -> None:
    """Show and change the settings of the node: config.toml in its home.

    A p2pcloopd that runs takes over limits, the quota and mirrors at once, and all else at its next
    start.

    \b
    Examples:
      p2pcloop config show
      p2pcloop config set quota 20G
      p2pcloop config set listen 0.0.0.0:6881,[::]:6881
      p2pcloop config unset discovery.dht
      p2pcloop config edit
    """


@command.command()
@home_option
@json_option
def show(home: Home, as_json: bool) -> None:
    """List all that may be set: what holds, which file sets it, and what it means."""
    found = read_settings(home.config)
    settings = []
    for key, setting in SETTINGS.items():
        value, file = found.get(key, (_default(key), None))
        facts = {"key": key, "value": value, "set_in": file, "about": setting.about}
        settings.append(facts | {"live": setting.live})
    if as_json:
        click.echo(to_json({"file": home.config, "settings": settings}))
        return
    for facts in settings:
        where = "" if facts["set_in"] is None else f"  # {printable(str(facts['set_in']))}"
        say(
            tr(
                "{key} = {as_toml}{where}",
                key=facts["key"],
                as_toml=_as_toml(facts["value"]),
                where=where,
            )
        )
        say(tr("    {about}", about=facts["about"]))


@command.command("set")
@click.argument("key")
@click.argument("value")
@home_option
@json_option
def set_(key: str, value: str, home: Home, as_json: bool) -> None:
    """Set KEY to VALUE: a number, a size like 20G, true or false; of a list its items with commas
    between them. Comments in the file stay."""
    write_settings(home, {_known(key): parse_value(key, value)}, as_json=as_json)


@command.command()
@click.argument("key")
@home_option
@json_option
def unset(key: str, home: Home, as_json: bool) -> None:
    """Take KEY out of the file, so that its default holds, or what /etc/p2pcloop says."""
    write_settings(home, {_known(key): None}, as_json=as_json)


@command.command()
@home_option
def edit(home: Home) -> None:
    """Open the file in your editor (VISUAL, EDITOR); it is checked before it takes effect."""
    before = read_text(home.config)
    home.create()
    draft = home.config.with_name("config.toml.draft")
    if not draft.exists():
        draft.write_text(before or _template())
    editor = next(filter(None, map(os.environ.get, _EDITORS)), _EDITOR)
    try:
        code = subprocess.run([*shlex.split(editor), draft], check=False).returncode
    except OSError as err:
        raise storage_error(
            tr("cannot run {editor}", editor=editor), err, hint="set EDITOR"
        ) from err
    if code:
        draft.unlink(missing_ok=True)
        raise UsageError(
            tr("{editor} ended with {code}: nothing is changed", editor=editor, code=code)
        )
    text = read_text(draft)
    try:
        check_config(text, draft)
    except UsageError as err:
        raise UsageError(
            tr("{err}; nothing is changed", err=err),
            hint="`p2pcloop config edit` again: your text is kept",
        ) from err
    draft.unlink(missing_ok=True)
    _replace(home, text, as_json=False)


def _known(key: str) -> str:
    if key not in SETTINGS:
        raise UsageError(
            tr("there is no setting {key!r}", key=printable(key)),
            hint="`p2pcloop config show` lists what may be set",
        )
    return key


def parse_value(key: str, text: str) -> Any:  # noqa: ANN401  any value of TOML
    """Read a value that a user typed: as TOML, or a text without its quotes."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        items = [item for item in map(str.strip, text.split(",")) if item]
        return items if SETTINGS[key].many else text


def write_settings(home: Home, wanted: dict[str, Any], *, as_json: bool) -> None:
    """Change settings in the file, of which all else stays; None takes one out."""
    import tomlkit  # noqa: PLC0415  only where the file is changed

    before = read_text(home.config)
    check_config(before, home.config)
    document = tomlkit.parse(before)
    for key, value in wanted.items():
        table, _, name = key.rpartition(".")
        place: Any = document
        if table:
            place = document.setdefault(table, tomlkit.table())
        if value is not None:
            place[name] = value
        elif name in place:
            del place[name]
        else:
            raise NotHereError(
                tr("{config} does not set {key}", config=home.config, key=key),
                hint="nothing is changed",
            )
    _replace(home, tomlkit.dumps(document), as_json=as_json)


def _replace(home: Home, text: str, *, as_json: bool) -> None:
    check_config(text, home.config)
    home.create()
    # A link to a file that lies elsewhere stays one.
    replace_file(home.config.resolve(), text.encode())
    facts: dict[str, Any] = {"file": home.config, "running": True, "changed": [], "later": []}
    try:
        with ControlClient.connect(home) as client:
            facts |= client.call("reload")
    except NotRunningError:
        facts["running"] = False
    if as_json:
        click.echo(to_json(facts))
        return
    say(tr("written to {config}", config=home.config))
    if facts["changed"]:
        notify(tr("in effect: {changed}", changed=", ".join(facts["changed"])))
    if facts["later"]:
        notify(
            tr("in effect once p2pcloopd starts again: {later}", later=", ".join(facts["later"]))
        )


def _default(key: str) -> Any:  # noqa: ANN401  any value of TOML
    value = value_of(Config(), key)
    if isinstance(value, tuple):
        return [f"{item[0]}:{item[1]}" if isinstance(item, tuple) else item for item in value]
    return value


def _as_toml(value: Any) -> str:  # noqa: ANN401  any value of TOML
    if value is None:
        return "(not set)"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_as_toml, value))}]"
    return f'"{printable(value)}"' if isinstance(value, str) else str(value)


def _template() -> str:
    """All settings, each in a comment with its default."""
    lines = ["# Settings of this node; what is not set has its default."]
    table = ""
    for key, setting in SETTINGS.items():
        at, _, name = key.rpartition(".")
        if at != table:
            table = at
            lines += ["", f"[{table}]"]
        value = _as_toml(_default(key))
        lines.append(f"# {name} = {value}".ljust(40) + f"  # {setting.about}")
    return "\n".join(lines) + "\n"
