"""The command line in this process, with a home of its own and files to work on."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.cli.main import main
from tests.support.documented import check_documented


@dataclass(frozen=True)
class Ran:
    """How a command ended."""

    code: int
    out: str
    err: str
    words: tuple[str, ...] = field(default=(), compare=False)

    @property
    def json(self) -> dict[str, Any]:
        (line,) = self.out.splitlines()
        values: dict[str, Any] = json.loads(line)
        check_documented(self.words, values)
        return values


Run = Callable[..., Ran]


@pytest.fixture
def home(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A node's home whose socket's path is short enough; nothing of the user's is touched."""
    folder = Path(tempfile.mkdtemp(prefix="p2pcloop-"))
    monkeypatch.setenv("P2PCLOOP_HOME", str(folder))
    yield folder
    shutil.rmtree(folder)


@pytest.fixture
def p2pcloop(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Run the program's `main` with arguments, as the installed script does."""
    assert home.is_dir()

    def run(*arguments: object) -> Ran:
        monkeypatch.setattr(sys, "argv", ["p2pcloop", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        code = caught.value.code
        number = code if isinstance(code, int) else int(code is not None)
        return Ran(number, *captured, tuple(map(str, arguments)))

    return run
