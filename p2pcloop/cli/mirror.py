"""`p2pcloop mirror`: write an image as static files, for any web server or a disk to carry."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import IMAGE, DirectoryPath, at_option, home_option, json_option
from p2pcloop.cli.output import check_outside_store
from p2pcloop.client.daemon import ensure_daemon
from p2pcloop.client.invocation import running_command
from p2pcloop.client.mirror import write_mirror
from p2pcloop.client.refs import resolve_stored, words_of_the_user
from p2pcloop.client.terminal import say
from p2pcloop.errors import (
    UnreachableError,
    UsageError,
)
from p2pcloop.formats.link import parse_mirror
from p2pcloop.formats.place import parse_place
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease
from p2pcloop.store.mirror import open_mirror_directory
from p2pcloop.text import printable, to_json
from p2pcloop.units import format_size
from p2pcloop.words import tr, tr_n

_EPILOG = """
\b
Examples:
  p2pcloop mirror @key/debian /srv/www/images --url https://example.org/images/
  p2pcloop mirror 'magnet:?xt=...' /media/stick/images
  p2pcloop boot https://example.org/images/@key/debian
  p2pcloop mirror --check https://example.org/images/
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=IMAGE, required=False)
@click.argument("directory", type=DirectoryPath(), required=False)
@click.option("--url", metavar="URL", help="Where DIRECTORY is served; prints a link that says so.")
@click.option(
    "--check",
    metavar="URL",
    help="Look at a mirror as its readers will; URL, or URL/@key/label. Writes nothing.",
)
@at_option
@home_option
@json_option
def command(
    ref: str | None,
    directory: Path | None,
    url: str | None,
    check: str | None,
    at: int,
    home: Home,
    *,
    as_json: bool,
) -> None:
    """Write REF into DIRECTORY as files that any web server can serve, and any disk can carry.

    All of the image is fetched and verified first. Several images, and several versions of one,
    may share a DIRECTORY; files that are there already are not written again. Each file appears
    whole.

    With --check, test a mirror as its readers will use it: signatures, ranges, wrong bytes. Exit
    code 12 if there is a fault.
    """
    if check is not None:
        if ref is not None or url is not None or at:
            raise UsageError("--check takes nothing but the URL of a mirror")
        _check(check, home, as_json=as_json)
        return
    if ref is None or directory is None:
        raise UsageError("what is to be written, and where? REF and DIRECTORY", hint="see --help")
    if url is not None:
        with words_of_the_user():
            url = parse_mirror(url if url.endswith("/") else f"{url}/")
    check_outside_store(directory, home)
    why, hint = tr("it has no layers to write"), tr("seed it, and mirror it by its name")
    target = resolve_stored(ref, home, at=at, withdrawn=True, why_no_file=why, hint=hint)
    with (
        target.client,
        Lease(home, target.signed.id, running_command()),
        open_mirror_directory(directory) as mirror,
    ):
        link, written = write_mirror(target, mirror, home, url, quiet=as_json)
    facts = {"name": target.name, "manifest": target.signed.id, "link": str(link)}
    if as_json:
        click.echo(to_json(facts | {"directory": str(directory), "written": written}))
    else:
        _report(facts, directory, written, url)


def _report(facts: dict[str, Any], directory: Path, written: int, url: str | None) -> None:
    say(
        tr(
            "{name} is in {directory}; {written} were written",
            name=facts["name"],
            directory=directory,
            written=format_size(written),
        )
    )
    if url is not None:
        say(
            tr(
                "boot it with:\n  p2pcloop boot {url}{name}\n  p2pcloop boot '{link}'",
                url=url,
                name=facts["name"],
                link=facts["link"],
            )
        )


def _check(url: str, home: Home, *, as_json: bool) -> None:
    """Report the faults that p2pcloopd finds at a mirror.

    Raises:
        UnreachableError: there is a fault; all were reported.
    """
    with words_of_the_user():
        if "@" in url:
            parse_place(url)
        else:
            parse_mirror(url if url.endswith("/") else f"{url}/")
    with ensure_daemon(home) as client:
        found = client.call("check_mirror", url=url)
    faults = sum(len(image["faults"]) for image in found["images"])
    if as_json:
        click.echo(to_json(found))
    else:
        for image in found["images"]:
            what = tr(
                "{name}, version {version}",
                name=image["name"],
                version=image["version"] or tr("unknown"),
            )
            say(
                tr(
                    "{what}: {faults}",
                    what=what,
                    faults=printable("; ".join(image["faults"])) or tr("all is well"),
                )
            )
    if faults:
        raise UnreachableError(
            tr_n("{base}: {count} fault", "{base}: {count} faults", faults, base=found["base"]),
            hint="docs/publishing.md, Mirrors, says what a server must be able to do",
        )
