"""Paths of mirrors, and .torrent files as mirrors have them."""

from __future__ import annotations

import hashlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.manifest import LayerRef
from p2pcloop.formats.mirror import (
    MAX_CANDIDATES,
    DispatchPath,
    LayerFilePath,
    ManifestPath,
    MetainfoPath,
    RecordPath,
    build_metainfo,
    extract_info,
    layer_parts,
    layer_torrent_name,
    parse_path,
)
from p2pcloop.formats.name import Name

LAYER = LayerRef(bytes(range(32)), b"t" * 20, 100, 60, 1000, 1 << 14)
INFO = b"d6:lengthi5e4:name1:x12:piece lengthi16384e6:pieces20:" + bytes(20) + b"e"
INFO_HASH = hashlib.sha1(INFO).digest()


@pytest.mark.parametrize(
    ("path", "text"),
    [
        (RecordPath(Name(bytes(32), "debian-12")), f"@{'a' * 52}/debian-12"),
        (ManifestPath(b"\xab" * 32), f"manifests/{'ab' * 32}"),
        (MetainfoPath(b"\xcd" * 20), f"torrents/{'cd' * 20}.torrent"),
        (LayerFilePath("0" * 32, "index"), f"data/{'0' * 32}/index"),
        (LayerFilePath("0" * 32, "pack"), f"data/{'0' * 32}/pack"),
        (DispatchPath(b"\xcd" * 20, (7,)), f"dispatch/{'cd' * 20}/7"),
        (DispatchPath(b"\xcd" * 20, (7, 8, 9, 3, 5, 4)), f"dispatch/{'cd' * 20}/7-9,3,5,4"),
    ],
)
def test_each_kind_has_one_spelling(path: object, text: str) -> None:
    assert str(path) == text
    assert parse_path(text) == path


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "manifests/",
        f"/manifests/{'ab' * 32}",
        f"manifests/{'AB' * 32}",
        f"manifests/{'ab' * 31}",
        f"manifests/{'ab' * 32}/",
        f"manifests/{'ab' * 32}\n",
        f"manifests/../manifests/{'ab' * 32}",
        f"torrents/{'cd' * 20}",
        f"data/{'0' * 32}/",
        f"data/{'0' * 32}/peers",
        f"data/{'0' * 32}/../index",
        "data/../../keys/default",
        f"dispatch/{'cd' * 20}/",
        f"dispatch/{'cd' * 20}/-",
        f"dispatch/{'cd' * 20}/07",
        f"dispatch/{'cd' * 20}/7-7",
        f"dispatch/{'cd' * 20}/9-7",
        f"dispatch/{'cd' * 20}/7,8",
        f"dispatch/{'cd' * 20}/7,",
        f"dispatch/{'cd' * 20}/1234567890",
        f"dispatch/{'cd' * 20}/0-{MAX_CANDIDATES}",
        f"dispatch/{'cd' * 20}/0-{MAX_CANDIDATES - 1},99",
        f"dispatch/{'cd' * 20}/0-999999999",
        f"@{'a' * 52}/Debian",
        f"@{'a' * 52}/..",
        f"@{'a' * 52}/x/y",
        "keys/default",
        "config.toml",
        "names.msgpack",
        "x" * 10_000,
    ],
)
def test_anything_else_is_no_path(text: str) -> None:
    assert parse_path(text) is None


@given(st.text(max_size=120))
def test_what_is_a_path_is_written_as_it_was_read(text: str) -> None:
    path = parse_path(text)
    assert path is None or str(path) == text


@given(
    st.lists(st.integers(0, 999_999_999), min_size=1, max_size=MAX_CANDIDATES, unique=True)
    | st.integers(0, 10_000).map(lambda at: list(range(at, at + MAX_CANDIDATES)))
)
def test_candidates_come_back_in_their_order(pieces: list[int]) -> None:
    path = DispatchPath(bytes(20), tuple(pieces))
    assert parse_path(str(path)) == path


@settings(max_examples=50)
@given(st.integers(0, 1099), st.integers(1, 1100))
def test_the_parts_of_a_range_are_the_range(offset: int, length: int) -> None:
    content = bytes(i % 251 for i in range(1100))
    files = {"index": content[:100], "pack": content[100:]}
    parts = list(layer_parts(LAYER, offset, length))
    assert all(path.torrent_name == layer_torrent_name(LAYER.layer_id) for path, _, _ in parts)
    found = b"".join(files[path.file][start : start + size] for path, start, size in parts)
    assert found == content[offset : offset + length]


@pytest.mark.parametrize("urls", [[], ["http://a/data/"], ["http://a/data/", "https://b/d/"]])
def test_the_info_dictionary_is_found_again(urls: list[str]) -> None:
    data = build_metainfo(INFO, urls)
    assert extract_info(data, INFO_HASH) == INFO
    for url in urls:
        assert b"%d:%s" % (len(url), url.encode()) in data


@pytest.mark.parametrize(
    "data", [b"", b"d4:infoe", b"<html>", build_metainfo(INFO)[:-2], build_metainfo(INFO[:-2])]
)
def test_other_metadata_is_refused(data: bytes) -> None:
    with pytest.raises(FormatError, match=INFO_HASH.hex()):
        extract_info(data, INFO_HASH)
