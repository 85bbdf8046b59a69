"""The manual pages: one for each command, with all its options, as man(1) wants them."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import click
import pytest

from p2pcloop.cli.commands import COMMANDS
from tests.support.waiting import BOUND
from tools.man_pages import commands, write_pages

GROUPS = {"config", "daemon", "key", "name", "profile"}
PAGES = dict(commands())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("man")
    write_pages(folder)
    return folder


def formatted(page: Path) -> subprocess.CompletedProcess[str]:
    """A page as man shows it on a wide terminal; man's warnings are on stderr."""
    return subprocess.run(
        ["man", "--warnings", "--no-justification", "--no-hyphenation", "--local-file", page],
        env={"PATH": "/usr/bin:/bin", "LC_ALL": "C.UTF-8", "MANWIDTH": "1000", "MANROFFSEQ": ""},
        capture_output=True, text=True, timeout=BOUND, check=True,
    )  # fmt: skip


def test_each_command_has_a_page(folder: Path) -> None:
    written = {page.stem for page in folder.iterdir()}
    assert {f"p2pcloop-{name}" for name in COMMANDS} | {"p2pcloop", "p2pcloopd"} <= written
    assert {"p2pcloop-daemon-start", "p2pcloop-key-export", "p2pcloop-name-add"} <= written
    inner = {page.rpartition("-")[0] for page in written if page.count("-") > 1}
    assert inner == {f"p2pcloop-{name}" for name in GROUPS}


@pytest.mark.interop
@pytest.mark.parametrize("path", ["p2pcloop", "p2pcloopd", "p2pcloop boot", "p2pcloop daemon"])
def test_man_shows_a_page(path: str, folder: Path) -> None:
    done = formatted(folder / f"{path.replace(' ', '-')}.1")
    assert done.stderr == ""
    shown = " ".join(done.stdout.split())
    assert f"NAME {path.replace(' ', '-')} - " in shown
    for option in options(path):
        assert option in shown


@pytest.mark.parametrize("path", PAGES)
def test_a_page_has_all_that_help_has(path: str, folder: Path) -> None:
    text = plain((folder / f"{path.replace(' ', '-')}.1").read_text())
    assert all(option in text for option in options(path))
    help_text = PAGES[path].command.get_help(PAGES[path])
    words = set(re.findall(r"[\w@./=]{4,}", help_text)) - {
        "Usage",
        "Options",
        "Commands",
        "Examples",
    }
    assert {word for word in words if word.strip("./") not in text} == set()


def options(path: str) -> list[str]:
    parameters = PAGES[path].command.get_params(PAGES[path])
    return [
        name
        for each in parameters
        if isinstance(each, click.Option) and not each.hidden
        for name in each.opts
    ]


def plain(roff: str) -> str:
    """The text of a page, in place of roff's names for characters."""
    names = {r"\-": "-", r"\(aq": "'", r"\(ga": "`", r"\(ti": "~", r"\(ha": "^", r"\e": "\\"}
    return re.sub(r"\\(\([a-z]{2}|[-e])", lambda found: names[found[0]], roff)
