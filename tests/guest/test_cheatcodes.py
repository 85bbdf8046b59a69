"""KNOPPIX's cheatcodes in `--append`."""

from __future__ import annotations

import pytest

from p2pcloopd.guest.system.cheatcodes import Cheatcodes, read_cheatcodes


@pytest.mark.parametrize(
    ("append", "words"),
    [
        ("lang=de", ["locale.LANG=de_DE.UTF-8", "vconsole.keymap=de"]),
        ("lang=us keyboard=fr", ["locale.LANG=en_US.UTF-8", "vconsole.keymap=fr"]),
        ("lang=pt_BR", ["locale.LANG=pt_BR.UTF-8"]),
        ("lang=de lang=fr", ["locale.LANG=fr_FR.UTF-8", "vconsole.keymap=fr"]),
        ("tz=Europe/Berlin", ["systemd.setenv=TZ=Europe/Berlin"]),
        ("lang=klingon keyboard=; tz=../../x$(y)", []),
        ("quiet noswap 2 desktop=twm", []),
        ("quiet -- lang=de toram", []),
        (
            "'lang=de' 'note=toram home=/dev/sda1'",
            ["locale.LANG=de_DE.UTF-8", "vconsole.keymap=de"],
        ),
        ("lang=de 'unbalanced", []),
    ],
)
def test_what_systemd_understands(append: str, words: list[str]) -> None:
    assert read_cheatcodes(append) == Cheatcodes(tuple(words))


def test_toram_and_a_host_name() -> None:
    found = read_cheatcodes("toram hostname=box-1")
    assert found == Cheatcodes(host_name="box-1", whole=True)
    found = read_cheatcodes("hostname=Box_1")
    assert found.host_name is None
    [remark] = found.remarks
    assert remark.startswith("hostname: it is no host name")


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("home=/dev/sda1", "--overlay FILE"),
        ("myconf=scan", "p2pcloop import"),
        ("fromhd=/dev/sda1", "where the CD lies"),
        ("tohd=/dev/sda1", "p2pcloop fetch"),
        ("testcd", "p2pcloop verify"),
        ("screen=1280x1024", "--display"),
        ("noimage", "without --overlay"),
    ],
)
def test_what_means_nothing_here_is_told(word: str, told: str) -> None:
    [remark] = read_cheatcodes(word).remarks
    assert remark.startswith(f"{word.partition('=')[0]}: it ")
    assert told in remark
