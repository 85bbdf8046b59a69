"""`p2pcloop start`: a guest that has ended, once more."""

from __future__ import annotations

import os
from pathlib import Path

import click

from p2pcloop.cli.options import GUEST, home_option
from p2pcloop.client.overlay_base import version_of_guest
from p2pcloop.client.terminal import notify
from p2pcloop.errors import BusyError, NotHereError, UsageError, storage_error
from p2pcloop.store.guest_record import GuestRecord
from p2pcloop.store.guests import check_is_here, find_guest
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.commands import boot, resume

_EPILOG = """
\b
Examples:
  p2pcloop start g1                 # then: attach, exec, logs, stop
  p2pcloop start g1 && p2pcloop attach g1
"""


@click.command(epilog=_EPILOG)
@click.argument("name", type=GUEST)
@home_option
@click.pass_context
def command(context: click.Context, name: str, home: Home) -> None:
    """Boot the guest NAME, which has ended, again, with all options that it had.

    It runs in the background, and its log goes on. A guest with an overlay goes on with its
    changes, over the version that they lie on; one without begins with the image as it is. Names of
    images, and paths, mean what they meant where the guest was booted first. A guest that is
    suspended is resumed, as by `p2pcloop resume NAME --detach`.
    """
    record = _ended(home, name)
    if record.reason == "suspended" and record.state is not None:
        words = [name, "--detach", "--home", str(home.root), *_network(record)]
        with resume.command.make_context("resume", words, parent=context) as inner:
            resume.command.invoke(inner)
        return
    if record.words is None or not record.directory:
        raise _no_words(record, name)
    if record.overlay is None:
        notify(
            tr(
                "p2pcloop: the guest {name} has no overlay: it begins with the image as it is",
                name=name,
            )
        )
    elif not Path(record.overlay).exists():
        raise NotHereError(
            tr(
                "the overlay of the guest {name}, {overlay}, is gone",
                name=name,
                overlay=printable(record.overlay),
            ),
            hint=tr("`p2pcloop boot ... --name {name} --replace` begins with a new one", name=name),
        )
    try:
        os.chdir(record.directory)
    except OSError as err:
        raise storage_error(
            tr(
                "cannot go to {directory}, where {name} was booted",
                directory=record.directory,
                name=name,
            ),
            err,
        ) from err
    words = _again(record.words, name, home, version_of_guest(record, home))
    with boot.command.make_context("boot", words, parent=context) as inner:
        inner.meta.update({boot.WORDS: tuple(record.words), boot.EARLIER: "continue"})
        boot.command.invoke(inner)


def _no_words(record: GuestRecord, name: str) -> UsageError:
    return UsageError(
        tr("the record of the guest {name} does not tell how it was booted", name=name),
        hint=tr(
            "boot it anew: p2pcloop boot {ref} --name {name} --replace",
            ref=printable(record.ref),
            name=name,
        ),
    )


def _network(record: GuestRecord) -> list[str]:
    """The options of the network that a guest had."""
    given = {"--port": record.ports, "--open": record.opened}
    ports = (word for option, ports in given.items() for port in ports for word in (option, port))
    return ["--net", record.network, *ports]


def _ended(home: Home, name: str) -> GuestRecord:
    guest = find_guest(home, name)
    if guest.state == "running":
        raise BusyError(
            tr("the guest {name} runs", name=name),
            hint=tr("`p2pcloop attach {name}` leads to it", name=name),
        )
    check_is_here(guest.record)
    return guest.record


def _again(words: list[str], name: str, home: Home, version: int | None) -> list[str]:
    """The words of a boot in the background, of which the last ones count; `--` ends options."""
    own = ["--name", name, "--home", str(home.root), "--detach", "--console", "stdio"]
    if version is not None:
        own += ["--at", str(version)]
    end = words.index("--") if "--" in words else len(words)
    return [*words[:end], *own, *words[end:]]
