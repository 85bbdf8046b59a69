"""`p2pcloop name`: the user's own short names."""

from __future__ import annotations

import click

from p2pcloop.cli.options import home_option, json_option
from p2pcloop.client.refs import words_of_the_user
from p2pcloop.client.terminal import notify, say
from p2pcloop.formats.link import is_link
from p2pcloop.formats.name import Name, check_label
from p2pcloop.formats.pasted import clean_pasted, parse_pasted_link
from p2pcloop.formats.place import is_url, parse_place
from p2pcloop.store.home import Home
from p2pcloop.store.known_names import find_name
from p2pcloop.store.names import ShortNames
from p2pcloop.text import to_json
from p2pcloop.words import tr


@click.group("name")
def command() -> None:
    """List, add and forget short names of your own.

    A short name stands for @<key>/<label> in every command that takes a REF, in this home only.

    \b
    Examples:
      p2pcloop name add knoppix @<key>/knoppix
      p2pcloop boot knoppix
      p2pcloop name forget knoppix
    """


@command.command("list")
@home_option
@json_option
def list_(home: Home, as_json: bool) -> None:
    """List the short names, and the names that they stand for."""
    names = ShortNames(home).all()
    if as_json:
        click.echo(to_json({"names": {short: str(name) for short, name in names.items()}}))
        return
    width = max(map(len, names), default=0)
    for short, name in names.items():
        say(tr("{short:{width}}  {name}", short=short, width=width, name=name))
    if not names:
        notify("no short name yet: `p2pcloop name add SHORT NAME` adds one")


@command.command()
@click.argument("short")
@click.argument("name")
@home_option
def add(short: str, name: str, home: Home) -> None:
    """Let SHORT stand for NAME: @key/label, or a link, of which the name is used."""
    pasted = clean_pasted(name)
    with words_of_the_user():
        check_label(short)
        if is_link(pasted):
            target = parse_pasted_link(name).name
        else:
            pasted_name = is_url(pasted) or pasted.startswith("@")
            target = _read(pasted if pasted_name else name, home)
    ShortNames(home).add(short, target)
    say(tr("{short} stands for {target}", short=short, target=target))


def _read(text: str, home: Home) -> Name:
    return find_name(text, home) if text.startswith("@") else parse_place(text).name


@command.command()
@click.argument("short")
@home_option
def forget(short: str, home: Home) -> None:
    """Remove the short name SHORT. The image stays known by its name."""
    ShortNames(home).forget(short)
