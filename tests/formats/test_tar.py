"""Tar files of strangers."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.formats.tar import Kind, Member, TarReader

NAMES = st.binary(min_size=1, max_size=300).filter(lambda name: b"\0" not in name)


def header(name: bytes, *, kind: bytes = b"0", size: int = 0, link: bytes = b"") -> bytes:
    info = tarfile.TarInfo(name.decode("utf-8", "surrogateescape"))
    info.type, info.size = kind, size
    info.linkname = link.decode("utf-8", "surrogateescape")
    return info.tobuf(tarfile.GNU_FORMAT, "utf-8", "surrogateescape")


def read(data: bytes, cuts: Sequence[int] = ()) -> list[tuple[Member, bytes]]:
    reader = TarReader()
    ends = sorted(cut % (len(data) + 1) for cut in cuts)
    found: list[tuple[Member, bytes]] = []
    for begin, end in zip([0, *ends], [*ends, len(data)], strict=True):
        for item in reader.feed(data[begin:end]):
            if isinstance(item, Member):
                found.append((item, b""))
            else:
                found[-1] = (found[-1][0], found[-1][1] + item)
    assert reader.ended
    return found


@given(
    st.lists(st.tuples(NAMES, st.binary(max_size=1500)), max_size=4),
    st.lists(st.integers(0, 10_000), max_size=6),
)
def test_names_and_content_are_read_however_they_are_cut(
    files: list[tuple[bytes, bytes]], cuts: list[int]
) -> None:
    data = b""
    for name, content in files:
        data += header(name, size=len(content)) + content + bytes(-len(content) % 512)
    found = read(data + bytes(1024) + b"what follows", cuts)
    assert [(member.name, content) for member, content in found] == files


def test_what_follows_the_end_is_not_kept() -> None:
    reader = TarReader()
    assert not list(reader.feed(bytes(1024)))
    for _ in range(100):
        assert not list(reader.feed(bytes(1 << 16)))
    assert len(reader._held) <= 1024


@given(NAMES, NAMES)
def test_links_are_read(name: bytes, link: bytes) -> None:
    [(member, _)] = read(header(name, kind=b"2", link=link) + bytes(1024))
    assert (member.kind, member.link) == (Kind.SYMLINK, link)


@pytest.mark.parametrize("form", [tarfile.GNU_FORMAT, tarfile.USTAR_FORMAT])
def test_facts_are_those_of_other_programs(form: int) -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=form) as archive:
        info = tarfile.TarInfo("a" * 90 + "/" + "b" * 60)
        info.mode, info.mtime, info.size = 0o4751, 1_700_000_000, 5
        archive.addfile(info, io.BytesIO(b"12345"))
    [(member, content)] = read(buffer.getvalue())
    assert member == Member(info.name.encode(), Kind.FILE, 0o4751, 1_700_000_000, 5, b"")
    assert content == b"12345"


def test_a_large_file_is_announced_and_not_held() -> None:
    reader = TarReader()
    [member, *_] = reader.feed(header(b"huge", size=1 << 50))
    assert isinstance(member, Member)
    assert member.size == 1 << 50
    for _ in range(100):
        assert list(reader.feed(bytes(1 << 16))) == [bytes(1 << 16)]
    assert not reader._held


@given(st.binary(max_size=2000))
def test_noise_is_refused_or_waits_for_more(data: bytes) -> None:
    reader = TarReader()
    try:
        list(reader.feed(data))
    except FormatError:
        return
    assert len(reader._held) < 512 or reader.ended


def changed(block: bytes, at: int, new: bytes) -> bytes:
    """A header with other bytes, and the checksum that fits."""
    block = block[:at] + new + block[at + len(new) :]
    blank = block[:148] + b" " * 8 + block[156:]
    return block[:148] + b"%06o\0 " % sum(blank) + block[156:]


@pytest.mark.parametrize(
    "block",
    [
        header(b"a")[:-1] + b"x",
        changed(header(b"a"), 156, b"x"),
        changed(header(b"a"), 124, b"9" * 11),
        changed(header(b"a"), 124, b"\x80" + b"\xff" * 11),
        changed(header(b"a"), 156, b"L"),
        changed(changed(header(b"a"), 156, b"L"), 124, b"77777777777"),
        changed(header(b"a"), 156, b"S"),
    ],
    ids=["checksum", "type", "digits", "size", "no name", "long name", "sparse"],
)
def test_damaged_headers_are_refused(block: bytes) -> None:
    with pytest.raises(FormatError):
        list(TarReader().feed(block))
