"""Records of guests: names, who runs, what is kept."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import BusyError, FormatError, NotHereError, UsageError
from p2pcloop.store.guest_record import GuestRecord, decode_record, encode_record
from p2pcloop.store.guests import (
    GuestFolder,
    OwnGuest,
    Waiting,
    check_is_here,
    find_guest,
    list_guests,
    process_start,
    remove_guests,
    user_of_overlay,
)
from p2pcloop.store.home import Home
from p2pcloopd.block.fetched_file import FetchedFile

FACTS: dict[str, Any] = {
    "ref": "debian.cloop",
    "image": "/images/debian.cloop",
    "version": None,
    "overlay": None,
    "memory": 512 << 20,
    "network": "none",
}


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.create()
    return home


@pytest.fixture
def g1(home: Home) -> Iterator[OwnGuest]:
    with OwnGuest(home, "g1") as own:
        own.begin(**FACTS)
        own.keep()
        yield own


def test_a_guest_that_runs_is_listed_and_found(home: Home, g1: OwnGuest) -> None:
    [guest] = list_guests(home)
    assert guest == find_guest(home, "g1")
    assert (guest.state, guest.record.name, guest.record.pid) == ("running", "g1", os.getpid())
    assert guest.record == g1.record


def test_one_that_ended_is_kept_with_its_end(home: Home, g1: OwnGuest) -> None:
    g1.end(reason="poweroff", exit_code=0, boot_seconds=2.5)
    assert find_guest(home, "g1").state == "ended"
    g1.close()
    guest = find_guest(home, "g1")
    assert (guest.state, guest.record.reason, guest.record.boot_seconds) == (
        *("ended", "poweroff"),
        2.5,
    )


def test_one_that_is_not_to_be_kept_leaves_nothing(home: Home) -> None:
    with OwnGuest(home, None) as own:
        own.begin(**FACTS)
        own.end(reason="poweroff", exit_code=0)
    assert list(home.guests.iterdir()) == []


def test_one_that_never_began_leaves_nothing(home: Home) -> None:
    with OwnGuest(home, "g7"):
        assert list_guests(home) == []
    assert list(home.guests.iterdir()) == []


def test_a_name_is_taken_once(home: Home, g1: OwnGuest) -> None:
    with pytest.raises(BusyError, match="the guest g1 runs"):
        OwnGuest(home, "g1")
    g1.end(reason="poweroff", exit_code=0)
    g1.close()
    with pytest.raises(UsageError, match="its log is kept") as told:
        OwnGuest(home, "g1")
    assert told.value.hint is not None
    assert "rm --guest g1" in told.value.hint
    assert find_guest(home, "g1").state == "ended"


def test_a_name_is_taken_again_by_who_forgets_the_earlier_guest(home: Home, g1: OwnGuest) -> None:
    with pytest.raises(BusyError, match="g1 runs"):
        OwnGuest(home, "g1", "forget")
    g1.folder.log_path.write_bytes(b"before\n")
    g1.end(reason="poweroff", exit_code=0)
    g1.close()
    with OwnGuest(home, "g1", "forget") as own:
        assert not own.folder.log_path.exists()
        own.begin(**FACTS)
    assert list_guests(home) == []


def test_a_guest_goes_on_under_its_record_and_with_its_log(home: Home, g1: OwnGuest) -> None:
    with pytest.raises(BusyError, match="g1 runs"):
        OwnGuest(home, "g1", "continue")
    g1.folder.log_path.write_bytes(b"before\n")
    g1.end(reason="poweroff", exit_code=0)
    g1.close()
    ended = find_guest(home, "g1")
    with pytest.raises(UsageError, match="no kernel"), OwnGuest(home, "g1", "continue"):
        raise UsageError("no kernel")
    assert find_guest(home, "g1") == ended, "it did not even begin"
    with (
        pytest.raises(UsageError, match="no kernel"),
        OwnGuest(home, "g1", "continue") as own,
    ):
        own.begin(**FACTS)
        assert find_guest(home, "g1").state == "running"
        raise UsageError("no kernel")
    guest = find_guest(home, "g1")
    assert (guest.state, guest.record.reason, guest.record.error) == (
        "ended",
        "failed",
        "no kernel",
    )
    assert guest.record.exit_code == UsageError.exit_code
    with OwnGuest(home, "g1", "continue") as own:
        own.begin(**FACTS)
        own.keep()
        own.end(reason="poweroff", exit_code=0)
    assert find_guest(home, "g1").record.reason == "poweroff"
    assert own.folder.log_path.read_bytes() == b"before\n"


def test_a_guest_that_was_moved_is_elsewhere_and_may_come_back(home: Home, g1: OwnGuest) -> None:
    g1.keep()
    g1.end(reason="suspended", exit_code=0, state="@key/g1-state", state_version=2)
    g1.close()
    check_is_here(find_guest(home, "g1").record)
    with pytest.raises(UsageError, match="before"):
        OwnGuest(home, "g1", "moved")
    with OwnGuest(home, "g1", "continue") as own:
        own.record_moved("laptop")
    record = find_guest(home, "g1").record
    assert (record.reason, record.host, record.state_version) == ("moved", "laptop", 2)
    with pytest.raises(UsageError, match="goes on at laptop") as caught:
        check_is_here(record)
    assert "resume @key/g1-state --at 2" in str(caught.value.hint)
    with pytest.raises(UsageError, match="before"):
        OwnGuest(home, "g1")
    with OwnGuest(home, "g1", "moved") as own:
        own.begin(**FACTS)
        assert find_guest(home, "g1").state == "running"


def test_a_suspended_guest_that_did_not_go_on_can_be_resumed_again(
    home: Home, g1: OwnGuest
) -> None:
    g1.keep()
    g1.end(reason="suspended", exit_code=0, state="@key/g1-state", state_version=2)
    g1.close()
    suspended = find_guest(home, "g1").record
    with (
        pytest.raises(UsageError, match="no QEMU"),
        OwnGuest(home, "g1", "continue") as own,
    ):
        own.begin(**FACTS)
        raise UsageError("no QEMU")
    assert find_guest(home, "g1").record == suspended
    with (
        pytest.raises(UsageError, match="it died"),
        OwnGuest(home, "g1", "continue") as own,
    ):
        own.begin(**FACTS)
        own.keep()  # it runs
        raise UsageError("it died")
    assert find_guest(home, "g1").record.reason == "failed"


def test_names_are_chosen_that_are_free(home: Home, g1: OwnGuest) -> None:
    with OwnGuest(home, None) as second, OwnGuest(home, None) as third:
        assert [second.name, third.name] == ["g2", "g3"]
    assert g1.name == "g1"


@pytest.mark.parametrize("name", ["", "-a", "a-", "G1", "a.b", "../x", "a/b", "a" * 33, "ü", "a\n"])
def test_a_name_that_cannot_be_is_refused(home: Home, name: str) -> None:
    with pytest.raises(UsageError, match="cannot be the name"):
        OwnGuest(home, name)
    with pytest.raises(NotHereError):
        find_guest(home, name)
    assert list(home.guests.iterdir()) == []


def test_one_whose_process_was_killed_is_lost_until_it_is_removed(home: Home) -> None:
    pid = os.fork()
    if not pid:
        try:
            own = OwnGuest(home, "g1")
            own.begin(**FACTS)
            own.keep()
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    assert find_guest(home, "g1").state == "lost"
    assert user_of_overlay(home, Path("mine.delta")) is None
    remove_guests([GuestFolder(home, "g1")])
    assert list_guests(home) == []


def test_one_that_runs_is_not_removed(home: Home, g1: OwnGuest) -> None:
    with pytest.raises(BusyError):
        remove_guests([GuestFolder(home, "g1")])
    assert find_guest(home, "g1").record == g1.record


def test_of_several_guests_all_are_removed_or_none(home: Home, g1: OwnGuest) -> None:
    for name in ("g2", "g3"):
        with OwnGuest(home, name) as own:
            own.begin(**FACTS)
            own.keep()
    folders = [GuestFolder(home, name) for name in ("g2", "g3")]
    for other, error in ((g1.folder, BusyError), (GuestFolder(home, "none"), NotHereError)):
        with pytest.raises(error):
            remove_guests([*folders, other])
        assert {guest.record.name for guest in list_guests(home)} == {"g1", "g2", "g3"}
    remove_guests(folders)
    assert [guest.record.name for guest in list_guests(home)] == ["g1"]


def test_what_it_waits_for_is_told_in_one_line(home: Home, g1: OwnGuest) -> None:
    g1.folder.waiting_path.write_text("no peer is known\x1b[2J\n")
    waiting = find_guest(home, "g1").waiting
    since = g1.folder.waiting_path.stat().st_mtime
    assert waiting == Waiting("no peer is known\\x1b[2J", since)


def test_what_came_for_a_guest_is_told_while_it_runs_and_kept_at_its_end(home: Home) -> None:
    with OwnGuest(home, "g1") as own:
        own.begin(**FACTS)
        assert find_guest(home, "g1").fetched is None
        fetched = FetchedFile(own.folder.fetched_path)
        for length in (5, 1 << 40, 7):
            fetched.add(length)
        assert find_guest(home, "g1").fetched == (1 << 40) + 12
        own.folder.fetched_path.write_text("12")
        assert find_guest(home, "g1").fetched is None
        own.keep()
        own.end(reason="poweroff", exit_code=0, fetched=12)
    assert find_guest(home, "g1").fetched == 12
    assert not own.folder.fetched_path.exists()


def test_the_user_of_an_overlay_is_found_by_any_path(home: Home, tmp_path: Path) -> None:
    overlay = tmp_path / "mine.delta"
    overlay.touch()
    (tmp_path / "link").symlink_to(overlay)
    with OwnGuest(home, "g1") as own:
        own.begin(**FACTS | {"overlay": str(overlay)})
        assert user_of_overlay(home, tmp_path / "link") == own.record
        assert user_of_overlay(home, tmp_path / "other") is None


def test_paths_that_are_no_text_come_back(home: Home) -> None:
    path = os.fsdecode(b"/images/\xff.cloop")
    with OwnGuest(home, "g1") as own:
        own.begin(**FACTS | {"image": path})
        assert find_guest(home, "g1").record.image == path


_SECONDS = st.floats(0, 1e12)
_RECORDS = st.builds(
    GuestRecord,
    started=_SECONDS,
    ended=st.none() | _SECONDS,
    boot_seconds=st.none() | _SECONDS,
    name=st.just("g1"),
    overlay=st.none() | st.text(st.characters()),
    version=st.none() | st.integers(1, 1 << 53),
    fetched=st.none() | st.integers(0, 1 << 53),
    words=st.none() | st.lists(st.text(st.characters())),
)


@given(_RECORDS)
def test_any_record_is_read_as_it_was_written(record: GuestRecord) -> None:
    assert decode_record(encode_record(record), "g1") == record


@pytest.mark.parametrize(
    "data",
    [b"", b"{", b"[]", b'{"format": 2}', b"\xff", b"[" * 100_000, b"{}" + b" " * (1 << 16)],
)
def test_a_damaged_record_is_told(home: Home, g1: OwnGuest, data: bytes) -> None:
    g1.folder.record_path.write_bytes(data)
    with pytest.raises(FormatError, match="the record of the guest g1 is damaged"):
        find_guest(home, "g1")


def test_a_damaged_record_hides_no_other_guest_and_can_be_removed(home: Home) -> None:
    with OwnGuest(home, "g1") as own:
        own.begin(**FACTS)
        own.keep()
    (home.guests / "g1" / "record.json").write_bytes(b"")
    with OwnGuest(home, None) as own:
        own.begin(**FACTS | {"overlay": "/mine.delta"})
        assert own.name == "g2"
        assert [(g.record.name, g.state) for g in list_guests(home)] == [
            *[("g1", "damaged"), ("g2", "running")]
        ]
        assert user_of_overlay(home, Path("/mine.delta")) == own.record
    remove_guests([GuestFolder(home, "g1")])
    assert list_guests(home) == []


def test_what_a_killed_command_left_is_used_again(home: Home) -> None:
    """A directory without a record, and that of a guest that was not to be kept."""
    home.guests.mkdir()
    (home.guests / "g1").mkdir()
    pid = os.fork()
    if not pid:
        try:
            OwnGuest(home, "g2").begin(**FACTS)
            (home.guests / "g2" / "console.log").write_bytes(b"earlier")
            os.kill(os.getpid(), signal.SIGKILL)
        finally:
            os._exit(1)
    os.waitpid(pid, 0)
    assert list_guests(home) == []
    with OwnGuest(home, None) as first, OwnGuest(home, None) as second:
        assert [first.name, second.name] == ["g1", "g2"]
        assert list_guests(home) == [], "no earlier guest's record counts as theirs"
        assert not second.folder.log_path.exists()
    assert list(home.guests.iterdir()) == []


def test_a_file_system_that_keeps_open_files_under_other_names(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As NFS and FUSE do: the directory is not empty before the lock is closed."""
    own = OwnGuest(home, "g1")
    own.begin(**FACTS)
    hidden = own.folder.path / ".nfs0001"

    def rename_what_is_open(path: Path, **_: Any) -> None:
        for each in list(path.iterdir()):
            each.rename(hidden) if each.name == "lock" else each.unlink()

    monkeypatch.setattr("p2pcloop.store.guests.shutil.rmtree", rename_what_is_open)
    own.close()
    assert list_guests(home) == []
    hidden.unlink()  # as the kernel does once it is closed
    with OwnGuest(home, "g1") as again:
        assert again.name == "g1"


def test_processes_of_one_number_are_told_apart() -> None:
    start = process_start(os.getpid())
    assert start is not None
    assert start == process_start(os.getpid())
    assert start > (process_start(1) or 0)
    assert process_start(1 << 22) is None


@pytest.mark.parametrize("field", ["name", "memory", "kept", "fetched", "started"])
def test_a_field_of_another_type_is_told(g1: OwnGuest, field: str) -> None:
    assert g1.record is not None
    value = json.loads(encode_record(g1.record)) | {field: [1]}
    with pytest.raises(FormatError, match=field):
        decode_record(json.dumps(value).encode(), "g1")


def test_a_field_of_a_later_version_is_passed_over(g1: OwnGuest) -> None:
    assert g1.record is not None
    value = json.loads(encode_record(g1.record)) | {"later": 1}
    assert decode_record(json.dumps(value).encode(), "g1") == replace(g1.record)


def test_a_home_without_guests() -> None:
    assert list_guests(Home.at("/nonexistent")) == []


def test_a_log_that_begins_anew_loses_nothing_for_its_reader(home: Home) -> None:
    folder = GuestFolder(home, "g1")
    folder.path.mkdir(parents=True)
    seen: list[bytes] = []
    folder.log_path.write_bytes(b"one two ")
    shown = folder.read_log(seen.append)
    folder.old_log_path.write_bytes(b"one two three ")
    folder.log_path.write_bytes(b"four")
    assert folder.read_log(seen.append, shown) == len(b"four")
    assert b"".join(seen) == b"one two three four"
    seen.clear()
    folder.read_log(seen.append)
    assert b"".join(seen) == b"one two three four"
