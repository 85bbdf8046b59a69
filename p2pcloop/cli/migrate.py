"""`p2pcloop migrate`: a guest that runs here goes on at another machine."""

from __future__ import annotations

import json
import shlex
import subprocess
from typing import Any

import click

from p2pcloop.cli.options import RUNNING, PublishOptions, version_options
from p2pcloop.cli.published import publisher_of, warn_if_only_here
from p2pcloop.client.guests import GuestProcess
from p2pcloop.client.progress import shows_progress, waiting_for
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.suspend import Wish, image_of, suspend
from p2pcloop.client.terminal import say, warn
from p2pcloop.errors import BusyError, UnreachableError, UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.store.guest_record import GuestRecord
from p2pcloop.store.guests import OwnGuest
from p2pcloop.store.home import Home
from p2pcloop.text import printable, to_json
from p2pcloop.words import joined, tr

_EPILOG = """
\b
Examples:
  p2pcloop migrate g1 laptop                      # as `ssh laptop` reaches it
  p2pcloop migrate g1 me@laptop --overlay g1.delta
"""

_NOT_FOUND = 127


@dataclass(frozen=True, slots=True)
class _Host:
    """A machine that commands are run at.

    Attributes:
        name: for ssh.
        ssh: what runs commands there, with its options, quoted as for a shell.
        program: p2pcloop there.
        home: of the node here, which it has to reach.
    """

    name: str
    ssh: str
    program: str
    home: Home

    def check_name(self, name: str, *, replaces: bool) -> None:
        """See that a guest can have a name there, before the one that is to get it is stopped.

        Args:
            replaces: a guest that had it and has ended may be forgotten.

        Raises:
            BusyError: a guest of this name runs there.
            UsageError: one has ended there, and it is not that which is to come back.
            UnreachableError: as of `run`, or what it answers is of another p2pcloop.
        """
        said = self.run(["ps", "--all", "--json"])
        where = printable(self.name)
        try:
            guests = json.loads(said)["guests"]
            found = next(((g["state"], g["reason"]) for g in guests if g["name"] == name), None)
        except (ValueError, LookupError, TypeError) as err:
            raise UnreachableError(
                tr("`p2pcloop ps` at {where} does not list guests", where=where),
                hint="is it of this version?",
            ) from err
        if found is None:
            return
        state, reason = found
        if state == "running":
            raise BusyError(
                tr("a guest {name} runs at {where}", name=name, where=where),
                hint=tr("`p2pcloop stop {name}` there ends it", name=name),
            )
        if reason != "moved" and not replaces:
            raise UsageError(
                tr(
                    "there was a guest {name} at {where} before, and its log is kept",
                    name=name,
                    where=where,
                ),
                hint="--replace forgets it, once this one goes on there",
            )

    def run(self, words: list[str], text: str = "", hint: str = "") -> bytes:
        """Run p2pcloop there, and return what it prints.

        Args:
            words: behind `p2pcloop`.
            text: its standard input. A link goes there: its secret is for no other user's eyes.
            hint: what to do if it fails.

        Raises:
            UsageError: there is no such program as `ssh`.
            UnreachableError: the command failed, or the host is not reached.
        """
        # Said before, for good: ssh may ask something at the terminal meanwhile.
        told = printable(self.name)
        if shows_progress():
            warn(tr("waiting for `p2pcloop {command}` at {name}", command=words[0], name=told))
        command = [*shlex.split(self.ssh), self.name, shlex.join([self.program, *words])]
        try:
            done = subprocess.run(command, input=text.encode(), stdout=subprocess.PIPE, check=False)
        except OSError as err:
            raise UsageError(
                tr("cannot run {command}: {why}", command=printable(command[0]), why=err.strerror),
                hint="--ssh names another program",
            ) from err
        if done.returncode == _NOT_FOUND:
            raise UnreachableError(
                tr(
                    "{name} has no {program}",
                    name=printable(self.name),
                    program=printable(self.program),
                ),
                hint="install p2pcloop there, or tell where it is: --program PATH",
            )
        if done.returncode:
            not_reached = tr(
                "what it said stands above; the node here must be reachable from there:"
                " `p2pcloop config set listen ADDRESS:PORT {home}`",
                home=self.home.option,
            )
            raise UnreachableError(
                tr(
                    "`p2pcloop {words}` at {name} ended with exit code {returncode}",
                    words=words[0],
                    name=printable(self.name),
                    returncode=done.returncode,
                ),
                hint=joined("; ", [not_reached, *([hint] if hint else [])]),
            )
        return done.stdout


@click.command(epilog=_EPILOG)
@click.argument("name", type=RUNNING)
@click.argument("host")
@click.option("--overlay", metavar="FILE", help="Keep its changes in FILE there, a new file.")
@click.option(
    "--ssh",
    default="ssh",
    show_default=True,
    metavar="COMMAND",
    help="What runs a command at HOST, with its options: 'ssh -p 2222'.",
)
@click.option(
    "--program",
    default="p2pcloop",
    show_default=True,
    metavar="PATH",
    help="p2pcloop at HOST.",
)
@click.option(
    "--replace",
    "replaces",
    is_flag=True,
    help="Forget a guest that had the name there before and has ended, with its log.",
)
@version_options
def command(
    name: str,
    host: str,
    overlay: str | None,
    ssh: str,
    program: str,
    options: PublishOptions,
    *,
    replaces: bool,
) -> None:
    """Move the guest NAME, which runs here, to HOST, where it goes on in the background.

    HOST is reached by ssh, and has p2pcloop. It fetches the guest's state from this node, which
    must be reachable from there (the setting listen). A guest that was booted here is brought there
    while it runs; then it stops, what has changed meanwhile follows, and it goes on there, with the
    network that it had here. Going back moves only what changed there.

    If it cannot go on there, it is suspended here: `p2pcloop resume NAME` goes on.
    """
    if options.public:
        raise UsageError("a guest that moves is private", hint="leave out --public")
    there = _Host(host, ssh, program, options.home)
    there.check_name(name, replaces=replaces)
    with GuestProcess(options.home, name) as guest:
        record = guest.record
        image = image_of(record, options.home)
        with image.client:
            # Of one that was resumed, only what it has changed has to go there.
            if image.signed.manifest.machine is None:
                made = _suspend(record, image, options, goes_on=True)
                there.run(["fetch", "-"], made["link"])
            made = _suspend(record, image, options, goes_on=False)
        hint = tr(
            "the guest is suspended here: `p2pcloop resume {name}` goes on, unless it runs there",
            name=name,
        )
        words = _resume_words(record, made["name"], overlay, replaces=replaces)
        try:
            there.run(words, made["link"], hint)
        finally:
            with waiting_for(tr("the end of {name} here", name=name)):
                guest.wait()  # its process here ends meanwhile: that is no part of the pause
    with OwnGuest(options.home, name, "continue") as own:
        own.record_moved(host)
    if options.as_json:
        click.echo(to_json(made | {"guest": name, "host": host}))
    else:
        say(tr("{name} goes on at {host}", name=name, host=printable(host)))


def _suspend(
    record: GuestRecord, image: StoredRef, options: PublishOptions, *, goes_on: bool
) -> dict[str, Any]:
    """Make a state of a guest, a private one."""
    quiet = options.as_json
    wish = Wish(goes_on=goes_on, private=True, public=False, message="", quiet=quiet)
    with publisher_of(f"{record.name}-state", options) as publisher:
        made = suspend(record, image, publisher, wish)
    warn_if_only_here(made, options.home)
    return made


def _resume_words(
    record: GuestRecord, state: str, overlay: str | None, *, replaces: bool
) -> list[str]:
    """The command by which the guest goes on there."""
    key = state.partition("/")[0]
    words = ["resume", "-", "--detach", "--name", record.name, "--trust", key]
    words += [*(["--replace"] if replaces else []), "--net", record.network]
    words += [word for port in record.ports for word in ("--port", port)]
    return words if overlay is None else [*words, "--overlay", overlay]
