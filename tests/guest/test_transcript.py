"""What is read from a guest's console output."""

from __future__ import annotations

from itertools import count

import pytest

from p2pcloopd.guest.transcript import Transcript


def transcript(text: bytes, addresses: list[str] | None = None) -> Transcript:
    ticks = count()
    made = Transcript(lambda: next(ticks), ([] if addresses is None else addresses).append)
    for position in range(len(text)):
        made.take(text[position : position + 1])
    return made


@pytest.mark.parametrize(
    ("text", "code", "reason"),
    [
        (b"reboot: Restarting system\r\n", 0, "reboot"),
        (b"reboot: System halted\r\n", 0, "poweroff"),
        (b"reboot: Power down\r\n", 0, "poweroff"),
        (b"cat: reboot: Power down\r\n x reboot: Restarting system\r\n", 0, "reboot"),
        (b"Kernel panic - not syncing: Attempted to kill init!\r\n", 134, "panic"),
        (b"echo Kernel panic - not syncing\r\nreboot: Power down\r\n", 0, "poweroff"),
        (b"Kernel panic - not syncing: reboot: System halted\r\n", 0, "poweroff"),
        (b"reboot: Power down\r\n", 139, "crash"),
        (b"Kernel panic - not syncing\r\nreboot: System halted\r\n\r\n", 134, "poweroff"),
        (b"reboot: Restarting system\r\n", 134, "reboot"),
        (b"reboot: System halted\r\nx\r\n", 134, "crash"),
        (b"reboot: System halted\r\nKernel panic - not syncing: x\r\n", 134, "panic"),
        (
            b"reboot: Power down\r\nEXT4-fs error (vda)\r\nKernel panic - not syncing: init!\r\n",
            134,
            "poweroff",
        ),
        (b"EXT4-fs error (device vda)\r\nKernel panic - not syncing\r\n", 134, "panic"),
        (b"hello", 0, "crash"),
    ],
)
def test_ending(text: bytes, code: int, reason: str) -> None:
    assert transcript(text).ending(code) == reason


def test_only_the_first_prompt_counts() -> None:
    made = transcript(b"Debian\r\ndemo login: root\r\ndemo login: ")
    assert made.prompt_time == 0
    assert transcript(b"no prompt").prompt_time is None


def test_the_address_that_the_initramfs_was_given() -> None:
    told = b"p2pcloop: the network card has the address "
    text = told + b"192.168.77.12/24\r\np2pcloop: starts /sbin/init\r\n"
    # Not what a program of the image prints.
    printed = b"x\r\n" + text + told + b"192.168.77.13/24\r\n"
    addresses: list[str] = []
    transcript(printed, addresses)
    assert addresses == ["192.168.77.12"]
    transcript(told + b"a.b.c.d.e/24\r\n" + told + b"192.168.77.1", addresses)
    assert addresses == ["192.168.77.12"]


def test_initramfs_failure() -> None:
    text = b"x\r\np2pcloop: cannot boot: the disk holds nothing\r\nreboot: System halted\r\n"
    assert transcript(text).initramfs_failure() == "the disk holds nothing"
    assert transcript(b"echo p2pcloop: cannot boot: x").initramfs_failure() is None


def test_the_first_login_prompt_is_reported_once() -> None:
    made = Transcript(lambda: 0.0)
    printed = (b"Debian\n", b"host log", b"in: ", b"root\n", b"host login: ")
    assert list(map(made.take, printed)) == [False, False, True, False, False]


def test_tail_is_bounded() -> None:
    made = Transcript(lambda: 0.0)
    made.take(b"x" * 1_000_000)
    assert len(made.tail) == 8192
