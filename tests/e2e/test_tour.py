"""The sessions of README.md and docs/tour.md, typed as they stand; their output is compared.

A `console` block holds commands (`$ …`), lines that are typed in a guest (`tiny# …`), and output.
Both pages run in one shell each, with a small image in place of Debian.
"""

from __future__ import annotations

import os
import re
import shutil
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.support.programs import Node, tool
from tests.support.waiting import BOUND
from tools.console import Console, ConsoleError, strip_controls
from tools.knoppix_cd import fill_tiny, make_cd, make_root
from tools.tiny_image import SHELL_PROMPT, build_tiny_image

pytestmark = pytest.mark.e2e

CHECKOUT = Path(__file__).resolve().parents[2]
GUEST_LINE = re.compile(r"(?:root@p2pcloop:~|tiny)# (.*)")
COMMENT = re.compile(r"\s{2,}# .*$")

UNSEEN = re.compile(r"<\d+>|\w+ +\[#*-*\] +\d+%")
"""The end of a command, and bars of progress."""

LOOSE = (
    (r"@[a-z2-7]+(?:…[a-z2-7]+|(?=/))", r"@\\w+"),
    (r"@[a-z2-7]+…", r"@.*"),
    (r"btih:[0-9a-f]+…", r"btih:.*"),
    (r"…", r".*"),
    (r"\d[\d.]* (?:bytes|[kMG]B)\b", r"\\d[\\d.]* (?:bytes|[kMG]B)"),
    (r"(?<!version )\d[\d.:]*", r"\\d[\\d.:]*"),
    (r" +", r" +"),
)
"""What of a promised line may be otherwise: keys, hashes, sizes, numbers and times."""


@dataclass
class Step:
    """One command of a page.

    Attributes:
        line: of the page.
        command: for the shell.
        typed: lines for the guest that it starts.
        output: the promised lines; `…` stands for any.
    """

    line: int
    command: str
    typed: list[str] = field(default_factory=list)
    output: list[str] = field(default_factory=list)


def steps_of(page: Path) -> Iterator[Step]:
    """The commands of a page, in order."""
    step: Step | None = None
    inside = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            inside = line == "```console"
        elif not inside or not line:
            continue
        elif line.startswith("$ "):
            if step:
                yield step
            step = Step(number, COMMENT.sub("", line[2:]))
        elif step and (typed := GUEST_LINE.fullmatch(line)):
            step.typed.append(typed[1])
        elif step:
            step.output.append(line)
    if step:
        yield step


def pattern_of(output: list[str]) -> str:
    """A regular expression for promised lines, each with its line's end."""
    pattern = ""
    for line in output:
        if line == "…":
            pattern += r"(?:.*\n)*"
            continue
        loose = re.escape(line).replace(r"\ ", " ").replace(r"\.", ".").replace(r"\-", "-")
        for told, found in LOOSE:
            loose = re.sub(told, found, loose)
        pattern += loose + r"\n"
    return pattern


class Shell(Console):
    """A shell on a terminal, with a clone of the repository in which images have been built."""

    def __init__(self, clone: Path) -> None:
        self.shown = clone / "shown"
        self.before = ""
        environment = {k: v for k, v in os.environ.items() if not k.startswith("P2PCLOOP_")}
        super().__init__(
            ["bash", "--noprofile", "--norc"],
            log=self.shown, errors=clone / "errors", env=environment | {"PWD": str(clone)},
        )  # fmt: skip
        self.do(Step(0, f"exec 2>&1; stty -echo; cd {clone}"))
        self.before = ""

    def do(self, step: Step) -> str:
        """Run a command, and type what its guest gets; return what was shown, line by line."""
        start = self.shown.stat().st_size
        joint = "" if step.command.endswith("&") else ";"
        self.send_line(f"{self.fill_in(step.command)} {joint} printf '<%d>\\n' $?")
        for typed in step.typed:
            self.expect(SHELL_PROMPT, BOUND)
            self.send_line(typed)
        ended = self.expect(r"<(\d+)>\r?\n", BOUND)
        shown = self.shown.read_bytes()[start:].decode(errors="replace")
        lines = [as_seen(line) for line in shown.split("\n")]
        text = "".join(f"{line}\n" for line in lines if line and not UNSEEN.match(line))
        assert ended[1] in ("0", "143"), f"line {step.line}: {step.command}\n{text}"
        self.before += text
        return text

    def fill_in(self, command: str) -> str:
        """Write a shortened link or key out, as it was printed last."""
        for label in re.findall(r"@\w+/([\w-]+)", command):
            key = re.findall(rf"@(\w+)/{label}\b", self.before)[-1]
            command = re.sub(rf"@\w+/{label}\b", f"@{key[:4]}/{label}", command)
        if "'magnet:?xt=" in command:
            link = re.findall(r"'(magnet:[^']+)'", self.before)[-1]
            command = re.sub(r"'magnet:[^']*…'", f"'{link}'", command)
        return command


def as_seen(line: str) -> str:
    """A line as a reader sees it at last, with its indentation."""
    last = line.rstrip("\r").rpartition("\r")[2]
    return " " * (len(last) - len(last.lstrip(" "))) + strip_controls(last)


@pytest.fixture
def clone() -> Iterator[Path]:
    """A directory like a clone of the repository, with `.venv` and `build/images`."""
    directory = Path(tempfile.mkdtemp(prefix="p2pt-"))
    (directory / ".venv").symlink_to(Path(sys.prefix))
    images = directory / "build" / "images"
    images.mkdir(parents=True)
    try:
        yield directory
    finally:
        for home in images.glob("*/control.sock"):
            Node(home.parent).remove()
        shutil.rmtree(directory)


def play(page: Path, clone: Path, *before: str, after: str = "true") -> None:
    """Type the commands of a page; their output must be what the page says."""
    wrong = []
    begin, end = ([Step(0, command) for command in typed] for typed in (before, [after]))
    with Shell(clone) as shell:
        for step in [*begin, *steps_of(page), *end]:
            try:
                text = shell.do(step)
            except ConsoleError as error:
                error.add_note(
                    f"line {step.line}: {step.command}\n{shell.shown.read_text()[-3000:]}"
                )
                raise
            if not re.fullmatch(pattern_of(step.output), text):
                promised = "\n".join(step.output)
                wrong.append(f"line {step.line}: {step.command}\n{promised}\n--- but:\n{text}")
    assert not wrong, "\n\n".join(wrong)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `tools/build-image --tiny` makes."""
    image = tmp_path_factory.mktemp("small") / "tiny.img"
    build_tiny_image(image)
    tool("create_compressed_fs", "-B", "65536", "-L", "9", image, image.with_suffix(".cloop"))
    return image.with_suffix(".cloop")


def names_in(directory: Path) -> set[str]:
    return {path.name for path in directory.iterdir()}


def deleted_by(page: Path) -> set[str]:
    """What the page says is to be deleted before its session is typed again."""
    (names,) = re.findall(
        r"To begin anew, [^`]*(?:`build/images`: )?`rm -r ([^`]*)`", page.read_text()
    )
    return set(names.split())


def test_the_first_session_of_the_readme(small: Path, clone: Path) -> None:
    images = clone / "build/images"
    shutil.copy(small, images / "debian.cloop")
    before = names_in(images)
    page = CHECKOUT / "README.md"
    play(page, clone, after="[ -d build/images ] && [ -z ${P2PCLOOP_HOME+set} ]")
    assert names_in(images) - before == deleted_by(page)


def test_the_tour(small: Path, clone: Path) -> None:
    images = clone / "build/images"
    shutil.copy(small, images / "tiny.cloop")
    root, system, inner = images / "root", images / "root.iso", images / "KNOPPIX"
    fill_tiny(root)
    make_root(root, system)
    tool("create_compressed_fs", "-B", "65536", "-L", "9", system, inner)
    make_cd(images / "tiny-knoppix.iso", [inner])
    before = names_in(images)
    begun = (". .venv/bin/activate", "cd build/images", "export P2PCLOOP_HOME=$PWD/tour")
    page = CHECKOUT / "docs/tour.md"
    play(page, clone, *begun)
    assert names_in(images) - before == deleted_by(page)
