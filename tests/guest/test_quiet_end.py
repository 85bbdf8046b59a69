"""What a kernel prints after its final message reaches no terminal, if the guest ends well."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pcloopd.guest.quiet_end import HELD_SECONDS, QuietEnd

FINAL = b"[    5.123456] reboot: Power down\r\n"
NOISE = b"Aborting journal on device vda-8.\r\nI/O error, dev vda, sector 0\r\n"


class Shown:
    def __init__(self) -> None:
        self.data = b""

    async def write(self, data: bytes) -> None:
        self.data += data


@pytest.mark.parametrize(
    "final", [FINAL, b"reboot: Restarting system\n", b"[ 9.1] reboot: System halted\r\r\n"]
)
@pytest.mark.parametrize("size", [1, 7, 1000])
async def test_what_follows_the_final_message_is_dropped_if_the_end_was_good(
    final: bytes, size: int
) -> None:
    for is_good in (True, False):
        shown = Shown()
        end = QuietEnd(shown)
        data = b"unmounting\r\n" + final + NOISE
        for begin in range(0, len(data), size):
            await end.write(data[begin : begin + size])
        assert shown.data == b"unmounting\r\n" + final
        end.is_good = is_good
        await end.end()
        assert shown.data == (data if not is_good else b"unmounting\r\n" + final)


async def test_a_program_that_prints_such_a_line_is_shown(autojump_clock: MockClock) -> None:
    shown = Shown()
    end = QuietEnd(shown)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(end.run)
        for _ in range(2):
            shown.data = b""
            await end.write(FINAL + b"vm# ")
            assert shown.data == FINAL
            await trio.sleep(HELD_SECONDS + 0.1)
            assert shown.data == FINAL + b"vm# "
            await end.write(b"more")
            assert shown.data.endswith(b"more")
        nursery.cancel_scope.cancel()
    assert autojump_clock.current_time() > 0


async def test_much_is_not_held_back() -> None:
    shown = Shown()
    end = QuietEnd(shown)
    await end.write(FINAL)
    for _ in range(20):
        await end.write(bytes(1000))
    assert shown.data.startswith(FINAL + bytes(16_000))


async def test_other_lines_are_none() -> None:
    shown = Shown()
    end = QuietEnd(shown)
    text = b"the kernel says: reboot: Power down\r\nreboot: Power downer\r\nvm# "
    await end.write(text)
    assert shown.data == text
