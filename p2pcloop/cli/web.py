"""`p2pcloop web`: the web page of the node."""

from __future__ import annotations

from html import escape
from pathlib import Path

import click

from p2pcloop.cli.options import home_option, json_option
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.terminal import notify
from p2pcloop.store.home import Home, replace_file
from p2pcloop.text import to_json

_EPILOG = """
\b
Examples:
  p2pcloop web --open
  p2pcloop web --json | jq -r .url
"""


@click.command(epilog=_EPILOG)
@click.option("--open", "opens", is_flag=True, help="Open it in the desktop's browser.")
@home_option
@json_option
def command(home: Home, *, opens: bool, as_json: bool) -> None:
    """Tell the URL of the node's web page, which shows images, peers, guests and their consoles.

    Only this machine reaches the page, and the URL holds a token: who has it acts for you. It
    stays the same until p2pcloopd stops. While no browser shows the page, nothing runs for it.
    """
    with ensure_daemon(home) as client:
        url = client.call("web")["url"]
    click.echo(to_json({"url": url}) if as_json else url)
    if opens and click.launch(_way_to(url, home).as_uri()):
        notify("p2pcloop: no browser could be started here: open the URL yourself")


def _way_to(url: str, home: Home) -> Path:
    """A page that leads to a URL. All users of a machine can read the words of its programs, and a
    browser is started with the address of what it shows; only this user can read the page."""
    page = home.root / "web.html"
    leads = f'<!DOCTYPE html><meta http-equiv="refresh" content="0;url={escape(url)}">\n'
    replace_file(page, leads.encode())
    return page
