"""Short names of one's own."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, NotHereError, P2pcloopError, UsageError
from p2pcloop.formats.name import Name
from p2pcloop.store.home import Home
from p2pcloop.store.names import MAX_SHORT_NAMES, ShortNames

NAME = Name(bytes(range(32)), "debian")
OTHER = Name(bytes(range(32)), "other")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")


def test_what_was_added_stands_until_it_is_forgotten(home: Home) -> None:
    names = ShortNames(home)
    assert names.all() == {}
    assert not home.root.exists()
    names.add("knoppix", NAME)
    names.add("a", OTHER)
    names.add("a", OTHER)
    assert ShortNames(home).all() == {"a": OTHER, "knoppix": NAME}
    assert list(names.all()) == ["a", "knoppix"]
    assert home.short_names.read_text() == f"a {OTHER}\nknoppix {NAME}\n"
    assert names.find("knoppix") == NAME
    assert names.find("nobody") is None
    names.forget("a")
    assert ShortNames(home).all() == {"knoppix": NAME}


def test_a_short_name_that_is_taken_stays(home: Home) -> None:
    names = ShortNames(home)
    names.add("knoppix", NAME)
    before = home.short_names.read_bytes()
    with pytest.raises(UsageError, match="knoppix stands for"):
        names.add("knoppix", OTHER)
    with pytest.raises(NotHereError):
        names.forget("other")
    assert home.short_names.read_bytes() == before


@pytest.mark.parametrize(
    "short",
    [
        "",
        ".",
        "..",
        "a/b",
        "a..b",
        "A",
        "a b",
        "a\n",
        "x" * 65,
        "\N{CYRILLIC SMALL LETTER A}",
        "@a",
    ],
)
def test_a_bad_short_name_is_refused_before_the_disk_is_touched(home: Home, short: str) -> None:
    with pytest.raises(FormatError):
        ShortNames(home).add(short, NAME)
    with pytest.raises(NotHereError):
        ShortNames(home).forget(short)
    assert not home.root.exists()


@pytest.mark.parametrize(
    "text",
    [
        b"knoppix\n",
        b"knoppix @x/y\n",
        f"k nop {NAME}\n".encode(),
        f"ok {NAME}\n../k {NAME}\n".encode(),
        b"\xff\xfe",
        b"a" * (2 << 20),
    ],
)
def test_a_damaged_file_is_told_and_left_alone(home: Home, text: bytes) -> None:
    home.create()
    home.short_names.write_bytes(text)
    for change in (lambda: ShortNames(home).all(), lambda: ShortNames(home).add("new", NAME)):
        with pytest.raises(FormatError, match="short-names"):
            change()
    assert home.short_names.read_bytes() == text


def test_all_who_add_at_once_are_kept(home: Home) -> None:
    start = threading.Barrier(8)

    def add(number: int) -> None:
        start.wait(60)
        ShortNames(home).add(f"name{number}", NAME)

    threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(ShortNames(home).all()) == sorted(f"name{number}" for number in range(8))


def test_there_is_a_limit(home: Home) -> None:
    home.create()
    lines = "".join(f"n{number} {NAME}\n" for number in range(MAX_SHORT_NAMES))
    home.short_names.write_text(lines)
    with pytest.raises(UsageError, match="no more may be"):
        ShortNames(home).add("one-more", NAME)
    assert home.short_names.read_text() == lines
    ShortNames(home).forget("n0")
    ShortNames(home).add("one-more", NAME)


def test_any_bytes_are_read_or_refused(home: Home) -> None:
    home.create()
    good = f"a {NAME}\nb {OTHER}\n".encode()

    @settings(deadline=None)
    @given(st.integers(0, len(good) - 1), st.integers(0, 255))
    def changed(at: int, byte: int) -> None:
        home.short_names.write_bytes(good[:at] + bytes([byte]) + good[at + 1 :])
        try:
            names = ShortNames(home).all()
        except P2pcloopError:
            return
        assert set(map(type, names.values())) <= {Name}

    changed()
