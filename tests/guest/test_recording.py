"""What of a boot's reads becomes its profile, and when it is kept."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.formats.profile import (
    LATER,
    Profile,
    Touch,
    pack_touches,
    sign_profile,
    unpack_touches,
)
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import keep_profile, load_profile
from p2pcloopd.guest.recording import boot_touches, keep_recording
from p2pcloopd.guest.report import Outcome
from p2pcloopd.guest.result import GuestResult
from p2pcloopd.guest.system.kernel import Kernel

IMAGE = b"i" * 32
SIZE = 1 << 20
KERNEL = Kernel(Path("/linux"), "6.1", None)
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def outcome(*found: list[float], prompt: float | None = 5.0) -> Outcome:
    """A boot that began at 100 s, with these notes of its block server."""
    made = Outcome(
        started=99.0, begun=100.0, guest=GuestResult(0, "poweroff", KERNEL, 60.0, prompt)
    )
    made.block = {"image_id": IMAGE, "touches": list(found), "waits": {"count": 0}}
    return made


def test_what_is_read_after_the_prompt_is_not_of_the_boot() -> None:
    found = [[8, 4, 101.0], [0, 1, 101.25], [30, 2, 105.1]]
    assert boot_touches(found, outcome()) == [Touch(8, 4, 0), Touch(0, 1, 250)]
    assert len(boot_touches(found, outcome(prompt=None))) == 3
    assert boot_touches([], outcome()) == []


def test_with_a_display_a_boot_goes_on_until_the_guest_rests() -> None:
    times = [101.0, 104.9, 106.0, 109.5, 113.0, 117.5, 118.0]
    found = [[number, 1, at] for number, at in enumerate(times)]
    kept = boot_touches(found, outcome(), display=True)
    assert [touch.start for touch in kept] == [0, 1, 2, 3, 4]
    assert len(boot_touches(found, outcome())) == 2
    # It rested at its prompt: what a user reads later is not of the boot.
    assert len(boot_touches([[0, 1, 101.0], [1, 1, 109.5]], outcome(), display=True)) == 1
    assert len(boot_touches(found, outcome(prompt=None), display=True)) == len(times)


def test_what_a_resume_reads_is_added_to_its_profile(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    known = [Touch(100, 10, 0), Touch(200, 10, 500)]
    # The user's own work comes after a pause.
    found = [[8, 4, 101.0], [205, 10, 101.25], [90, 1, 102.5]]
    told = keep_recording(home, SIZE, outcome(*found, prompt=None), fresh=True, known=known)
    assert told == {"touches": 4, "blocks": 29, "kept": True}
    kept = load_profile(home, IMAGE)
    assert kept is not None
    assert unpack_touches(kept.touches) == [
        *(Touch(100, 10, 0), Touch(8, 4, 0), Touch(210, 5, 250), Touch(200, 10, 500)),
    ]


def test_what_a_machine_reads_before_its_guest_goes_on_is_no_rest() -> None:
    resumed = outcome(prompt=None)
    resumed.went_on = 104.0
    found = [[0, 1, 101.0], [8, 1, 104.5], [9, 1, 105.0], [7, 1, 106.5]]
    assert [touch.start for touch in boot_touches(found, resumed, resumed=True)] == [0, 8, 9]


def test_what_a_guest_touches_after_its_answer_is_for_later() -> None:
    resumed = outcome(prompt=None)
    resumed.went_on = 102.0
    found = [[0, 1, 101.0], [9, 1, 101.5], [8, 1, 102.5], [7, 1, 103.0], [6, 1, 103.2]]
    resumed.said = [102.1, 102.6, 110.0]  # the last one is the user's doing
    assert boot_touches(found, resumed, resumed=True) == [
        *(Touch(0, 1, 0), Touch(9, 1, 0)),  # it had not gone on
        Touch(8, 1, 1500),
        *(Touch(7, 1, LATER + 2000), Touch(6, 1, LATER + 2200)),
    ]
    resumed.said = [102.1, 102.6, 103.8]  # it is ended, and says so
    ended = boot_touches(found, resumed, resumed=True)
    assert [touch.is_later for touch in ended] == [False, False, False, True, True]
    resumed.said = []  # it says nothing: nobody knows
    assert not any(touch.is_later for touch in boot_touches(found, resumed, resumed=True))
    resumed.said = [103.9]  # it answered by what it had touched
    assert not any(touch.is_later for touch in boot_touches(found, resumed, resumed=True))


def test_what_wakes_a_guest_after_its_answer_is_for_later() -> None:
    resumed = outcome(prompt=None)
    resumed.went_on, resumed.said = 101.0, [101.5]
    found = [[0, 1, 101.2], [9, 1, 104.1], [8, 1, 104.9], [7, 1, 106.0]]
    assert len(boot_touches(found, resumed, resumed=True)) == 1, "it rested"
    resumed.woken = 104.5
    woken = boot_touches(found, resumed, resumed=True)
    assert [(touch.start, touch.is_later) for touch in woken] == [(0, False), (9, True), (8, True)]
    resumed.reseeds = False  # all who resume it have the same random numbers until it is woken
    assert not any(touch.is_later for touch in boot_touches(found, resumed, resumed=True))


def test_all_that_a_rehearsed_guest_touches_until_its_end_counts() -> None:
    resumed = outcome(prompt=None)
    resumed.went_on = 101.0
    found = [[0, 1, 101.0], [8, 1, 101.5], [9, 1, 105.0]]
    kept = boot_touches(found, resumed, resumed=True, whole=True)
    assert [touch.start for touch in kept] == [0, 8, 9]


def test_a_resume_without_a_profile_records_one(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    found = outcome([8, 4, 101.0], [0, 1, 101.5], prompt=None)
    assert keep_recording(home, SIZE, found, fresh=True, known=())["blocks"] == 5


def test_a_recording_is_kept_and_leaves_the_report(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    boot = outcome([8, 4, 101.0], [0, 1, 102.0])
    told = keep_recording(home, SIZE, boot, fresh=True)
    assert told == {"touches": 2, "blocks": 5, "kept": True}
    assert boot.block == {"waits": {"count": 0}}
    kept = load_profile(home, IMAGE)
    assert kept is not None
    assert unpack_touches(kept.touches) == [Touch(8, 4, 0), Touch(0, 1, 1000)]


def test_a_newer_boot_replaces_it_unless_its_overlay_held_blocks(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    for fresh, expected in ((False, 1), (False, 1), (True, 3)):
        block = 1 if not fresh else 3
        keep_recording(home, SIZE, outcome([block, 1, 101.0]), fresh=fresh)
        kept = load_profile(home, IMAGE)
        assert kept is not None
        assert unpack_touches(kept.touches)[0].start == expected
    assert not keep_recording(home, SIZE, outcome([9, 1, 101.0]), fresh=False)["kept"]


def test_a_profile_that_the_user_was_given_stays(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    given = Profile(IMAGE, SIZE, 0, pack_touches([Touch(7, 1, 0)]))
    keep_profile(home, sign_profile(given, KEY))
    assert not keep_recording(home, SIZE, outcome([1, 1, 101.0]), fresh=True)["kept"]
    kept = load_profile(home, IMAGE)
    assert kept is not None
    assert unpack_touches(kept.touches) == [Touch(7, 1, 0)]


def test_a_boot_that_read_nothing_leaves_no_profile(tmp_path: Path) -> None:
    home = Home(tmp_path / "home")
    boot = outcome()
    boot.block.clear()
    assert keep_recording(home, SIZE, boot, fresh=True) == {
        "touches": 0,
        "blocks": 0,
        "kept": False,
    }
