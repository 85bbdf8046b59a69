"""`p2pcloop migrate` where the other end fails; the guest is played."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from p2pcloop.cli import migrate
from p2pcloop.errors import UnreachableError


def test_a_guest_that_does_not_go_on_there_is_said_to_be_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text('#!/bin/sh\ncase "$2" in *resume*) exit 7;; esac\n')
    ssh.chmod(0o755)
    record = SimpleNamespace(name="g1", network="none", ports=())
    guest = SimpleNamespace(record=record, wait=lambda: None)
    state = SimpleNamespace(manifest=SimpleNamespace(machine=object()))
    image = SimpleNamespace(client=nullcontext(), signed=state)
    made = {"name": "@key/g1-state", "link": "magnet:"}
    monkeypatch.setattr(migrate, "GuestProcess", lambda _home, _name: nullcontext(guest))
    monkeypatch.setattr(migrate, "image_of", lambda _record, _home: image)
    monkeypatch.setattr(migrate, "_suspend", lambda *_, **__: made)
    words = ["g1", "there", "--ssh", str(ssh), "--home", str(tmp_path / "home")]
    error = CliRunner().invoke(migrate.command, words).exception
    assert isinstance(error, UnreachableError)
    assert "exit code 7" in str(error)
    assert "`p2pcloop resume g1`" in str(error.hint)
