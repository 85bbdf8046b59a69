"""`p2pcloop config` and `limit`: what is set, and what a p2pcloopd that runs makes of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.formats.config import SETTINGS, load_config
from tests.support.command import Run

WRITTEN = """\
# of a user
quota = "20G"   # room

[discovery]
mirrors = ["https://example.org/images/"]
"""


@pytest.fixture
def file(home: Path) -> Path:
    path = home / "config.toml"
    path.write_text(WRITTEN)
    return path


def shown(p2pcloop: Run) -> dict[str, dict[str, Any]]:
    return {
        each["key"]: each
        for each in json.loads(p2pcloop("config", "show", "--json").out)["settings"]
    }


def test_all_that_may_be_set_is_shown_with_where_it_is_set(p2pcloop: Run, file: Path) -> None:
    settings = shown(p2pcloop)
    assert list(settings) == list(SETTINGS)
    assert (settings["quota"]["value"], settings["quota"]["set_in"]) == ("20G", str(file))
    assert (settings["listen"]["value"], settings["listen"]["set_in"]) == (["127.0.0.1:0"], None)
    text = p2pcloop("config", "show").out
    assert f'quota = "20G"  # {file}' in text
    assert "discovery.dht = false\n    names and peers by the BitTorrent DHT" in text


def test_what_is_set_leaves_all_else_as_it_was(p2pcloop: Run, file: Path) -> None:
    for key, value in (
        ("upload_limit", "1M"),
        ("waiting_after", "2.5"),
        ("discovery.dht", "true"),
        ("listen", "0.0.0.0:6881, [::]:6881"),
        ("http.listen", "[]"),
    ):
        told = json.loads(p2pcloop("config", "set", key, value, "--json").out)
        assert (told["running"], told["changed"], told["later"]) == (False, [], [])
    assert "# of a user" in file.read_text()
    assert 'quota = "20G"   # room' in file.read_text()
    config = load_config(file)
    assert (config.upload_limit, config.waiting_after, config.quota) == (1 << 20, 2.5, 20 << 30)
    assert config.listen == (("0.0.0.0", 6881), ("::", 6881))
    assert (config.http.listen, config.discovery.dht) == ((), True)
    assert config.discovery.mirrors == ("https://example.org/images/",)
    p2pcloop("config", "unset", "discovery.dht")
    assert not load_config(file).discovery.dht


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        ("set nothing 1", 2, "no setting 'nothing'"),
        ("set quota much", 2, "not a size like"),
        ("set discovery.dht yes", 2, "must be true or false"),
        ("set listen here", 2, "not of the form"),
        ("unset upload_limit", 7, "does not set upload_limit"),
    ],
)
def test_what_cannot_be_set_changes_nothing(
    p2pcloop: Run, file: Path, words: str, code: int, said: str
) -> None:
    ran = p2pcloop("config", *words.split())
    assert ran.code == code
    assert said in ran.err
    assert "hint: " in ran.err
    assert file.read_text() == WRITTEN


def test_a_file_that_is_damaged_is_not_written_over(p2pcloop: Run, file: Path) -> None:
    file.write_text("quota = \n")
    assert p2pcloop("config", "set", "quota", "1G").code == 2
    assert file.read_text() == "quota = \n"


def test_a_link_to_a_file_elsewhere_stays_one(p2pcloop: Run, file: Path, tmp_path: Path) -> None:
    file.rename(tmp_path / "mine.toml")
    file.symlink_to(tmp_path / "mine.toml")
    assert p2pcloop("config", "set", "quota", "1G").code == 0
    assert file.is_symlink()
    assert 'quota = "1G"' in (tmp_path / "mine.toml").read_text()


def test_an_editor_is_given_a_draft(
    p2pcloop: Run, file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", "sed -i s/20G/-20G/")
    ran = p2pcloop("config", "edit")
    assert ran.code == 2
    assert "your text is kept" in ran.err
    assert file.read_text() == WRITTEN
    monkeypatch.setenv("VISUAL", "sed -i s/-20G/30G/")
    assert p2pcloop("config", "edit").code == 0
    assert file.read_text() == WRITTEN.replace("20G", "30G")
    monkeypatch.setenv("VISUAL", "false")
    assert "nothing is changed" in p2pcloop("config", "edit").err


def test_an_editor_finds_all_that_may_be_set(
    p2pcloop: Run, home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VISUAL", "sed -i 's/^# natpmp = false/natpmp = true/'")
    assert p2pcloop("config", "edit").code == 0
    text = (home / "config.toml").read_text()
    assert all(setting.about in text for setting in SETTINGS.values())
    assert load_config(home / "config.toml").discovery.natpmp


def test_a_node_that_runs_takes_over_limits_at_once(p2pcloop: Run, file: Path) -> None:
    try:
        assert p2pcloop("daemon", "start").code == 0
        told = json.loads(p2pcloop("limit", "--up", "2M", "--down", "3M", "--json").out)
        assert told["changed"] == ["upload_limit", "download_limit"]
        told = json.loads(p2pcloop("config", "set", "discovery.lsd", "true", "--json").out)
        assert (told["running"], told["changed"], told["later"]) == (True, [], ["discovery.lsd"])
        ran = p2pcloop("config", "unset", "quota")
        assert "in effect: quota" in ran.err
        assert "once p2pcloopd starts again: discovery.lsd" in ran.err
    finally:
        p2pcloop("daemon", "stop")
    config = load_config(file)
    assert (config.upload_limit, config.download_limit) == (2 << 20, 3 << 20)
    assert "upload_limit: 2M bytes a second" in p2pcloop("limit").out
