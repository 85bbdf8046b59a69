"""A name with the base of a mirror, or alone."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, P2pcloopError
from p2pcloop.formats.name import Name
from p2pcloop.formats.place import Place, is_url, parse_place

NAME = Name(bytes(range(32)), "debian")


@pytest.mark.parametrize(
    "base",
    ["", "https://host/", "http://host:80/a/b/", "/srv/mirror/", "./", "a b/", "https://h/u@h/"],
)
def test_a_place_is_written_and_read(base: str) -> None:
    assert parse_place(f"{base}{NAME}") == Place(NAME, base)
    assert str(Place(NAME, base)) == f"{base}{NAME}"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "debian",
        "@debian",
        "https://host/",
        "https://host/image.cloop",
        "https:///@nobody/x",
        f"https://host{NAME}",
        f"https://host/dir{NAME}",
        f"https://host/?a/{NAME}",
        f"https://host/#a/{NAME}",
        f"https://ho st/{NAME}",
        f"dir{NAME}",
        f"{NAME}/",
        f"{NAME}/..",
        f"/srv/{NAME}\n",
        f"/srv/{str(NAME)[:-6]}deb\N{CYRILLIC SMALL LETTER BYELORUSSIAN-UKRAINIAN I}an",
        f"/srv/{str(NAME)[:-6]}../x",
        f"/srv/{str(NAME).upper()}",
    ],
)
def test_what_is_none_is_refused(text: str) -> None:
    with pytest.raises(FormatError):
        parse_place(text)


@given(st.text(max_size=80))
def test_any_text_is_read_or_refused(text: str) -> None:
    for whole in (text, f"{text}{NAME}", f"https://{text}/{NAME}"):
        try:
            place = parse_place(whole)
        except P2pcloopError:
            continue
        assert parse_place(str(place)) == place
        # The host of a URL is kept as DNS has it.
        assert str(place) == whole or not whole.isascii()
        assert place.base == "" or place.base.endswith("/")


def test_urls_are_told_from_directories() -> None:
    assert is_url("https://x/")
    assert is_url("HTTP://x/")
    assert not is_url("/https://x/")
    assert not is_url("ftp://x/")
