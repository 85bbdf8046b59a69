"""Rehearsing a resume; the guest is played by a script."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.client import rehearsal
from p2pcloop.client import use as use_module
from p2pcloop.errors import GuestError
from p2pcloop.formats.manifest import open_manifest
from p2pcloop.formats.profile import (
    LATER,
    Profile,
    Touch,
    pack_profile,
    pack_touches,
    sign_profile,
    unpack_touches,
)
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import keep_profile, load_profile

GOLDEN = Path(__file__).parent.parent / "data/manifest-v7.bin"
STATE = open_manifest(GOLDEN.read_bytes()).manifest
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
PROMPT = 'print("# ", end="", flush=True)'
GUEST = f"""
import os, signal, sys
ends = {{signal.SIGTERM, signal.SIGINT}}
signal.pthread_sigmask(signal.SIG_BLOCK, ends)
key = os.read(0, 100)
{PROMPT}
for _ in range(2):
    signal.sigwait(ends)
open(sys.argv[1], "w").write(f"{{key}} {{' '.join(sys.argv[2:])}}")
"""


@pytest.fixture
def told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file in which the guest leaves what it was told, once it is ended."""
    monkeypatch.setattr(rehearsal, "_REST_SECONDS", 0.1)
    monkeypatch.setattr(rehearsal, "_WOKEN_SECONDS", 0.1)
    path = tmp_path / "told"
    played = [sys.executable, "-c", GUEST, str(path)]
    monkeypatch.setattr(rehearsal, "module_command", lambda _: played)
    return path


def test_a_key_is_pressed_and_the_guest_is_ended_once_it_rests(told: Path, tmp_path: Path) -> None:
    rehearsal.rehearse("@key/state", 3, Home(tmp_path))
    words = "resume @key/state --at 3 --home"
    assert told.read_text() == f"{rehearsal._KEYS!r} {words} {tmp_path} --wake-late"


def test_a_guest_is_not_ended_before_it_was_woken(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_WOKEN_SECONDS", 1000)
    wakes = PROMPT + "; import time; time.sleep(0.3); print('woken', file=sys.stderr, flush=True)"
    wakes += "; open(sys.argv[1] + '-woken', 'w').close()"
    played = [sys.executable, "-c", GUEST.replace(PROMPT, wakes), str(told)]
    monkeypatch.setattr(rehearsal, "module_command", lambda _: played)
    rehearsal.rehearse("@key/state", 3, Home(tmp_path))
    assert told.with_name("told-woken").exists()
    assert told.exists()


def test_a_command_uses_the_guest_by_the_ports_that_it_had(told: Path, tmp_path: Path) -> None:
    note = tmp_path / "note"
    use = use_module.Use(f"echo used >>'{note}'", "user", ("127.0.0.1:5901:5901/tcp",))
    rehearsal.rehearse("@key/state", 3, Home(tmp_path), use)
    assert note.read_text() == "used\n"
    options = "--record-all --net user --port 127.0.0.1:5901:5901/tcp"
    assert told.read_text().endswith(f"--home {tmp_path} {options}")


@pytest.mark.usefixtures("told")
@pytest.mark.parametrize(
    ("command", "seconds", "message"),
    [
        ("echo no viewer; exit 3", 60.0, r"failed \(3\): no viewer"),
        ("sleep 1000", 0.2, "not ended after 0.2"),
    ],
)
def test_a_command_that_fails_tells_why(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    command: str,
    seconds: float,
    message: str,
) -> None:
    monkeypatch.setattr(use_module, "_SECONDS", seconds)
    use = use_module.Use(command, "user", ("127.0.0.1:80:80/tcp",))
    with pytest.raises(GuestError, match=message):
        rehearsal.rehearse("@key/state", 3, Home(tmp_path), use)


def test_a_command_does_not_outlive_its_guest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('p2pcloop: no QEMU')"]
    monkeypatch.setattr(rehearsal, "module_command", lambda _: failing)
    use = use_module.Use("sleep 1000", "user", ())
    with pytest.raises(GuestError, match="no QEMU"):
        rehearsal.rehearse("@key/state", 3, Home(tmp_path), use)


def test_a_guest_that_says_nothing_is_ended_too(
    told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rehearsal, "_BEGIN_SECONDS", 0.3)
    monkeypatch.setattr(rehearsal, "_GONE_SECONDS", 0.1)
    silent = [sys.executable, "-c", GUEST.replace(PROMPT, ""), str(told)]
    monkeypatch.setattr(rehearsal, "module_command", lambda _: silent)
    rehearsal.rehearse("@key/state", 3, Home(tmp_path))


def test_rehearsals_record_all_that_each_touches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home, manifest = Home(tmp_path), STATE
    found = [[Touch(5, 2, 7), Touch(40, 1, LATER)], [Touch(40, 1, 9), Touch(9, 1, LATER + 5)]]
    runs = iter(found)

    def rehearse(name: str, version: int, _home: Home, _use: None) -> None:
        assert (name, version) == (str(manifest.name), manifest.version)
        known = load_profile(home, manifest.image_id)
        assert known is not None
        assert not unpack_touches(known.touches), "what is pushed is not recorded"
        keep_profile(home, pack_profile(replace(known, touches=pack_touches(next(runs)))))

    monkeypatch.setattr(rehearsal, "rehearse", rehearse)
    touches = rehearsal.rehearsed_touches(manifest, home)
    assert touches == [Touch(5, 2, 1), Touch(40, 1, 1), Touch(9, 1, LATER + 5)]
    kept = load_profile(home, manifest.image_id)
    assert kept is not None
    assert unpack_touches(kept.touches) == touches


def test_a_failed_rehearsal_leaves_no_profile(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise GuestError("no QEMU")

    monkeypatch.setattr(rehearsal, "rehearse", fail)
    with pytest.raises(GuestError):
        rehearsal.rehearsed_touches(STATE, Home(tmp_path))
    assert load_profile(Home(tmp_path), STATE.image_id) is None


def test_a_profile_that_the_user_was_given_is_taken(tmp_path: Path) -> None:
    touches = [Touch(7, 1, 0)]
    given = Profile(STATE.image_id, STATE.size, 0, pack_touches(touches))
    keep_profile(Home(tmp_path), sign_profile(given, KEY))
    assert rehearsal.rehearsed_touches(STATE, Home(tmp_path)) == touches


def test_what_an_answer_needs_is_packed_by_place() -> None:
    assert STATE.machine is not None
    device = STATE.machine.device_state.blocks.start
    found = [
        *(Touch(device, 1, 0), Touch(30, 1, 0)),  # QEMU reads them
        *(Touch(device + 1, 1, 4), Touch(9, 1, 5), Touch(3, 2, 6), Touch(8, 1, 7)),
        *(Touch(2, 1, LATER + 1), Touch(1, 1, LATER + 2)),
    ]
    ordered = rehearsal.in_packing_order(found, STATE.machine)
    assert unpack_touches(pack_touches(ordered)) == ordered
    assert ordered == [
        *(Touch(device, 2, 0), Touch(30, 1, 0)),
        *(Touch(3, 2, 1), Touch(8, 2, 1)),
        *found[-2:],
    ]


@pytest.mark.usefixtures("told")
def test_one_that_does_not_go_on_tells_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    failing = [sys.executable, "-c", "import sys; sys.exit('p2pcloop: no QEMU')"]
    monkeypatch.setattr(rehearsal, "module_command", lambda _: failing)
    with pytest.raises(GuestError, match="no QEMU"):
        rehearsal.rehearse("@key/state", 3, Home(tmp_path))
