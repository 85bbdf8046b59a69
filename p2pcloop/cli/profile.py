"""`p2pcloop profile`: the blocks that boots of an image read, in order."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.options import REF, FilePath, home_option, json_option, key_option, public_option
from p2pcloop.cli.output import check_place
from p2pcloop.client.profiles import FoundProfile, Subject, read_if_profile, read_profile
from p2pcloop.client.publisher import Content, Publisher, signing_key
from p2pcloop.client.refs import resolve_ref, words_of_the_user
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import notify, say, warn
from p2pcloop.errors import FormatError, NotHereError, UsageError, storage_error
from p2pcloop.formats.name import check_label, format_key
from p2pcloop.formats.profile import seconds_of, sign_profile, unpack_touches
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.store.keys import name_of_key
from p2pcloop.store.profiles import fit_profile, forget_profile, keep_profile
from p2pcloop.text import to_json
from p2pcloop.units import BLOCK_SIZE, format_size
from p2pcloop.words import tr


@click.group("profile")
def command() -> None:
    """Show, export, attach and forget profiles: the blocks that a boot reads, in order.

    Each boot records a profile in this home, a few kilobytes. `seed` and `publish` attach it to the
    new version; `boot` fetches by it the blocks that the guest will read; `optimize` packs by it.

    \b
    Examples:
      p2pcloop profile show debian.cloop
      p2pcloop profile export @key/debian debian.profile
      p2pcloop profile attach @key/debian debian.profile
    """


@command.command(short_help=tr("Tell what a profile is, and whose."))
@click.argument("ref", type=REF, metavar="REF|FILE")
@home_option
@json_option
def show(ref: str, home: Home, as_json: bool) -> None:
    """Show the profile that a boot of REF would use, or the exported profile in FILE."""
    target = resolve_ref(ref, home)
    profile = read_if_profile(target) if isinstance(target, ImageFile) else None
    with ExitStack() as stack:
        if profile is not None:
            facts = profile_facts(ref, FoundProfile(profile, "file"))
        else:
            subject = Subject.open(target, home, stack, quiet=as_json)
            found = subject.find(home)
            facts = profile_facts(subject.what, found)
            facts["fetched"] = subject.fetched(found.profile, home)
    if as_json:
        click.echo(to_json(facts))
        return
    for key, text in profile_lines(facts):
        say(tr("{key:8}  {text}", key=key, text=text))


@command.command(short_help=tr("Write the profile of an image to a file, signed."))
@click.argument("ref", type=REF, metavar="REF|IMAGE")
@click.argument("out", type=FilePath())
@key_option
@home_option
@json_option
def export(ref: str, out: Path, key_name: str | None, home: Home, as_json: bool) -> None:
    """Write the profile that a boot of REF would use to OUT, signed with your key.

    Also for an image of another publisher: others attach it. A file is never replaced.
    """
    check_place(out)
    with ExitStack() as stack:
        subject = Subject.of(ref, home, stack, quiet=as_json)
        found = subject.find(home)
    data = sign_profile(found.profile, signing_key(home, key_name))
    try:
        with out.open("xb") as file:
            file.write(data)
    except FileExistsError as err:
        raise UsageError(
            tr("{out} exists, and is not replaced", out=out), hint="choose another name"
        ) from err
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=out), err) from err
    if as_json:
        click.echo(to_json({"file": str(out), "name": subject.what, "bytes": len(data)}))
    else:
        say(
            tr(
                "{out}: {data_count}, what a boot of {what} reads",
                out=out,
                data_count=format_size(len(data)),
                what=subject.what,
            )
        )


@command.command(short_help=tr("Use the profile in a file for an image."))
@click.argument("ref", type=REF, metavar="REF|IMAGE")
@click.argument("file", type=FilePath())
@click.option(
    "--message",
    "-m",
    default="with a profile",
    show_default=True,
    metavar="TEXT",
    help="What to say about the new version of an image of yours.",
)
@key_option
@public_option
@home_option
@json_option
def attach(
    ref: str,
    file: Path,
    message: str,
    key_name: str | None,
    home: Home,
    *,
    public: bool,
    as_json: bool,
) -> None:
    """Use the signed profile in FILE for REF. Boots do not replace it any more.

    It is kept in this home. If REF is published under a key of yours, a new version is published,
    too, which carries the profile to its readers.
    """
    data, profile = read_profile(file)
    if profile.key is None:
        raise FormatError(
            tr("{file} is not signed", file=file),
            hint="have it written by `p2pcloop profile export`",
        )
    with ExitStack() as stack:
        subject = Subject.of(ref, home, stack, quiet=as_json)
        touches, remark = fit_profile(profile, subject.image_id, subject.size, subject.before(home))
        if remark:
            notify(tr("{remark}: it is signed anew, by you", remark=remark))
            fitted = replace(profile, image_id=subject.image_id, size=subject.size, touches=touches)
            data = sign_profile(fitted, signing_key(home, key_name))
        publisher = stack.enter_context(_publisher(subject, home, key_name))
        keep_profile(home, data)
        answer: dict[str, Any] = {"name": subject.what, "changed": False}
        if publisher is not None and subject.ref is not None:
            answer |= _release(subject.ref, touches, publisher, message, public=public)
    if as_json:
        click.echo(to_json(answer))
        return
    say(tr("a boot of {what} uses it from now on", what=subject.what))
    if answer["changed"]:
        say(
            tr(
                "serving {name}, version {version}, which carries it",
                name=answer["name"],
                version=answer["version"],
            )
        )


@command.command(short_help=tr("Delete the profile of an image that this home keeps."))
@click.argument("ref", type=REF, metavar="REF|IMAGE")
@home_option
def forget(ref: str, home: Home) -> None:
    """Delete the profile that this home keeps for REF. One that its publisher attached stays."""
    with ExitStack() as stack:
        subject = Subject.of(ref, home, stack, quiet=False)
        if not forget_profile(home, subject.image_id):
            raise NotHereError(
                tr("no profile of {what} is kept here", what=subject.what),
                hint="`p2pcloop profile show` tells what a boot would use",
            )


@contextmanager
def _publisher(subject: Subject, home: Home, key_name: str | None) -> Iterator[Publisher | None]:
    """The publisher of the next version of an image; None if the image is not the user's.

    Raises:
        UsageError: there is a newer version.
    """
    ref, owner = subject.ref, None
    if key_name is not None:
        with words_of_the_user():
            check_label(key_name)
    if ref is not None:
        owner = name_of_key(home.keys, ref.signed.manifest.key, key_name)
    if ref is None or owner is None:
        yield None
        return
    with Publisher.of(home, ref.client, ref.signed.manifest.label, owner) as publisher:
        publisher.check_newest(ref, hint="or leave it to its publisher")
        yield publisher


def _release(
    ref: StoredRef, touches: bytes, publisher: Publisher, message: str, *, public: bool
) -> dict[str, Any]:
    """Publish the next version of an image, which carries a profile."""
    manifest = ref.signed.manifest
    if manifest.private:
        warn(
            "the image is private, its manifest is not: anyone can see the numbers of the"
            " blocks that a boot reads"
        )
    content = replace(Content.of(manifest), profile=touches)
    return publisher.release(
        content, message=message, parent=manifest.parent, public=public, secret=ref.secret
    )


def profile_facts(name: str, found: FoundProfile) -> dict[str, Any]:
    """The facts of a profile (docs/commands.md).

    Args:
        name: of the image or file that was asked for.
        found: its profile.
    """
    profile, of = found.profile, found.of
    touches = unpack_touches(profile.touches)
    blocks = sum(touch.count for touch in touches)
    return {
        "name": name,
        "origin": found.origin,
        "key": None if profile.key is None else format_key(profile.key),
        "of": None if of is None else {"name": str(of.name), "version": of.version},
        "image_id": profile.image_id,
        "size": profile.size,
        "created": profile.created,
        "touches": len(touches),
        "blocks": blocks,
        "bytes": blocks * BLOCK_SIZE,
        "seconds": seconds_of(touches),
        "fetched": None,
    }


def profile_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts as text for people."""
    yield (
        "profile",
        {
            "recorded": tr("recorded here, by a boot"),
            "kept": tr("attached here, signed by @{key}", key=facts["key"]),
            "attached": tr("attached by the publisher, @{key}", key=facts["key"]),
            "file": tr("in a file, signed by @{key}", key=facts["key"])
            if facts["key"]
            else tr("in a file, not signed"),
        }[facts["origin"]],
    )
    of = facts["of"]
    if of is None:
        yield "of", facts["name"] if facts["origin"] != "file" else facts["image_id"].hex()
    else:
        yield (
            "of",
            tr(
                "{name}, version {version}, which it was made from",
                name=of["name"],
                version=of["version"],
            ),
        )
    yield "created", datetime.fromtimestamp(facts["created"], UTC).isoformat(sep=" ")
    yield (
        "reads",
        tr(
            "{bytes} in {blocks} blocks of 4 KiB, {touches} touches, within {seconds:.1f} s",
            bytes=format_size(facts["bytes"]),
            blocks=facts["blocks"],
            touches=facts["touches"],
            seconds=facts["seconds"],
        ),
    )
    if facts["fetched"] is not None:
        yield (
            "fetches",
            tr("{fetched}, the compressed chunks of these", fetched=format_size(facts["fetched"])),
        )
