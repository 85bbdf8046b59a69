"""`p2pcloop unpublish`: withdraw an image, by a signed version that its name leads to."""

from __future__ import annotations

import click

from p2pcloop.cli.options import IMAGE, home_option, json_option
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.refs import resolve_stored
from p2pcloop.client.terminal import say
from p2pcloop.errors import MismatchError
from p2pcloop.store.home import Home
from p2pcloop.store.keys import name_of_key
from p2pcloop.text import to_json
from p2pcloop.words import tr

_EPILOG = """
\b
Examples:
  p2pcloop unpublish @key/debian -m 'it had my keys in it'
  p2pcloop unpublish my-debian
  p2pcloop rm my-debian --published    # then, to stop serving its data
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=IMAGE)
@click.option("--message", "-m", default="", metavar="TEXT", help="One line that says why.")
@home_option
@json_option
def command(ref: str, message: str, home: Home, *, as_json: bool) -> None:
    """Withdraw REF, an image of yours: sign a version that says so, and serve it under its name.

    Users who ask for the newest version get the withdrawal, not the image. Copies cannot be called
    back: users who have the image keep it, and the link of an old version works as long as any node
    serves that version. You may publish a later version again.
    """
    why, hint = tr("it has no name"), tr("give the name under which it was published")
    target = resolve_stored(ref, home, withdrawn=True, why_no_file=why, hint=hint)
    with target.client:
        name = target.signed.manifest.name
        key_name = _key_of(home, name.key)
        with Publisher.of(home, target.client, name.label, key_name) as publisher:
            answer = publisher.withdraw(message)
    if as_json:
        click.echo(to_json(answer))
    elif not answer["changed"]:
        say(
            tr(
                "{name} is withdrawn already, since version {version}",
                name=answer["name"],
                version=answer["version"],
            )
        )
    else:
        say(
            tr(
                "{name} is withdrawn, as version {version}\n  its data is served to users of an"
                " older link until `p2pcloop rm --published`;\n  mirrors on web servers learn of"
                " it when `p2pcloop mirror` writes them again",
                name=answer["name"],
                version=answer["version"],
            )
        )


def _key_of(home: Home, public: bytes) -> str:
    """The name of the key in this home that signs for a name."""
    key_name = name_of_key(home.keys, public)
    if key_name is not None:
        return key_name
    raise MismatchError(
        "it is not yours: no key of this home signed it",
        hint="`p2pcloop rm` removes it from this home",
    )
