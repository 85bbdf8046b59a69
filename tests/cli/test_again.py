"""The commands that the end of a boot shows: typed, they do what they say."""

from __future__ import annotations

import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import click
import pytest

from p2pcloop.cli.main import cli
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.home import Home
from p2pcloopd.commands import boot
from p2pcloopd.commands.again import Again
from p2pcloopd.commands.guest_options import GuestOptions
from p2pcloopd.guest.result import GuestResult
from tests.support.versions import known_version, overlay_on


def parsed(*words: str) -> dict[str, Any]:
    """What `boot` takes its words for."""
    with boot.command.make_context("boot", list(words)) as context:
        return context.params


@contextmanager
def called(*words: str) -> Iterator[tuple[str, GuestOptions]]:
    """The REF and the options of a boot, while it is the command that runs."""
    with boot.command.make_context("boot", list(words)) as context:
        values = context.params
        yield (
            values["ref"],
            GuestOptions(**{each.name: values[each.name] for each in fields(GuestOptions)}),
        )


class Shown:
    """What the end of a boot shows."""

    def __init__(self, *words: str) -> None:
        with called(*words) as (ref, options):
            assert options.overlay is not None
            info = Overlay.inspect(options.overlay)
            again = Again.of(boot.command, ref, options, words)
            self.boot = again.boot(options.overlay, info)
            self.publish = again.publish(options.overlay, info)


def check_typed(command: str) -> list[str]:
    """The words of a command, which its parser takes."""
    program, name, *words = shlex.split(command)
    assert program == "p2pcloop"
    found = cli.get_command(click.Context(cli), name)
    assert found is not None
    found.make_context(name, list(words)).close()
    return [name, *words]


@pytest.fixture
def node(home: Path) -> Home:
    node = Home.at(home)
    node.create()
    return node


MACHINE = [
    *("--vm", "qemu", "--mem", "1G", "--net", "user", "--port", "2222:22", "--port", "8080:80"),
    *("--append", "quiet lang=de", "--cpu", "-1", "--autologin", "--session-user", "o'neil"),
]


def test_a_boot_is_shown_with_what_it_needs(node: Home, home: Path, tmp_path: Path) -> None:
    image = known_version(node, 1, 1)
    overlay = str(overlay_on(image, tmp_path / "my changes.delta"))
    words = ["debian", "--overlay", overlay, *MACHINE, "--home", str(home)]
    shown = Shown(*words, "--report", "r.json", "-v", "--quiet")
    name, *again = check_typed(shown.boot)
    assert name == "boot"
    assert "--at" not in again
    before, after = parsed(*words), parsed(*again)
    assert after.pop("ref") == str(image.manifest.name)
    assert before | after == before
    (publish,) = shown.publish
    file = shlex.quote(overlay)
    assert publish == f"p2pcloop publish {file} --name LABEL --home {home}"
    # Where the environment says which home, it says so next time, too.
    assert "--home" not in Shown("debian", "--overlay", overlay).boot


@pytest.mark.parametrize(("newest", "at"), [(1, None), (2, "1")])
def test_the_version_is_named_where_the_newest_will_not_do(
    node: Home, tmp_path: Path, newest: int, at: str | None
) -> None:
    """Published while the guest ran, say; or the guest was booted by a link, or with --at."""
    overlay = str(overlay_on(known_version(node, 1, 1), tmp_path / "mine.delta"))
    known_version(node, 2, newest)
    for words in (("debian",), ("debian", "--at", "1")):
        _, *again = check_typed(Shown(*words, "--overlay", overlay).boot)
        assert parsed(*again)["at"] == (0 if at is None else int(at))


def test_a_guest_with_a_name_is_started(node: Home, home: Path, tmp_path: Path) -> None:
    """Its record is kept: a boot under its name would be refused."""
    overlay = str(overlay_on(known_version(node, 1, 1), tmp_path / "mine.delta"))
    words = ("debian", "--name", "web", "--overlay", overlay, "--home", str(home))
    assert Shown(*words).boot == f"p2pcloop start web --home {home}"


def test_a_file_is_seeded_as_it_was_booted(node: Home, tmp_path: Path) -> None:
    image, overlay = tmp_path / "disk.img", tmp_path / "mine.delta"
    image.write_bytes(bytes(4096))
    Overlay.create(overlay, image_id=bytes(32), image_size=4096).close()
    home = f"--home {node.root}"
    words = (str(image), "--partition", "2", "--overlay", str(overlay), *shlex.split(home))
    shown = Shown(*words)
    assert shown.boot == (f"p2pcloop boot {image} --overlay {overlay} --partition 2 {home}")
    assert shown.publish == [
        f"p2pcloop seed {image} --partition 2 {home}",
        f"p2pcloop publish {overlay} --name LABEL --base REF {home}",
    ]
    # Made on a file, and booted over the image of that.
    for each in Shown("@key/disk", "--at", "3", "--overlay", str(overlay)).publish:
        assert each == f"p2pcloop publish {overlay} --name LABEL --base @key/disk"


@pytest.mark.parametrize("choice", ["--partition 2", "--raw"])
def test_the_image_of_a_file_is_named_without_options_of_files(
    node: Home, tmp_path: Path, choice: str
) -> None:
    """They are refused of a name."""
    file = tmp_path / "disk.img"
    file.write_bytes(bytes(4096))
    image = known_version(node, 1, 1)
    overlay = str(overlay_on(image, tmp_path / "mine.delta"))
    shown = Shown(str(file), *choice.split(), "--overlay", overlay, "--vm", "qemu")
    name = image.manifest.name
    assert shown.boot == f"p2pcloop boot {name} --overlay {overlay} --vm qemu"
    assert shown.publish == [f"p2pcloop publish {overlay} --name LABEL"]


def test_they_stand_at_the_end_of_a_boot(
    node: Home, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    overlay = str(overlay_on(known_version(node, 1, 1), tmp_path / "mine.delta"))
    words = ("debian", "--overlay", overlay, "--vm", "qemu")
    with called(*words) as (ref, options):
        boot.report_end(GuestResult(0, "poweroff", None, 1, 1), ref, options, words)
    err = capsys.readouterr().err
    assert f"boot it again: {Shown(*words).boot}\n" in err
    assert f"pass it on:    p2pcloop publish {overlay} --name LABEL\n" in err
