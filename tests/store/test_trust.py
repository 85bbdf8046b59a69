"""The keys that a home trusts with states."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.errors import FormatError, NotHereError
from p2pcloop.formats.name import format_key
from p2pcloop.store.home import Home
from p2pcloop.store.trust import TrustedKeys, read_trusted

KEY, OTHER = bytes(range(32)), bytes(range(1, 33))


@pytest.fixture
def keys(tmp_path: Path) -> TrustedKeys:
    return TrustedKeys(Home.at(tmp_path / "home"))


def test_a_key_is_trusted_until_it_is_forgotten(keys: TrustedKeys) -> None:
    assert keys.all() == set()
    keys.add(KEY)
    keys.add(OTHER)
    keys.add(KEY)
    assert TrustedKeys(keys.home).all() == {KEY, OTHER}
    keys.forget(KEY)
    assert keys.all() == {OTHER}
    assert keys.home.trusted_keys.read_text() == f"@{format_key(OTHER)}\n"
    with pytest.raises(NotHereError, match="is not trusted"):
        keys.forget(KEY)


def test_a_damaged_file_trusts_nothing(keys: TrustedKeys) -> None:
    keys.add(KEY)
    keys.home.trusted_keys.write_text(f"@{format_key(KEY)}\n@{format_key(OTHER)[:-1]}\n")
    with pytest.raises(FormatError, match="line 2"):
        keys.all()


def test_a_key_is_given_whole() -> None:
    text = format_key(KEY)
    assert read_trusted(text) == read_trusted(f"@{text}") == read_trusted(f"@{text}/debian") == KEY
    for part in (text[:8], f"@{text[:8]}/debian", ""):
        with pytest.raises(FormatError) as caught:
            read_trusted(part)
        assert "give all of it" in (caught.value.hint or "")
