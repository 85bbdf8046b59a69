"""names.msgpack as bytes: golden files, and any other bytes."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.link import Link
from p2pcloop.formats.manifest import ManifestRef
from p2pcloop.formats.name import Name
from p2pcloop.formats.packing import pack_canonical, unpack_canonical
from p2pcloop.formats.record import Record, sign_record
from p2pcloop.store.name_table import MAX_HISTORY, NameRecord, pack_names, read_names

DATA = Path(__file__).parents[1] / "data"
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAME = Name(KEY.public_key().public_bytes_raw(), "debian")
LINK = Link(
    NAME,
    b"m" * 32,
    b"t" * 20,
    peers=(("127.0.0.1", 6881),),
    mirrors=("https://example.org/m/",),
    secret=bytes(range(32)),
)
RECORD = sign_record(Record(NAME.key, "debian", 7, 1000, b"m" * 32, b"t" * 20), KEY)
HISTORY = ((3, ManifestRef(b"3" * 32, b"c" * 20)), (6, ManifestRef(b"6" * 32, b"f" * 20)))
GOLDEN = NameRecord(7, LINK, RECORD, HISTORY)


def test_the_golden_file_is_read_and_written() -> None:
    path = DATA / "names-v2.msgpack"
    assert read_names(path) == [GOLDEN]
    assert pack_names([GOLDEN]) == path.read_bytes()


def test_format_1_is_read() -> None:
    [known] = read_names(DATA / "names-v1.msgpack")
    assert known == NameRecord(7, LINK.public())
    assert known.versions == {7: ManifestRef(b"m" * 32, b"t" * 20)}


def test_all_versions_are_told() -> None:
    assert {version: ref.id[:1] for version, ref in GOLDEN.versions.items()} == {
        3: b"3",
        6: b"6",
        7: b"m",
    }


def test_no_file_has_no_names(tmp_path: Path) -> None:
    assert read_names(tmp_path / "none") == []


def rewritten(tmp_path: Path, **fields: object) -> list[NameRecord]:
    """Read the golden table with some fields of its row replaced, and another row behind it."""
    rows = unpack_canonical((DATA / "names-v2.msgpack").read_bytes(), "it", 1 << 20)
    other = NameRecord(1, Link(Name(NAME.key, "other"), b"o" * 32, b"u" * 20))
    behind = unpack_canonical(pack_names([other]), "it", 1 << 20)["names"]
    rows["names"] = [rows["names"][0] | fields, *behind]
    path = tmp_path / "names"
    path.write_bytes(pack_canonical(rows))
    return read_names(path)


def older(version: int) -> dict[str, object]:
    return {"version": version, "manifest": b"x" * 32, "torrent": b"y" * 20}


@pytest.mark.parametrize(
    "fields",
    [
        {"history": [older(7)]},
        {"history": [older(8)]},
        {"history": [older(3), older(3)]},
        {"history": [older(3), older(2)]},
        {"history": [older(0)]},
        {"history": [older(1) | {"more": 1}]},
        {"history": [older(1)] * (MAX_HISTORY + 1)},
        {"history": 1},
        {"version": 8},
        {"record": RECORD[:-1] + b"\0"},
        {"record": b"r" * 600},
        {"manifest": b"n" * 32},
        {"name": "@x/y"},
        {"link": "magnet:?"},
    ],
)
def test_a_name_that_contradicts_itself_is_passed_over(
    tmp_path: Path, fields: dict[str, object], caplog: pytest.LogCaptureFixture
) -> None:
    assert [known.name.label for known in rewritten(tmp_path, **fields)] == ["other"]
    assert "name 1 of 2 is passed over" in caplog.text


def test_another_format_is_told(tmp_path: Path) -> None:
    path = tmp_path / "names"
    path.write_bytes(pack_canonical({"format": 3, "names": []}))
    with pytest.raises(FormatError, match="names"):
        read_names(path)


versions = st.lists(st.integers(1, 1 << 53), min_size=1, max_size=5, unique=True).map(sorted)


@given(st.lists(versions, max_size=4), st.binary(min_size=32, max_size=32))
def test_what_is_packed_is_read(names: list[list[int]], manifest: bytes) -> None:
    records = [
        NameRecord(
            numbers[-1],
            Link(Name(NAME.key, f"label{at}"), manifest, b"t" * 20),
            None,
            tuple((number, ManifestRef(manifest, b"o" * 20)) for number in numbers[:-1]),
        )
        for at, numbers in enumerate(names)
    ]
    assert _read(pack_names(records)) == records


def _read(data: bytes) -> list[NameRecord]:

    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        return read_names(Path(file.name))
