"""Which files an overlay and a newer image both changed, and how the guest's answer is read."""

from __future__ import annotations

import contextlib
import io
import stat
import tarfile
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError
from p2pcloop.making.rebase import (
    Adoption,
    Comparison,
    Entry,
    find_conflicts,
    read_comparison,
    take_theirs,
)

NONE = (0, 0)


def file(content: str, permissions: int = 0o644) -> Entry:
    return Entry(stat.S_IFREG | permissions, 0, 0, NONE, content.encode().hex().encode())


def link(target: str) -> Entry:
    return Entry(stat.S_IFLNK | 0o777, 0, 0, NONE, target.encode().hex().encode())


DIRECTORY = Entry(stat.S_IFDIR | 0o755, 0, 0, NONE)
CLOSED = Entry(stat.S_IFDIR | 0o700, 0, 5, NONE)
WHITEOUT = Entry(stat.S_IFCHR, 0, 0, NONE)
NULL = Entry(stat.S_IFCHR | 0o666, 0, 0, (1, 3))

Tree = Mapping[bytes, Entry]


def conflicts(upper: Tree, old: Tree, new: Tree, opaque: tuple[bytes, ...] = ()) -> list[str]:
    """Each conflict as `path: ours, theirs`."""
    found = find_conflicts(Comparison(upper, frozenset(opaque), old, new))
    return [f"{one.path.decode()}: {one.ours}, {one.theirs}" for one in found]


ONE_PATH = [
    # upper, old image, new image, what is told
    (file("m"), file("1"), file("1"), None),
    (file("m"), file("1"), file("2"), "changed, changed"),
    (file("m"), file("1"), file("1", 0o600), "changed, changed"),
    (file("m"), file("1"), link("1"), "changed, changed"),
    (file("m"), file("1"), None, "changed, deleted"),
    (file("2"), file("1"), file("2"), None),
    (file("m"), None, None, None),
    (file("m"), None, file("2"), "added, added"),
    (link("m"), link("1"), link("2"), "changed, changed"),
    (WHITEOUT, file("1"), file("1"), None),
    (WHITEOUT, file("1"), file("2"), "deleted, changed"),
    (WHITEOUT, file("1"), None, None),
    (NULL, file("1"), file("2"), "changed, changed"),
    (DIRECTORY, DIRECTORY, DIRECTORY, None),
    (DIRECTORY, DIRECTORY, CLOSED, "changed, changed"),
    (CLOSED, DIRECTORY, CLOSED, None),
    (DIRECTORY, DIRECTORY, None, None),
    (DIRECTORY, DIRECTORY, file("2"), "changed, changed"),
    (DIRECTORY, None, CLOSED, None),
    (DIRECTORY, None, file("2"), "added, added"),
]


@pytest.mark.parametrize(("upper", "old", "new", "told"), ONE_PATH)
def test_one_path(upper: Entry, old: Entry | None, new: Entry | None, told: str | None) -> None:
    trees = [{} if entry is None else {b"a": entry} for entry in (upper, old, new)]
    assert conflicts(trees[0], trees[1], trees[2]) == ([f"a: {told}"] if told else [])


@pytest.mark.parametrize(
    ("upper", "ours"), [(WHITEOUT, "deleted"), (file("m"), "changed"), (DIRECTORY, "replaced")]
)
def test_what_hides_a_directory_hides_changes_below_it(upper: Entry, ours: str) -> None:
    old = {b"d": DIRECTORY, b"d/e": DIRECTORY, b"d/e/f": file("1"), b"d2": file("1")}
    hiding = {b"d": upper}
    opaque = (b"d",) if upper.is_directory else ()
    assert conflicts(hiding, old, old | {b"d2": file("2")}, opaque) == []
    for new in (old | {b"d/e/f": file("2")}, old | {b"d/g": file("2")}):
        assert conflicts(hiding, old, new, opaque) == [f"d: {ours}, changed"]


def test_what_is_in_a_directory_that_hides_is_not_told_again() -> None:
    upper = {b"d": DIRECTORY, b"d/f": file("m"), b"d0": file("m"), b"d-": file("m")}
    old = {b"d": DIRECTORY, b"d/f": file("1"), b"d0": file("1"), b"d-": file("1")}
    new = {b"d": DIRECTORY, b"d/f": file("2"), b"d0": file("2"), b"d-": file("2")}
    assert conflicts(upper, old, new, (b"d",)) == [
        "d: replaced, changed",
        "d-: changed, changed",
        "d0: changed, changed",
    ]


def test_what_taking_theirs_does() -> None:
    upper = {b"d": DIRECTORY, b"f": file("m")}
    old = {b"d": DIRECTORY, b"f": file("1")}
    found = find_conflicts(Comparison(upper, frozenset(), old, {b"d": CLOSED, b"f": file("2")}))
    assert take_theirs(found) == ([b"f"], [Adoption(b"d", 0, 5, 0o700)])


# --- the answer ----------------------------------------------------------------------------------


def answer(**parts: bytes) -> bytes:
    """A tar file of these parts (`old_stat` is old.stat), and of empty ones for the others."""
    empty = ("old_stat", "old_hash", "new_stat", "new_hash", "upper_stat", "upper_hash", "opaque")
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name in empty:
            data = parts.get(name, b"")
            member = tarfile.TarInfo(name.replace("_", "."))
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    return out.getvalue()


HASH = b"ab" * 32
NAMES = [b"plain", b"with\nline feed", b"\n", b"ends in a dot.", b"a/b/c.", b"  .", b"\xff", b""]


def test_any_name_is_read() -> None:
    stats = b"".join(b"81a4 0 7 0 0 5 .//%s\n" % name for name in NAMES)
    hashes = b"".join(b"%s  .//%s\n" % (HASH, name) for name in reversed(NAMES))
    found = read_comparison(io.BytesIO(answer(old_stat=stats, old_hash=hashes)))
    assert found.old == {name: Entry(0o100644, 0, 7, NONE, HASH) for name in NAMES}
    assert found.new == found.upper == {}


def test_devices_and_directories_that_hide() -> None:
    stats = b"2000 0 0 0 0 0 .//gone\n21b6 0 0 1 fe 0 .//null\n41ed 0 0 0 0 9 .//d\n"
    found = read_comparison(io.BytesIO(answer(upper_stat=stats, opaque=b".//d\0.//d/e\0")))
    assert found.upper[b"gone"].is_whiteout
    assert found.upper[b"null"].device == (1, 254)
    assert found.upper[b"d"].is_directory
    assert found.opaque == {b"d", b"d/e"}


@pytest.mark.parametrize(
    "parts",
    [
        {"old_stat": b"81a4 0 0 0 0 5 .//not read\n"},
        {"old_stat": b"81a4 0 0 0 0 5 .//no end"},
        {"old_stat": b"81a4 0 0 0 0 5 /no mark\n"},
        {"old_hash": b"short  .//name\n"},
        {"opaque": b"/d\0"},
    ],
)
def test_bad_answers(parts: dict[str, bytes]) -> None:
    with pytest.raises(FormatError):
        read_comparison(io.BytesIO(answer(**parts)))


@given(st.integers(0, 10_000), st.binary(max_size=40))
def test_any_other_answer_is_a_format_error(at: int, junk: bytes) -> None:
    stats = b"".join(b"41ed 0 7 0 0 5 .//%s\n" % name for name in NAMES)
    data = bytearray(answer(old_stat=stats, opaque=b".//d\0"))
    data[at : at + len(junk)] = junk
    with contextlib.suppress(FormatError):
        read_comparison(io.BytesIO(bytes(data)))
    with contextlib.suppress(FormatError):
        read_comparison(io.BytesIO(bytes(data[:at])))
