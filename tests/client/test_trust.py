"""Who is asked before a state runs here."""

from __future__ import annotations

import sys
from pathlib import Path

import click
import pytest

from p2pcloop.client import trust
from p2pcloop.errors import UsageError
from p2pcloop.formats.name import Name
from p2pcloop.store.home import Home
from p2pcloop.store.keys import load_or_create_key
from p2pcloop.store.trust import TrustedKeys

STRANGER = Name(bytes(range(32)), "desktop")


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return Home.at(tmp_path / "home")


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The questions at a terminal; those that are told there beforehand are the answers."""
    answers: list[str] = []
    monkeypatch.setattr(sys.stdin, "isatty", lambda: True)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    monkeypatch.setattr(click, "prompt", lambda *_, **__: answers.pop())
    return answers


def test_own_states_and_trusted_keys_need_no_question(home: Home) -> None:
    own = load_or_create_key(home.keys).public_key().public_bytes_raw()
    trust.check_trust(Name(own, "g1"), home)
    trust.check_trust(STRANGER, home, {STRANGER.key})
    TrustedKeys(home).add(STRANGER.key)
    trust.check_trust(STRANGER, home)


def test_without_a_terminal_it_is_refused_and_the_way_is_told(home: Home) -> None:
    with pytest.raises(UsageError, match="another user") as caught:
        trust.check_trust(STRANGER, home)
    assert f"--trust {str(STRANGER).partition('/')[0]}" in (caught.value.hint or "")


def test_the_answer_counts_once_or_always(home: Home, asked: list[str]) -> None:
    asked.append("no")
    with pytest.raises(UsageError, match="was not resumed"):
        trust.check_trust(STRANGER, home)
    asked.append("yes")
    trust.check_trust(STRANGER, home)
    asked.append("always")
    trust.check_trust(STRANGER, home)
    assert asked == []
    trust.check_trust(STRANGER, home)
