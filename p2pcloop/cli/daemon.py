"""`p2pcloop daemon`: run, start and stop p2pcloopd."""

from __future__ import annotations

import os
import sys

import click

from p2pcloop.cli.options import home_option, json_option
from p2pcloop.cli.status import describe_node
from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.daemon import check_unused, ensure_daemon, stop_daemon
from p2pcloop.client.interpreter import module_command
from p2pcloop.client.terminal import say
from p2pcloop.errors import DaemonError
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.words import tr


@click.group("daemon")
def command() -> None:
    """Start, stop or run p2pcloopd, the node's daemon.

    Commands start it when they need it. It goes on seeding until it is stopped.

    \b
    Examples:
      p2pcloop daemon start
      p2pcloop daemon status --json
      p2pcloop daemon run --log-level debug --home /srv/node
    """


@command.command()
@home_option
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    help="How much to say.  [default: the setting log_level]",
)
def run(home: Home, log_level: str | None) -> None:
    """Run p2pcloopd in the foreground, its log on stderr, until Ctrl-C."""
    words = [*module_command("p2pcloopd"), "--home", str(home.root)]
    if log_level is not None:
        words += ["--log-level", log_level]
    os.execv(sys.executable, words)  # noqa: S606  no shell wanted


@command.command()
@home_option
@json_option
def start(home: Home, as_json: bool) -> None:
    """Start p2pcloopd if it does not run; return when it is ready."""
    with ensure_daemon(home) as client:
        if as_json:
            click.echo(to_json({"pid": client.pid, "home": home.root}))
        else:
            say(tr("p2pcloopd runs on {root}, process {pid}", root=home.root, pid=client.pid))


@command.command(short_help="Stop p2pcloopd in order and wait for its end.")
@click.option("--force", is_flag=True, help="Stop it although guests or commands read from it.")
@home_option
@json_option
def stop(home: Home, force: bool, as_json: bool) -> None:
    """Stop p2pcloopd in order and wait for its end. It is no error if none runs.

    Guests that read from it would wait until it runs again. So it is not stopped while there are
    any, unless --force is given.
    """
    if not force and home.holder() is not None:
        check_unused(home)
    stopped = stop_daemon(home)
    if as_json:
        click.echo(to_json({"stopped": stopped, "home": home.root}))
    else:
        say(
            tr(
                "p2pcloopd on {root} {what}",
                root=home.root,
                what=tr("stopped") if stopped else tr("was not running"),
            )
        )


@command.command()
@home_option
@json_option
def status(home: Home, as_json: bool) -> None:
    """Tell whether p2pcloopd runs; exit code 9 if it does not."""
    try:
        with ControlClient.connect(home) as client:
            node = client.call("status")
    except NotRunningError:
        if as_json:
            click.echo(to_json({"running": False, "home": home.root}))
            raise click.exceptions.Exit(DaemonError.exit_code) from None
        raise
    if as_json:
        del node["images"], node["torrents"]
        click.echo(to_json({"running": True} | node))
    else:
        say(describe_node(node))
