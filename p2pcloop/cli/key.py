"""`p2pcloop key`: the keys under which images are published."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import click
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.cli.options import FilePath, home_option, json_option
from p2pcloop.cli.output import check_place
from p2pcloop.client.refs import words_of_the_user
from p2pcloop.client.terminal import (
    ask_passphrase,
    check_output_open,
    choose_passphrase,
    notify,
    say,
)
from p2pcloop.errors import FormatError, NotHereError, UsageError, storage_error
from p2pcloop.formats.key_file import MAX_KEY_TEXT, KeyText, format_key_text
from p2pcloop.formats.name import format_key
from p2pcloop.store.home import Home
from p2pcloop.store.keys import (
    DEFAULT_KEY,
    key_path,
    list_keys,
    load_key,
    read_key,
    store_key,
)
from p2pcloop.store.trust import TrustedKeys, read_trusted
from p2pcloop.text import to_json
from p2pcloop.words import tr

_passphrase_option = click.option(
    "--passphrase",
    "protect",
    is_flag=True,
    help="Protect the key by a passphrase, asked for.  [env: P2PCLOOP_PASSPHRASE]",
)
_name_argument = click.argument("name", default=DEFAULT_KEY)


@click.group("key")
def command() -> None:
    """Make, list, show, export and import keys; trust those of others.

    The key that signs is the name under which you publish, @<key>/<label>. Any user with the key's
    file can publish under it. Without the file the name is lost for good, so keep a copy. The first
    image that you seed or publish makes the key `default`, without a passphrase.

    \b
    Examples:
      p2pcloop key new school --passphrase
      p2pcloop key list
      p2pcloop key export default backup.key --passphrase
      p2pcloop key import default backup.key
      p2pcloop key trust @<key>         # its states run here without a question
    """


@command.command()
@click.argument("name")
@_passphrase_option
@home_option
@json_option
def new(name: str, protect: bool, home: Home, as_json: bool) -> None:
    """Make a key called NAME. An existing key is never replaced."""
    with words_of_the_user():
        path = key_path(home.keys, name)
    if path.exists():
        raise UsageError(
            tr("there is a key {name!r} already", name=name), hint="choose another name"
        )
    passphrase = choose_passphrase(tr("the key {name}", name=name)) if protect else None
    home.create()
    text = format_key_text(Ed25519PrivateKey.generate(), passphrase)
    _report([(name, store_key(home.keys, name, text))], home, as_json=as_json)


@command.command("list")
@home_option
@json_option
def list_(home: Home, as_json: bool) -> None:
    """List the keys of this home. No passphrase is needed."""
    keys = [(name, read_key(home.keys, name)) for name in list_keys(home.keys)]
    if as_json:
        click.echo(to_json({"keys": [_facts(name, key, home) for name, key in keys]}))
    else:
        _report(keys, home, as_json=False)
        if not keys:
            notify("no key yet: the first `seed` or `publish` makes one")


@command.command(short_help="Show the public key of NAME.")
@_name_argument
@home_option
@json_option
def show(name: str, home: Home, as_json: bool) -> None:
    """Show the public key of NAME, as it appears in the names of its images."""
    with words_of_the_user():
        key_path(home.keys, name)
    _report([(name, read_key(home.keys, name))], home, as_json=as_json)


@command.command(short_help="Write the key NAME to a file: a copy.")
@_name_argument
@click.argument("out", type=FilePath(), default="-")
@_passphrase_option
@home_option
def export(name: str, out: Path, protect: bool, home: Home) -> None:
    """Write the key NAME to OUT (mode 0600), or to standard output: it is a secret.

    As it is in the home, or with --passphrase under a new passphrase. A file is never replaced.
    """
    with words_of_the_user():
        key_path(home.keys, name)
    text = read_key(home.keys, name).text
    if protect:
        key = load_key(home.keys, name, ask_passphrase)
        text = format_key_text(key, choose_passphrase(tr("the copy of the key {name}", name=name)))
    if str(out) == "-":
        check_output_open()
        click.echo(text, nl=False)
        return
    check_place(out)
    try:
        with open(os.open(out, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
    except FileExistsError as err:
        raise UsageError(
            tr("{out} exists, and is not replaced", out=out), hint="choose another name"
        ) from err
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=out), err) from err


@command.command("import", short_help="Keep the key in FILE as NAME.")
@click.argument("name")
@click.argument("file", type=FilePath())
@home_option
@json_option
def import_(name: str, file: Path, home: Home, as_json: bool) -> None:
    """Keep the key in FILE (- for standard input), which `export` wrote, as NAME.

    An existing key is never replaced. A protected key stays protected.

    Versions that were published with it elsewhere are not known here. Run `p2pcloop update LINK`
    for each image before you publish it again: else two versions of one number would be signed.
    """
    with words_of_the_user():
        key_path(home.keys, name)
    text = _read(file)
    home.create()
    try:
        key = store_key(home.keys, name, text, imported=True)
    except FormatError as err:
        what = tr("standard input") if str(file) == "-" else file
        raise FormatError(tr("{what} is not a key of p2pcloop, or is damaged", what=what)) from err
    _report([(name, key)], home, as_json=as_json)


@command.command(short_help="Trust KEY of another user with states.")
@click.argument("key", required=False)
@click.option("--forget", is_flag=True, help="Trust it no more.")
@home_option
@json_option
def trust(key: str | None, home: Home, *, forget: bool, as_json: bool) -> None:
    """Trust KEY (@<key>, or a name, whose key counts): its states are resumed without a question.

    Without KEY, list the keys that are trusted. A state is a machine that goes on here with all
    that ran in it; images need no trust to boot. Your own keys are trusted.
    """
    keys = TrustedKeys(home)
    if key is not None:
        with words_of_the_user():
            wanted = read_trusted(key)
        (keys.forget if forget else keys.add)(wanted)
    elif forget:
        raise UsageError("--forget needs a KEY", hint="`p2pcloop key trust` lists them")
    known = sorted(f"@{format_key(each)}" for each in keys.all())
    if as_json:
        click.echo(to_json({"trusted": known}))
    elif key is None:
        for line in known:
            say(line)
        if not known:
            notify("no key of another user is trusted here: `p2pcloop key trust @<key>` adds one")
    else:
        say(
            tr(
                "@{wanted} is trusted {what}",
                wanted=format_key(wanted),
                what=tr("no more") if forget else tr("from now on"),
            )
        )


def _read(file: Path) -> bytes:
    if str(file) == "-":
        return sys.stdin.buffer.read(MAX_KEY_TEXT)
    try:
        with file.open("rb") as source:
            return source.read(MAX_KEY_TEXT)
    except FileNotFoundError as err:
        raise NotHereError(tr("there is no file {file}", file=file)) from err


def _facts(name: str, key: KeyText, home: Home) -> dict[str, object]:
    return {
        "name": name,
        "key": format_key(key.public),
        "passphrase": key.protected,
        "file": key_path(home.keys, name),
    }


def _report(keys: list[tuple[str, KeyText]], home: Home, *, as_json: bool) -> None:
    width = max((len(name) for name, _ in keys), default=0)
    for name, key in keys:
        if as_json:
            click.echo(to_json(_facts(name, key, home)))
        else:
            note = tr("  with a passphrase") if key.protected else ""
            say(
                tr(
                    "{name:{width}}  @{public}{note}",
                    name=name,
                    width=width,
                    public=format_key(key.public),
                    note=note,
                )
            )
