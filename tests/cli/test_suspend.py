"""`p2pcloop suspend` as it is called; there is no guest."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from click.testing import CliRunner

from p2pcloop.cli.suspend import _use_of, command
from p2pcloop.errors import UsageError


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "for a state that is published"),
        (("--publish", "up", "--private"), "for a state that is published"),
        (("--publish", "up", "--no-rehearsal"), "for a state that is published"),
        (("--publish", "up", "--keep-running"), "keeps its ports"),
    ],
)
def test_what_cannot_be_used_is_not_rehearsed(
    words: tuple[str, ...], message: str, tmp_path: Path
) -> None:
    args = ["g1", *words, "--rehearse", "true", "--home", str(tmp_path)]
    done = CliRunner().invoke(command, args)
    assert isinstance(done.exception, UsageError)
    assert message in str(done.exception)


def test_a_guest_without_ports_cannot_be_used() -> None:
    record = SimpleNamespace(name="g1", network="user", ports=[])
    with pytest.raises(UsageError, match="no port leads into the guest g1"):
        _use_of("true", cast("Any", record))
