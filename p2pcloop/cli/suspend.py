"""`p2pcloop suspend`: a guest that runs becomes a state, which goes on anywhere."""

from __future__ import annotations

from typing import Any

import click

from p2pcloop.cli.options import RUNNING, PublishOptions, version_options
from p2pcloop.cli.published import publisher_of, report_version, warn_if_only_here
from p2pcloop.client.guests import GuestProcess
from p2pcloop.client.progress import waiting_for
from p2pcloop.client.rehearsal import publish_rehearsed
from p2pcloop.client.suspend import Wish, image_of, suspend
from p2pcloop.client.terminal import notify, say
from p2pcloop.client.use import Use
from p2pcloop.errors import P2pcloopError, UsageError
from p2pcloop.store.guest_record import GuestRecord
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop suspend g1                        # later: p2pcloop resume g1
  p2pcloop suspend g1 --publish desktop -m 'an XFce that is up'
  p2pcloop suspend g1 --publish web --rehearse 'curl -s localhost:8080'
  p2pcloop suspend g1 --keep-running         # a state to go back to
"""


@click.command(epilog=_EPILOG)
@click.argument("name", type=RUNNING)
@click.option(
    "--publish",
    "label",
    metavar="LABEL",
    help="Publish the state under LABEL, for all who get its link.  [default: NAME-state, private]",
)
@click.option("--message", "-m", default="", metavar="TEXT", help="What it is, in one line.")
@click.option(
    "--private", is_flag=True, help="With --publish: only users with the whole link can read it."
)
@click.option("--keep-running", is_flag=True, help="The guest goes on here at once.")
@click.option(
    "--no-rehearsal",
    "no_rehearsal",
    is_flag=True,
    help="With --publish: do not try here what the guest needs first when it goes on.",
)
@click.option(
    "--rehearse",
    "use",
    metavar="COMMAND",
    help="With --publish: COMMAND uses the guest as readers will while it is tried here, by the"
    " ports that it had (--port).",
)
@version_options
def command(
    name: str,
    label: str | None,
    message: str,
    options: PublishOptions,
    *,
    private: bool,
    keep_running: bool,
    no_rehearsal: bool,
    use: str | None,
) -> None:
    """Stop the guest NAME where it is, and keep it as a state: disk, memory and devices together.

    `p2pcloop resume` lets it go on, here or on another machine that has the state's link. A state
    is a version of an image; the next suspend stores only what changed. If anything fails, the
    guest goes on. Guests in QEMU alone can be suspended (`boot --vm qemu`).

    Memory holds passwords and keys of those who used the guest: without --publish the state is
    private, and only those to whom you give its whole link can read it. One that is published goes
    on here twice, for some seconds and without a network: what it needs first is packed together,
    so that it goes on soon elsewhere. With --rehearse it has its network then.
    """
    home = options.home
    if options.public and label is None:
        raise UsageError(
            "a state without --publish is private: --public would announce it to all",
            hint="add --publish LABEL, or leave out --public",
        )
    rehearses = label is not None and not (private or no_rehearsal)
    _check_use(use, rehearses=rehearses, keep_running=keep_running)
    with GuestProcess(home, name) as guest:
        record = guest.record
        rehearsed_use = None if use is None else _use_of(use, record)
        with publisher_of(label or f"{name}-state", options) as publisher:
            image = image_of(record, home)
            with image.client:
                wish = Wish(
                    goes_on=keep_running,
                    private=private or label is None,
                    public=options.public,
                    message=message,
                    quiet=options.as_json,
                )
                made = suspend(record, image, publisher, wish)
        if not keep_running:
            with waiting_for(tr("the end of {name}", name=name)):
                guest.wait()
    made["rehearsed"] = None
    if label is not None and rehearses:
        made |= _rehearsed(made, label, message, options, rehearsed_use)
    _report(made | {"guest": name, "runs": keep_running}, home, as_json=options.as_json)


def _check_use(use: str | None, *, rehearses: bool, keep_running: bool) -> None:
    """Refuse `--rehearse` where there is no rehearsal, or one without the guest's ports.

    Raises:
        UsageError: so it is.
    """
    if use is None:
        return
    if not rehearses:
        raise UsageError(
            tr("--rehearse is for a state that is published, and tried here"),
            hint=tr("add --publish LABEL, without --private and --no-rehearsal"),
        )
    if keep_running:
        raise UsageError(
            tr("the guest keeps its ports with --keep-running: --rehearse could not use its copy"),
            hint=tr("leave one of them out"),
        )


def _use_of(command: str, record: GuestRecord) -> Use:
    """What a command does with a guest's copy.

    Raises:
        UsageError: no port leads into the guest.
    """
    if not record.ports:
        raise UsageError(
            tr(
                "no port leads into the guest {name}: --rehearse could not use it", name=record.name
            ),
            hint=tr("boot it with --net user --port PORT:GUESTPORT"),
        )
    return Use(command, record.network, tuple(record.ports))


def _rehearsed(
    made: dict[str, Any], label: str, message: str, options: PublishOptions, use: Use | None
) -> dict[str, Any]:
    """Publish a state once more, with what it needs first packed together.

    Returns:
        The facts of that version; none if it did not go on here, which is told, or is private.
    """
    with publisher_of(label, options) as publisher:
        state, quiet = publisher.image, options.as_json
        if state is None or state.signed.manifest.private:
            return {}
        if state.signed.manifest.version != made["version"]:
            return {}  # another one was published meanwhile
        if not quiet:
            notify("it goes on here for some seconds, to see what it needs first")
        try:
            return publish_rehearsed(
                publisher, state, message, public=options.public, quiet=quiet, use=use
            )
        except P2pcloopError as err:
            notify(tr("it is published without what it needs first: {err}", err=err))
            return {}


def _report(answer: dict[str, Any], home: Home, *, as_json: bool) -> None:
    warn_if_only_here(answer, home)
    if as_json:
        click.echo(to_json(answer))
        return
    if answer["runs"]:
        say(tr("{guest} runs on", guest=answer["guest"]))
    else:
        say(tr("{guest} is suspended: `p2pcloop resume {guest}` goes on", guest=answer["guest"]))
    details = tr(
        "{stored} packed, over {base}", stored=format_size(answer["stored"]), base=answer["base"]
    )
    if answer["rehearsed"] is not None:
        details += tr(
            "; {rehearsed} of that again, which it needs first",
            rehearsed=format_size(answer["rehearsed"]),
        )
    report_version(answer, details)
    say(tr("elsewhere it goes on with:\n  p2pcloop resume '{link}'", link=answer["link"]))
