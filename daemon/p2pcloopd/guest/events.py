"""What the owner of a guest is told while it runs."""

from __future__ import annotations

from collections.abc import Callable

from p2pcloop.frozen import dataclass


def _ignore(*_args: object) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Events:
    """What is called while a guest runs.

    Attributes:
        console: with each piece of the guest's output.
        boot: before each start of the kernel: the first, and those of reboots.
        prompt: at the first login prompt of each boot. Of a guest that runs one command: before it
            runs that.
        address: with the address that a DHCP server gave a guest in one of its boots.
    """

    console: Callable[[bytes], None] = _ignore
    boot: Callable[[], None] = _ignore
    prompt: Callable[[], None] = _ignore
    address: Callable[[str], None] = _ignore
