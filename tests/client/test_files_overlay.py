"""A copy of a files overlay for publishing: where it lies, and how its path is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from p2pcloop.client import files_overlay, interpreter
from p2pcloop.errors import GuestError
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.home import Home
from p2pcloop.units import BLOCK_SIZE
from p2pcloopd.guest.unseen import settle as settle_program

ODD = "caf\udce9 \r\n of"


def test_a_path_of_any_name_comes_back_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def command(module: str) -> list[str]:
        program = (
            f"import sys, pathlib; import {module} as m; m.settle = lambda overlay, home, folder:"
            " folder / (overlay.name + home.root.name); m.main()"
        )
        return [sys.executable, "-c", program]

    monkeypatch.setattr(interpreter, "module_command", command)
    found = files_overlay._settled(tmp_path / "mine", Home.at(tmp_path / ODD), tmp_path / ODD)
    assert found == tmp_path / ODD / f"mine{ODD}"


def test_what_the_program_says_need_be_no_text(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = "import sys; sys.stderr.buffer.write(b'p2pcloop: no \\xff'); sys.exit(3)"
    monkeypatch.setattr(interpreter, "module_command", lambda _: [sys.executable, "-c", said])
    with pytest.raises(GuestError, match="cannot be looked at: no \ufffd"):
        files_overlay._settled(tmp_path / "mine", Home.at(tmp_path), tmp_path)


def test_the_copy_lies_in_the_folder_that_the_caller_removes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So nothing stays beside the overlay where a publish is killed."""
    overlay, folder = tmp_path / "mine.delta", tmp_path / "folder"
    folder.mkdir()
    Overlay.create(overlay, image_id=b"i" * 32, image_size=8 * BLOCK_SIZE).close()
    monkeypatch.setattr(settle_program, "run_unseen", lambda *_, **__: None)
    monkeypatch.setattr(sys, "stdin", sys.__stdin__)
    copy = settle_program.settle(overlay, Home.at(tmp_path / "home"), folder)
    assert copy.parent == folder
    assert sorted(path.name for path in tmp_path.iterdir() if path.is_file()) == ["mine.delta"]
