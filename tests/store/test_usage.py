"""What must stay: leases, pins, overlays, and what was published from this home."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import FormatError, MismatchError, UsageError
from p2pcloop.formats.manifest import LayerRef, Manifest, ManifestRef, open_manifest, sign_manifest
from p2pcloop.formats.overlay import Overlay
from p2pcloop.store.home import Home
from p2pcloop.store.keys import load_or_create_key
from p2pcloop.store.lease import Lease, lease_holders, leased
from p2pcloop.store.overlays import overlaid_manifests, register_overlay
from p2pcloop.store.pins import load_pins, save_pins
from p2pcloop.store.stamps import STAMPS_FILE, load_stamps, save_stamps
from p2pcloop.store.usage import Keep, look_at_usage

SIZE = 1 << 20
OTHER = Ed25519PrivateKey.from_private_bytes(bytes(32))

HOLD = """
import sys
from p2pcloop.store.home import Home
from p2pcloop.store.lease import Lease
lease = Lease(Home.at(sys.argv[1]), bytes.fromhex(sys.argv[2]))
print("held", flush=True)
sys.stdin.read()
"""


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.create()
    return home


def layer(number: int) -> LayerRef:
    return LayerRef(bytes([number]) * 32, bytes([number]) * 20, 4096, 512, 8192, 1 << 14)


def publish(
    home: Home,
    label: str,
    layers: list[int],
    *,
    key: Ed25519PrivateKey = OTHER,
    parent: bytes | None = None,
    previous: bytes | None = None,
    sources: list[int] | None = None,
) -> bytes:
    """Make a manifest known in a home; return its id."""
    public = key.public_key().public_bytes_raw()
    manifest = Manifest(public, label, 1, 0, SIZE, tuple(map(layer, layers)))
    manifest = replace(
        manifest,
        parent=None if parent is None else ManifestRef(parent, bytes(20)),
        previous=None if previous is None else ManifestRef(previous, bytes(20)),
        sources=tuple(map(layer, sources or [])),
    )
    signed = open_manifest(sign_manifest(manifest, key))
    (home.manifests / signed.id.hex()).write_bytes(signed.data)
    return signed.id


def kept(home: Home) -> dict[int, Keep]:
    return {torrent[0]: reason for torrent, reason in look_at_usage(home).keep.items()}


def test_nothing_must_stay_of_what_is_only_known(home: Home) -> None:
    publish(home, "a", [1, 2], sources=[3])
    usage = look_at_usage(home)
    assert usage.keep == {}
    assert usage.named == {bytes([number]) * 20 for number in (1, 2, 3)}


def test_a_lease_holds_layers_and_sources_until_it_is_closed(home: Home) -> None:
    manifest = publish(home, "a", [1, 2], sources=[3])
    with Lease(home, manifest, "a guest\x1b[2J"):
        assert leased(home) == {manifest}
        assert lease_holders(home) == [r"a guest\x1b[2J"]
        assert kept(home) == dict.fromkeys((1, 2, 3), Keep.RUNNING)
        with Lease(home, manifest):
            pass
        assert leased(home) == {manifest}
    assert leased(home) == set()
    assert list(home.leases.iterdir()) == []


def test_a_lease_of_a_torrent_holds_that_alone(home: Home) -> None:
    publish(home, "a", [1, 2])
    with Lease(home, bytes([2]) * 20):
        assert kept(home) == {2: Keep.RUNNING}


def test_a_lease_ends_with_its_process_however_that_ends(home: Home) -> None:
    manifest = publish(home, "a", [1])
    command = [sys.executable, "-c", HOLD, str(home.root), manifest.hex()]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as child:
        try:
            assert child.stdout is not None
            assert child.stdout.readline() == b"held\n"
            assert leased(home) == {manifest}
        finally:
            child.kill()
    assert leased(home) == set()
    assert list(home.leases.iterdir()) == []


def test_a_lease_that_is_deleted_while_it_is_taken_is_taken_again(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    rename = Path.rename
    taken: list[Path] = []

    def rename_after_a_look(path: Path, target: Path) -> Path:
        if not taken:
            path.unlink()
        taken.append(path)
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", rename_after_a_look)
    with Lease(home, bytes(32)):
        assert len(taken) == 2
        assert leased(home) == {bytes(32)}


def test_pins_are_kept_and_let_go(home: Home) -> None:
    first, second = publish(home, "a", [1, 2], sources=[4]), publish(home, "b", [2, 3])
    assert load_pins(home) == {}
    save_pins(home, {first: "@k/a"})
    assert load_pins(home) == {first: "@k/a"}
    assert kept(home) == dict.fromkeys((1, 2, 4), Keep.PINNED)
    save_pins(home, {second: "@k/b", bytes(32): "@k/gone"})
    assert kept(home) == dict.fromkeys((2, 3), Keep.PINNED)
    save_pins(home, {})
    assert kept(home) == {}


@pytest.mark.parametrize("damage", [b"", b"\x80", b"x" * 100])
def test_damaged_pins_stop_it(home: Home, damage: bytes) -> None:
    save_pins(home, {bytes(32): "@k/a"})
    home.pins.write_bytes(damage)
    with pytest.raises(FormatError, match="damaged") as caught:
        look_at_usage(home)
    assert caught.value.hint


def test_too_many_pins_are_refused(home: Home) -> None:
    with pytest.raises(UsageError, match="cannot be pinned"):
        save_pins(home, {number.to_bytes(32, "big"): "" for number in range((1 << 14) + 1)})
    assert load_pins(home) == {}


def test_what_lies_below_an_overlay_stays_while_the_overlay_exists(
    home: Home, tmp_path: Path
) -> None:
    made_on, opened_on = publish(home, "a", [1, 2]), publish(home, "b", [2, 3])
    path = tmp_path / "disk" / "mine.delta"
    path.parent.mkdir()
    Overlay.create(path, image_id=b"i" * 32, image_size=SIZE, manifest_id=made_on, name="").close()
    register_overlay(home, path, opened_on)
    register_overlay(home, path, opened_on)
    assert list(overlaid_manifests(home)) == [(path, {made_on, opened_on})]
    assert kept(home) == dict.fromkeys((1, 2, 3), Keep.OVERLAY)
    # A disk that is not attached.
    path.parent.rename(tmp_path / "away")
    assert kept(home) == {}
    (tmp_path / "away").rename(path.parent)
    assert kept(home) == dict.fromkeys((1, 2, 3), Keep.OVERLAY)
    path.write_bytes(b"what cannot be looked into counts as an overlay still")
    assert kept(home) == dict.fromkeys((2, 3), Keep.OVERLAY)
    path.unlink()
    assert kept(home) == {}
    assert list(home.overlays.iterdir()) == []


def test_a_damaged_note_of_an_overlay_stops_it(home: Home, tmp_path: Path) -> None:
    register_overlay(home, tmp_path / "mine.delta", bytes(32))
    (note,) = home.overlays.iterdir()
    note.write_bytes(b"x")
    with pytest.raises(FormatError, match="damaged"):
        look_at_usage(home)


def test_what_was_published_here_stays(home: Home) -> None:
    ours = load_or_create_key(home.keys)
    publish(home, "base", [1, 2], key=ours, sources=[3])
    assert kept(home) == dict.fromkeys((1, 2, 3), Keep.PUBLISHED)


def test_of_an_image_made_on_anothers_only_what_is_new_must_stay(home: Home) -> None:
    ours = load_or_create_key(home.keys)
    base = publish(home, "base", [1, 2])
    first = publish(home, "mine", [1, 2, 3], key=ours, parent=base)
    publish(home, "mine", [1, 2, 4], key=ours, parent=first, previous=first)
    assert kept(home) == dict.fromkeys((3, 4), Keep.PUBLISHED)


def test_an_ancestor_that_is_not_known_takes_nothing_away(home: Home) -> None:
    ours = load_or_create_key(home.keys)
    publish(home, "mine", [1, 2], key=ours, parent=b"u" * 32, previous=b"v" * 32)
    assert kept(home) == dict.fromkeys((1, 2), Keep.PUBLISHED)


def test_what_others_made_of_ours_takes_nothing_away(home: Home) -> None:
    """The pupil's version names the teacher's base, which may still be the only copy."""
    ours = load_or_create_key(home.keys)
    base = publish(home, "base", [1], key=ours)
    theirs = publish(home, "theirs", [1, 2], parent=base)
    publish(home, "next", [1, 2, 3], key=ours, parent=theirs)
    assert kept(home) == dict.fromkeys((1, 3), Keep.PUBLISHED)


@pytest.mark.parametrize("error", [FormatError, MismatchError])
def test_nothing_is_decided_where_a_manifest_cannot_be_read(
    home: Home, error: type[Exception]
) -> None:
    path = home.manifests / publish(home, "a", [1]).hex()
    if error is FormatError:
        path.write_bytes(path.read_bytes()[:-1])
    else:
        path.rename(home.manifests / ("0" * 64))
    with pytest.raises(error):
        look_at_usage(home)


def test_a_damaged_key_stops_it(home: Home) -> None:
    load_or_create_key(home.keys)
    (home.keys / "default.key").write_bytes(b"x")
    with pytest.raises(FormatError, match="not a key"):
        look_at_usage(home)


def test_stamps_are_the_last_boot_of_each_piece(tmp_path: Path) -> None:
    assert list(load_stamps(tmp_path, 11)) == [0] * 11
    save_stamps(tmp_path, 11, b"\x81\x20", 100)
    save_stamps(tmp_path, 11, b"\x01\x40", 200)
    assert list(load_stamps(tmp_path, 11)) == [100, 0, 0, 0, 0, 0, 0, 200, 0, 200, 100]
    save_stamps(tmp_path, 11, b"\x01\x00", 150)
    assert load_stamps(tmp_path, 11)[7] == 200, "a clock that was set back takes nothing away"
    with pytest.raises(UsageError, match="bits of 11 pieces"):
        save_stamps(tmp_path, 11, b"\x01", 300)
    # The format's table (docs/formats/stamps.md), byte by byte.
    data = (tmp_path / STAMPS_FILE).read_bytes()
    assert data[:16] == b"P2PCUSED" + bytes([1, 0, 0, 0, 11, 0, 0, 0])
    assert data[16:20] == bytes([100, 0, 0, 0])
    assert len(data) == 16 + 44 + 4


@pytest.mark.parametrize("at", [0, 8, 12, 16, 40, -1])
def test_damaged_stamps_count_as_none(tmp_path: Path, at: int) -> None:
    save_stamps(tmp_path, 8, b"\xff", 100)
    data = bytearray((tmp_path / STAMPS_FILE).read_bytes())
    data[at] ^= 1
    (tmp_path / STAMPS_FILE).write_bytes(data)
    assert list(load_stamps(tmp_path, 8)) == [0] * 8
    (tmp_path / STAMPS_FILE).write_bytes(data[:-3])
    assert list(load_stamps(tmp_path, 8)) == [0] * 8


def test_files_of_others_in_the_home_are_left_alone(home: Home) -> None:
    """NFS keeps what is deleted while it is open, and locked, under a name of its own."""
    strange = home.leases / ".nfs0000000001"
    (home.manifests / ("z" * 64)).write_bytes(b"no manifest")
    with open(strange, "wb") as file, Lease(home, bytes(32)):
        fcntl.flock(file, fcntl.LOCK_SH)
        assert leased(home) == {bytes(32)}
        assert look_at_usage(home).named == frozenset()
    assert leased(home) == set()
    assert strange.exists()
