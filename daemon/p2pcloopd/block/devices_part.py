"""Hands over what QEMU wrote of a resumed guest's devices, as soon as it is here.

The block server reads it, and not the command that runs the guest: so the image is opened once, the
devices are the first thing that the prefetch brings, and the guest's machine starts meanwhile.
"""

from __future__ import annotations

import os

import trio

from p2pcloop.image.api import BlockDevice, Missing
from p2pcloopd.block.arrivals import STALL_SECONDS, Arrivals
from p2pcloopd.block.backend import Supplying
from p2pcloopd.block.spec import DevicesPart


async def hand_over(
    device: BlockDevice, supplying: Supplying, devices: DevicesPart, arrivals: Arrivals
) -> None:
    """Write the part into its file, once it is here.

    Args:
        device: with the part; its reads are not recorded as the guest's.
        supplying: fetches what does not come with the prefetch.
        arrivals: of the prefetch, which begins with this part.

    Raises:
        P2pcloopError: the part is damaged, or cannot be fetched.
    """
    part = devices.part
    content = memoryview(bytearray(part.size))
    while True:
        try:
            device.read_into(part.start, (content,))
        except Missing as missing:
            # A read that waits tells the user so; a prefetch does not.
            with trio.move_on_after(0 if arrivals.first_ended else STALL_SECONDS) as stalled:
                await arrivals.news()
            if stalled.cancelled_caught:
                await supplying.supply(missing)
        else:
            os.pwrite(devices.file, content[: part.length], 0)
            return
