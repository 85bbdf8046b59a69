"""tools/get-uml-kernel, with an archive of its own and a program that answers as a kernel does."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest

from p2pcloopd import programs
from p2pcloopd.guest.system import kernel
from tests.support.archive import Archive, Key, careless_apt, run
from tools import get_uml_kernel

pytestmark = pytest.mark.interop

MODULES = "usr/lib/uml/modules"


class Suites:
    """An archive in which a suite has one version of the kernel, and of this system's C library."""

    def __init__(self, folder: Path, key: Key) -> None:
        self.archive = Archive(folder / "archive")
        self._key = key
        libraries = kernel.shared_libraries(programs.find_program("sh", "dash"))
        needed = [path for path in libraries if path.name.startswith(("libc.", "ld-linux"))]
        place = "usr/lib/" + run("gcc", "-print-multiarch").strip()
        self._library = self.archive.add(
            "libc6", "2.99", {f"{place}/{path.name}": path.read_bytes() for path in needed}
        )
        self._support = self.archive.add("libgcc-s1", "99", {})

    def add(self, suite: str, release: str, module: str = "virtio_blk") -> None:
        """Make a suite whose kernel calls itself `release`, with one module."""
        source = f'#include <stdio.h>\nint main(void) {{ puts("{release}"); }}\n'
        program = self.archive.root / "program"
        subprocess.run(
            ["gcc", "-x", "c", "-o", program, "-"], input=source, text=True, check=True, timeout=120
        )
        files = {
            "usr/bin/linux.uml": program.read_bytes(),
            f"{MODULES}/{release}/modules.dep": f"kernel/{module}.ko:\n".encode(),
            f"{MODULES}/{release}/kernel/{module}.ko": b"a module",
        }
        stanza = self.archive.add("user-mode-linux", f"{release}um1", files)
        self.archive.publish(suite, [stanza, self._library, self._support], self._key)


@pytest.fixture
def suites(signing_key: Key, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Suites:
    suites = Suites(tmp_path, signing_key)
    suites.add("stable", "6.1.0")
    sources = (
        f"Types: deb\nURIs: file:{suites.archive.root}\nSuites: stable\nComponents: main\n"
        f"Signed-By: {signing_key.public}\n"
    )
    monkeypatch.setenv("APT_CONFIG", str(careless_apt(tmp_path / "apt", sources)))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.delenv("P2PCLOOP_KERNEL")
    return suites


def get(*args: str) -> int:
    return get_uml_kernel.main(args)


def test_kernel_that_boot_takes_is_unpacked_once(
    suites: Suites, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suites.add("sid", "7.2.7")
    assert get() == 0
    link = kernel.unpacked_kernel()
    assert link.is_relative_to(tmp_path / "data")
    assert capsys.readouterr().out == f"{link}\n"
    found = kernel.find_kernel()
    assert (found.path, found.release) == (link.resolve(), "7.2.7")
    assert kernel.load_modules(found, ["virtio_blk"]) == [("virtio_blk", b"a module")]
    own = [path for path in kernel.shared_libraries(found.path) if path.name.startswith("libc.")]
    assert own
    assert all(path.is_relative_to(link.parent) for path in own)
    before = link.resolve().stat()
    # Nothing is fetched: there is nothing to fetch from.
    suites.archive.root.rename(tmp_path / "gone")
    assert get() == 0
    assert "here already" in capsys.readouterr().err
    assert link.resolve().stat() == before


def test_force_takes_a_newer_one_and_leaves_the_old_one_where_there_is_none(
    suites: Suites, capsys: pytest.CaptureFixture[str]
) -> None:
    suites.add("sid", "7.2.7")
    suites.add("later", "7.3.1")
    assert get() == 0
    folder = kernel.unpacked_kernel().parent
    (folder / "mine").mkdir()
    assert get("--force", "--suite", "none") == 1
    assert "no suite none" in capsys.readouterr().err
    assert kernel.find_kernel().release == "7.2.7"
    assert get("--force", "--suite", "later") == 0
    assert kernel.find_kernel().release == "7.3.1"
    [root] = {path.name for path in folder.iterdir()} - {"linux.uml", "mine"}
    assert root.startswith("7.3.1um1-")


def test_a_users_own_file_is_left_alone(
    suites: Suites, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    suites.add("sid", "7.2.7")
    own = tmp_path / "own/linux.uml"
    own.parent.mkdir()
    own.write_text("mine")
    assert get("--force", "--out", str(own.parent)) == 1
    assert "not made by this tool" in capsys.readouterr().err
    assert (own.read_text(), list(own.parent.iterdir())) == ("mine", [own])


def test_a_kernel_that_was_moved_is_fetched_anew(suites: Suites, tmp_path: Path) -> None:
    suites.add("sid", "7.2.7")
    assert get("--out", str(tmp_path / "one")) == 0
    (tmp_path / "one").rename(tmp_path / "two")
    assert get("--out", str(tmp_path / "two")) == 0
    assert kernel.find_kernel(tmp_path / "two/linux.uml").release == "7.2.7"


@pytest.mark.parametrize(
    ("suite", "says"),
    [
        ("old", "the kernel of old is 6.15.9; only 6.16 and later are faster"),
        ("bare", "lacks the module virtio_blk"),
    ],
)
def test_kernel_that_would_not_do(
    suite: str, says: str, suites: Suites, capsys: pytest.CaptureFixture[str]
) -> None:
    suites.add("old", "6.15.9")
    suites.add("bare", "7.2.7", module="loop")
    assert get("--suite", suite) == 1
    assert says in capsys.readouterr().err
    assert list(kernel.unpacked_kernel().parent.iterdir()) == []


@pytest.mark.parametrize("args", [["--suite", "x y"], ["--suite"], ["--loud"], ["more"]])
def test_what_makes_no_sense_is_refused(args: Sequence[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        get(*args)
    assert caught.value.code == 2
