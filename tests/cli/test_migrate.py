"""`p2pcloop migrate` where the other end fails; the guest is played."""

from __future__ import annotations

import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from p2pcloop.cli import migrate
from p2pcloop.errors import BusyError, UnreachableError, UsageError
from p2pcloop.store.home import Home

NOBODY = '{"guests": []}'


@pytest.mark.parametrize(
    ("state", "reason", "replaces", "error"),
    [
        ("ended", "moved", False, None),
        ("ended", "killed", True, None),
        ("ended", "killed", False, UsageError),
        ("ended", "suspended", False, UsageError),
        ("running", None, True, BusyError),
    ],
)
def test_the_name_is_free_there_before_the_guest_stops(
    state: str, reason: str | None, error: type[Exception] | None, tmp_path: Path, *, replaces: bool
) -> None:
    ssh = tmp_path / "ssh"
    there = {"guests": [{"name": "g1", "state": state, "reason": reason}]}
    ssh.write_text(f"#!/bin/sh\necho '{json.dumps(there)}'\n")
    ssh.chmod(0o755)
    host = migrate._Host("there", str(ssh), "p2pcloop", Home.at(tmp_path))
    with nullcontext() if error is None else pytest.raises(error):
        host.check_name("g1", replaces=replaces)
    host.check_name("g2", replaces=False)


def test_a_host_that_lists_no_guests_is_no_host(tmp_path: Path) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text("#!/bin/sh\necho hello\n")
    ssh.chmod(0o755)
    with pytest.raises(UnreachableError, match="does not list guests"):
        host = migrate._Host("there", str(ssh), "p2pcloop", Home.at(tmp_path))
        host.check_name("g1", replaces=False)


def test_the_setting_that_lets_the_other_machine_in_is_that_of_this_home(tmp_path: Path) -> None:
    with pytest.raises(UnreachableError) as caught:
        migrate._Host("there", "false", "p2pcloop", Home.at(tmp_path / "a home")).run(["ps"])
    assert f"config set listen ADDRESS:PORT --home '{tmp_path}/a home'`" in str(caught.value.hint)


def test_a_guest_that_does_not_go_on_there_is_said_to_be_here(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ssh = tmp_path / "ssh"
    ssh.write_text(f"#!/bin/sh\ncase \"$2\" in *resume*) exit 7;; *) echo '{NOBODY}';; esac\n")
    ssh.chmod(0o755)
    record = SimpleNamespace(name="g1", network="none", ports=())
    waited: list[bool] = []
    guest = SimpleNamespace(record=record, wait=lambda: waited.append(True))
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
    assert waited, "its record tells that it is suspended"
