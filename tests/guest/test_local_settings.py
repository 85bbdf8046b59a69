"""What a guest is told of language, keyboard and time zone."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.errors import UsageError
from p2pcloopd.guest.system.local_settings import LocalSettings, given_settings, host_settings


def machine(root: Path, *, keyboard: str = "", console: str = "", zone: str = "") -> Path:
    (root / "etc/default").mkdir(parents=True)
    if keyboard:
        (root / "etc/default/keyboard").write_text(keyboard)
    if console:
        (root / "etc/vconsole.conf").write_text(console)
    if zone:
        (root / "etc/localtime").symlink_to(zone)
    return root


def test_the_settings_of_a_debian_in_germany(tmp_path: Path) -> None:
    root = machine(
        tmp_path,
        keyboard='XKBMODEL="pc105"\nXKBLAYOUT="de,us"\n',
        zone="/usr/share/zoneinfo/Europe/Berlin",
    )
    found = host_settings({"LANG": "de_DE.UTF-8"}, root)
    assert found == LocalSettings("de_DE.UTF-8", "de", "Europe/Berlin")
    assert found.words() == [
        *("lang=de", "locale.LANG=de_DE.UTF-8", "keyboard=de", "vconsole.keymap=de"),
        "tz=Europe/Berlin",
    ]
    assert found.variables() == {"LANG": "de_DE.UTF-8", "TZ": "Europe/Berlin"}


def test_other_places_of_settings(tmp_path: Path) -> None:
    root = machine(tmp_path, console="FONT=eurlatgr\nKEYMAP=fr-latin1\n", zone="../nowhere")
    found = host_settings({"LANG": "en_US.UTF-8", "LC_ALL": "fr_FR@euro"}, root)
    assert found == LocalSettings("fr_FR@euro", "fr", None)


def test_what_a_machine_does_not_say_or_says_badly_is_left_to_the_image(tmp_path: Path) -> None:
    assert host_settings({}, tmp_path) == LocalSettings()
    root = machine(tmp_path, keyboard='XKBLAYOUT=""', zone="/usr/share/zoneinfo/a b init=/bin/sh")
    for locale in ("C", "C.UTF-8", "POSIX", "de_DE init=/bin/sh", "x" * 99):
        assert host_settings({"LANG": locale}, root) == LocalSettings()
    assert LocalSettings().words() == []


def test_what_a_user_gives() -> None:
    assert given_settings("ja_JP.UTF-8", "jp") == LocalSettings("ja_JP.UTF-8", "jp")
    assert given_settings("C", None) == LocalSettings()
    for locale, keyboard in (("", None), ("de DE", None), (None, "de us"), (None, "")):
        with pytest.raises(UsageError):
            given_settings(locale, keyboard)
