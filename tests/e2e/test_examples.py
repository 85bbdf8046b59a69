"""Each of examples/, run as its first lines say."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from bench.links.bare_machines import BRIDGE, lan
from tests.support.boot_disks import stock_kernel
from tests.support.programs import P2PCLOOP, Nodes, started, tool
from tests.support.waiting import BOUND, wait_until
from tools.console import Console
from tools.tiny_image import SHELL_PROMPT

pytestmark = pytest.mark.e2e

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


@pytest.fixture
def temporary(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where an example makes its temporary files. It removes them, and leaves no process."""
    monkeypatch.setenv("PATH", f"{P2PCLOOP.parent}:{os.environ['PATH']}")
    with tempfile.TemporaryDirectory(prefix="p2px-") as directory:
        monkeypatch.setenv("TMPDIR", directory)
        yield Path(directory)
        assert list(Path(directory).iterdir()) == []
    wait_until(lambda: not running_with(directory), f"a process of {directory} does not end")


def running_with(word: str) -> list[str]:
    """Command lines that hold a word."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(FileNotFoundError, ProcessLookupError):
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
            found += [line] if word in line else []
    return found


def on_terminal(tmp_path: Path, *words: str | Path) -> Console:
    return Console([str(word) for word in words], log=tmp_path / "log", errors=tmp_path / "errors")


def test_boot_from_a_peer(cloop: Path, tmp_path: Path, temporary: Path) -> None:
    with on_terminal(tmp_path, EXAMPLES / "boot-from-a-peer.sh", cloop) as example:
        example.expect(r"the link: magnet:\?xt=", BOUND)
        example.expect(SHELL_PROMPT, BOUND)
        assert list(temporary.iterdir()) != []
        example.send_line("poweroff")
        example.expect(r"[1-9][\d,]+ bytes came, of an image of [\d,]+", BOUND)
        example.expect(r"from http://127\.0\.0\.1:\d+", BOUND)
        assert example.wait(BOUND) == 0


@pytest.mark.usefixtures("temporary")
def test_keep_changes(cloop: Path, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.delta"
    with on_terminal(tmp_path, EXAMPLES / "keep-changes.sh", cloop, overlay) as example:
        example.expect(SHELL_PROMPT, BOUND)
        example.run("echo kept > /root/mine", BOUND)
        example.send_line("poweroff")
        example.expect("the second boot", BOUND)
        example.expect(SHELL_PROMPT, BOUND)
        assert example.run("cat /root/mine", BOUND).split() == ["kept"]
        example.send_line("poweroff")
        example.expect("made on +an image file", BOUND)
        example.expect("format +cloop V2.0", BOUND)
        assert example.wait(BOUND) == 0
    raw = tmp_path / "raw"
    tool("extract_compressed_fs", overlay.with_suffix(".delta.cloop"), raw)
    assert tool("debugfs", "-R", "cat /root/mine", raw) == "kept\n"


@pytest.mark.parametrize("example", ["keep-changes", "boot-from-a-peer"])
def test_one_that_is_killed_leaves_nothing_behind(
    cloop: Path, tmp_path: Path, temporary: Path, example: str
) -> None:
    words = [cloop, tmp_path / "mine.delta"] if example == "keep-changes" else [cloop]
    with on_terminal(tmp_path, EXAMPLES / f"{example}.sh", *words) as console:
        console.expect(SHELL_PROMPT, BOUND)
        assert list(temporary.iterdir()) != []
        console.process.send_signal(signal.SIGTERM)
        assert console.wait(BOUND) in (-signal.SIGTERM, 128 + signal.SIGTERM)
    assert list(temporary.iterdir()) == []
    wait_until(lambda: not running_with(str(temporary)), "that no process of it is left")


@pytest.mark.usefixtures("temporary")
def test_pass_on_changes(cloop: Path) -> None:
    said = tool(EXAMPLES / "pass-on-changes.sh", cloop)
    names = re.findall(r"^(@\w+)/(class|homework): magnet:", said, re.MULTILINE)
    assert [label for _, label in names] == ["class", "homework"]
    assert names[0][0] != names[1][0]
    assert f"made from {names[0][0]}/class, version 1" in said
    size = re.search(r" +1 +[-0-9]+ [+:0-9]+ +(\d+)\.\d kB +with hello-p2pcloop", said)
    assert size and 0 < int(size[1]) < 100
    assert said.count("hello from an installed package") == 1
    assert re.search(r"[1-9][\d,]+ bytes came, of an image of [\d,]+", said)


@pytest.mark.usefixtures("temporary")
def test_suspend_and_go_on(cloop: Path) -> None:
    stock_kernel()
    said = tool(EXAMPLES / "suspend-and-go-on.sh", cloop)
    assert said.endswith("g2\nremember me\n")


@pytest.mark.usefixtures("temporary")
def test_desktop_from_a_link(cloop: Path, tmp_path: Path) -> None:
    """With an image that has no desktop, which needs less time: tests/e2e/test_desktop.py has."""
    with on_terminal(tmp_path, EXAMPLES / "desktop-from-a-link.sh", cloop, "6") as example:
        example.expect("the link: magnet:", BOUND)
        example.expect(SHELL_PROMPT, BOUND)
        example.send_line("poweroff")
        example.expect(r"[1-9][\d,]+ bytes came, of an image of [\d,]+", BOUND)
        assert example.wait(BOUND) == 0


def test_serve_from_a_mirror(cloop: Path, tmp_path: Path, temporary: Path) -> None:
    with on_terminal(tmp_path, EXAMPLES / "serve-from-a-mirror.sh", cloop) as example:
        example.expect(r"data/[0-9a-f]{32}/pack, [1-9]\d+ bytes", BOUND)
        server = example.expect(r"booting http://([\d.:]+)/@\w+/example", BOUND)[1]
        example.expect(SHELL_PROMPT, BOUND)
        assert list(temporary.iterdir()) != []
        example.send_line("poweroff")
        example.expect(r"[1-9][\d,]+ bytes came, of an image of [\d,]+", BOUND)
        example.expect(f"from http://{server}", BOUND)
        assert example.wait(BOUND) == 0


@pytest.mark.usefixtures("temporary")
def test_use_with_nbd(image: Path, cloop: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.img"
    said = tool(EXAMPLES / "use-with-nbd.sh", cloop, out)
    assert "export-size: 33554432" in said
    assert "identical" in said
    assert out.read_bytes() == image.read_bytes()


@pytest.mark.parametrize("example", sorted(EXAMPLES.glob("*.sh")), ids=lambda path: path.stem)
def test_without_arguments_it_says_its_usage(example: Path) -> None:
    with started([example]) as process:
        out, err = process.communicate(timeout=BOUND)
    assert (process.returncode, out) == (2, "")
    assert err.startswith(f"usage: {example} IMAGE")
    assert len(err.splitlines()) == 1


def test_every_example_has_a_test() -> None:
    tests = {name.removeprefix("test_").replace("_", "-") for name in globals()}
    assert {path.stem for path in EXAMPLES.glob("*.sh")} <= tests


@pytest.mark.usefixtures("temporary")
def test_classroom(cloop: Path) -> None:
    said = tool(EXAMPLES / "classroom.sh", cloop)
    assert {"anna reads: lesson one", "ben reads: lesson one"} <= {*said.splitlines()}
    assert re.search(r"^teacher .* lan:class 10\.88\.0\.\d+ ", said, re.MULTILINE)


@pytest.mark.usefixtures("temporary")
def test_classroom_of_machines(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    """Until machines may start; tests/e2e/test_netboot.py starts some."""
    with lan() as (here, _other):
        words: list[str | Path] = [EXAMPLES / "classroom-of-machines.sh", cloop, BRIDGE]
        words.append(tmp_path / "changes")
        environment = nodes.make().environment
        words[:0] = here.inside
        with started(words, env=environment) as example:
            assert example.stderr is not None
            said = [next(example.stderr)]
            while "machines that start" not in said[-1]:
                said.append(next(example.stderr))
            assert (tmp_path / "changes").is_dir()
            example.send_signal(signal.SIGINT)
            assert example.wait(BOUND) in (0, 128 + signal.SIGINT), said


@pytest.mark.usefixtures("temporary")
def test_set_up_a_guest(cloop: Path, tmp_path: Path) -> None:
    script = tmp_path / "script"
    script.write_text(
        "#!/bin/sh\necho beside $(cat /proc/1/comm)\nmkdir result\nid -u >result/user\n"
    )
    said = tool(EXAMPLES / "set-up-a-guest.sh", cloop, script, tmp_path / "result")
    assert said == "beside init\n"
    assert (tmp_path / "result/user").read_text() == "0\n"
