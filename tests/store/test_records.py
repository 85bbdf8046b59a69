"""Manifests and names that a node keeps: checked when read, newest wins, whole after a crash."""

from __future__ import annotations

import contextlib
import tempfile
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, MismatchError, NotHereError, P2pcloopError, UsageError
from p2pcloop.formats.link import MAX_LINK_LENGTH, MAX_PARTS, Link, parse_link
from p2pcloop.formats.manifest import (
    LayerRef,
    Manifest,
    SignedManifest,
    open_manifest,
    sign_manifest,
)
from p2pcloop.formats.packing import pack_canonical, unpack_canonical
from p2pcloop.formats.record import Record, SignedRecord, open_record, sign_record
from p2pcloop.formats.seal import key_check
from p2pcloop.store import records as records_module
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
LAYER = LayerRef(
    layer_id=b"l" * 32,
    torrent=b"t" * 20,
    index_length=4096,
    header_length=512,
    pack_length=8192,
    piece_length=16384,
)


def make(
    version: int = 1, label: str = "debian", size: int = 4096, key_check: bytes | None = None
) -> SignedManifest:
    key = KEY.public_key().public_bytes_raw()
    manifest = Manifest(key, label, version, 0, size, (LAYER,), key_check=key_check)
    return open_manifest(sign_manifest(manifest, KEY))


def link_to(signed: SignedManifest, port: int = 1000) -> Link:
    return Link(signed.manifest.name, signed.id, b"m" * 20, peers=(("127.0.0.1", port),))


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path)
    home.create()
    return home


def test_what_is_kept_is_there_after_a_restart(home: Home) -> None:
    signed = make()
    kept = Records(home).keep(signed, link_to(signed))
    again = Records(home)
    assert again.name(signed.manifest.name) == kept
    assert kept.link == link_to(signed)
    assert again.manifest(signed.id) == signed


def test_what_was_not_kept_is_not_here(home: Home) -> None:
    signed = make()
    records = Records(home)
    with pytest.raises(NotHereError):
        records.name(signed.manifest.name)
    with pytest.raises(NotHereError):
        records.manifest(signed.id)


def test_a_newer_version_takes_the_name_and_the_old_manifest_stays(home: Home) -> None:
    old, new = make(1), make(2)
    records = Records(home)
    records.keep(old, link_to(old))
    assert records.keep(new, link_to(new)).manifest_id == new.id
    assert records.manifest(old.id) == old


def tree(root: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_a_name_never_goes_back(home: Home) -> None:
    old, new = make(1), make(2)
    records = Records(home)
    records.keep(new, link_to(new))
    before = tree(home.root)
    with pytest.raises(MismatchError, match=r"version 1 of .*, and version 2 was seen") as caught:
        records.keep(old, link_to(old))
    assert "--at 1" in str(caught.value.hint)
    assert tree(home.root) == before
    assert Records(home).name(new.manifest.name).version == 2


def test_an_older_version_is_kept_beside_when_it_is_asked_for(home: Home) -> None:
    old, new = make(1), make(5)
    records = Records(home)
    records.keep(new, link_to(new))
    assert records.keep(old, link_to(old), old=True).manifest_id == new.id
    known = Records(home).name(new.manifest.name)
    assert (known.version, known.link) == (5, link_to(new))
    assert {version: ref.id for version, ref in known.versions.items()} == {1: old.id, 5: new.id}
    assert records.manifest(old.id) == old


@pytest.mark.parametrize("old", [False, True])
@pytest.mark.parametrize("version", [2, 3])
def test_two_manifests_under_one_version_are_a_fork(home: Home, version: int, old: bool) -> None:
    records = Records(home)
    for number in (2, 3):
        records.keep(make(number), link_to(make(number)))
    twin = make(version, size=8192)
    before = tree(home.root)
    with pytest.raises(MismatchError, match=r"^fork: ") as caught:
        records.keep(twin, link_to(twin), old=old)
    assert twin.id.hex() in str(caught.value)
    assert make(version).id.hex() in str(caught.value)
    assert tree(home.root) == before
    after = make(4)
    assert records.keep(after, link_to(after)).version == 4


def test_a_newer_link_to_the_same_manifest_is_kept(home: Home) -> None:
    signed = make()
    records = Records(home)
    records.keep(signed, link_to(signed, 1000))
    records.keep(signed, link_to(signed, 2000))
    assert Records(home).name(signed.manifest.name).link.peers == (("127.0.0.1", 2000),)


def test_a_link_to_something_else_is_refused(home: Home) -> None:
    signed, other = make(), make(label="other")
    records = Records(home)
    with pytest.raises(MismatchError):
        records.keep(signed, link_to(other))
    with pytest.raises(MismatchError):
        records.keep(signed, replace(link_to(signed), name=other.manifest.name))


def test_a_manifest_in_anothers_place_is_refused(home: Home) -> None:
    signed, other = make(), make(2)
    (home.manifests / signed.id.hex()).write_bytes(other.data)
    with pytest.raises(MismatchError):
        Records(home).manifest(signed.id)


def test_what_a_crash_left_beside_the_names_does_not_count(home: Home) -> None:
    signed = make()
    Records(home).keep(signed, link_to(signed))
    home.names.with_name("names.msgpack.new").write_bytes(b"half")
    records = Records(home)
    newer = make(2)
    assert records.keep(newer, link_to(newer)).version == 2


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xc1", b"\x00" * 100])
def test_damaged_names_are_an_error_that_names_the_file(home: Home, data: bytes) -> None:
    home.names.write_bytes(data)
    with pytest.raises(FormatError, match=r"names\.msgpack"):
        Records(home)


def test_one_unreadable_name_does_not_take_the_others_along(
    home: Home, caplog: pytest.LogCaptureFixture
) -> None:
    bad, good, third = make(label="bad"), make(label="good"), make(label="third")
    records = Records(home)
    for signed in (bad, good):
        records.keep(signed, link_to(signed))
    rows = unpack_canonical(home.names.read_bytes(), "names", 1 << 20)
    rows["names"][0]["link"] = "magnet:?"
    home.names.write_bytes(pack_canonical(rows))
    records = Records(home)
    assert [record.name.label for record in records.names()] == ["good"]
    assert "name 1 of 2" in caplog.text
    records.keep(third, link_to(third))
    assert [record.name.label for record in Records(home).names()] == ["good", "third"]


@pytest.mark.parametrize(("limit", "value"), [("MAX_NAMES", 2), ("MAX_NAMES_SIZE", 1000)])
def test_no_more_names_are_kept_than_can_be_read(
    home: Home, monkeypatch: pytest.MonkeyPatch, limit: str, value: int
) -> None:
    monkeypatch.setattr(records_module, limit, value)
    records = Records(home)
    kept = 0
    with pytest.raises(UsageError, match="no room for the name"):
        for number in range(10):
            signed = make(label=f"label{number}")
            records.keep(signed, link_to(signed))
            kept += 1
    assert len(Records(home).names()) == len(records.names()) == kept >= 2
    again = make(version=2, label="label0")
    if limit == "MAX_NAMES":
        assert records.keep(again, link_to(again)).version == 2


def test_any_damage_is_found_or_harmless(home: Home) -> None:
    signed = make()
    Records(home).keep(signed, link_to(signed))
    path = home.manifests / signed.id.hex()
    names, manifest = home.names.read_bytes(), path.read_bytes()

    @settings(deadline=None)
    @given(st.integers(0, len(names) - 1), st.integers(1, 255))
    def names_flipped(at: int, change: int) -> None:
        home.names.write_bytes(names[:at] + bytes([names[at] ^ change]) + names[at + 1 :])
        with contextlib.suppress(P2pcloopError):
            Records(home)

    @settings(deadline=None)
    @given(st.integers(0, len(manifest) - 1), st.integers(1, 255))
    def manifest_flipped(at: int, change: int) -> None:
        path.write_bytes(manifest[:at] + bytes([manifest[at] ^ change]) + manifest[at + 1 :])
        with pytest.raises(P2pcloopError):
            Records(home).manifest(signed.id)

    names_flipped()
    home.names.write_bytes(names)
    manifest_flipped()


def signed_record(signed: SignedManifest) -> SignedRecord:
    said, link = signed.manifest, link_to(signed)
    record = Record(said.key, said.label, said.version, 0, signed.id, link.manifest_torrent)
    return open_record(sign_record(record, KEY))


def test_a_record_stays_with_its_version(home: Home) -> None:
    one, two = make(1), make(2)
    records = Records(home)
    records.keep(one, link_to(one), record=signed_record(one))
    records.keep(one, link_to(one))
    assert Records(home).name(one.manifest.name).record == signed_record(one).data
    records.keep(two, link_to(two))
    assert Records(home).name(one.manifest.name).record is None
    records.keep(two, link_to(two), record=signed_record(two))
    assert Records(home).name(one.manifest.name).record == signed_record(two).data


def test_a_record_of_something_else_is_refused(home: Home) -> None:
    one, two, other = make(1), make(2), make(1, label="other")
    records = Records(home)
    records.keep(one, link_to(one))
    before = tree(home.root)
    for signed in (two, other):
        with pytest.raises(MismatchError, match="leads to a manifest of"):
            records.keep(one, link_to(one), record=signed_record(signed))
    torrent = replace(link_to(one), manifest_torrent=b"x" * 20)
    with pytest.raises(MismatchError):
        records.keep(one, torrent, record=signed_record(one))
    assert tree(home.root) == before


def test_a_secret_is_not_taken_away_by_a_link_without(home: Home) -> None:
    records = Records(home)
    secret = b"s" * 32
    one, two, open_to_all = make(1, key_check=b"c" * 16), make(2, key_check=b"c" * 16), make(3)
    records.keep(one, replace(link_to(one), secret=secret))
    assert records.keep(one, link_to(one)).link.secret == secret
    assert records.keep(two, link_to(two)).link.secret == secret
    kept = records.keep(open_to_all, replace(link_to(open_to_all), secret=secret))
    assert kept.link.secret is None


TWINS = {
    size: {version: make(version, size=size) for version in range(1, 6)} for size in (4096, 8192)
}

arrivals = st.lists(
    st.tuples(st.integers(1, 5), st.sampled_from([4096, 4096, 4096, 8192]), st.booleans()),
    max_size=12,
)


@settings(deadline=None, max_examples=60)
@given(arrivals)
def test_whatever_arrives_in_whatever_order(items: list[tuple[int, int, bool]]) -> None:
    """A model: what was seen first under a version stays, and the name never goes back."""
    seen: dict[int, bytes] = {}
    with tempfile.TemporaryDirectory() as folder:
        home = Home.at(folder)
        home.create()
        records = Records(home)
        for version, size, old in items:
            signed = TWINS[size][version]
            goes_back = bool(seen) and version < max(seen) and not old
            fork = seen.get(version, signed.id) != signed.id
            before = tree(home.root)
            if goes_back or fork:
                with pytest.raises(MismatchError, match=r"^fork: |never goes back"):
                    records.keep(signed, link_to(signed), old=old)
                assert tree(home.root) == before
            else:
                seen[version] = signed.id
                records.keep(signed, link_to(signed), old=old)
            for state in (records, Records(home)):
                known = state.find(signed.manifest.name)
                assert known is not None or not seen
                if known is not None:
                    assert known.version == max(seen)
                    assert {v: ref.id for v, ref in known.versions.items()} == seen
                    assert all(state.manifest(each).id == each for each in seen.values())


def test_a_link_that_is_too_long_with_what_is_known_is_cut(home: Home) -> None:
    """As it is, it could not be read again: secret and history would be gone after a restart."""
    secret = bytes(range(32))
    old, new = (make(version, key_check=key_check(secret)) for version in (1, 2))
    records = Records(home)
    records.keep(old, replace(link_to(old), secret=secret))
    long = replace(link_to(new), web_seeds=("http://example.org/a/",))
    while len(str(long)) + 25 < MAX_LINK_LENGTH:
        long = replace(long, web_seeds=(*long.web_seeds, "http://example.org/b/"))
        if str(long).count("&") > MAX_PARTS - 8:
            room = MAX_LINK_LENGTH - len(str(long)) - 25
            long = replace(long, web_seeds=(*long.web_seeds, "http://example.org/" + "c" * room))
    assert parse_link(str(long)) == long
    records.keep(new, replace(long, pack_torrent=b"p" * 20))
    again = Records(home).name(new.manifest.name)
    assert again.version == 2
    assert again.link.secret == secret
    assert again.link.peers == long.peers
    assert again.history[0][0] == 1
