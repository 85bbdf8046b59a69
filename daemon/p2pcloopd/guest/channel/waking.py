"""What a guest does first once it was resumed: its clock, its network, its random numbers.

A resumed guest goes on as if nothing had been: its clock stands at the time of its suspend, its
network card has the address that it had there, and its connections lead nowhere. The agent mends
what can be mended: by itself (`wake` of resources/agent.sh), and the card by resources/wake.sh. Its
kernel begins its random numbers anew by itself, by the device vmgenid, as soon as it runs.

What wakes a guest is what it does first. So it is done without a command as `exec` runs one: its
three ports had udev and systemd look at them, and its dozen processes took half of all pages that a
resume fetched before a shell answered.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Awaitable, Callable

import trio

from p2pcloop.errors import GuestError, P2pcloopError
from p2pcloop.frozen import dataclass
from p2pcloop.units import format_duration
from p2pcloop.words import tr, tr_n
from p2pcloopd.entry import plain_errors
from p2pcloopd.guest.channel.channel import Channel
from p2pcloopd.guest.system.addresses import Addresses
from p2pcloopd.guest.system.scripts import script

PATIENCE = 30.0
"""Seconds after which the user is told that the agent has not answered yet."""

ANSWER_SECONDS = 180.0
"""How long an agent may take to answer, whose memory may come over a slow line."""

_SEED_SIZE = 64
_MAX_COUNT = 1 << 40

_LEFT = tr(
    "set its clock (`date -s`), and renew its network's addresses; keys and tokens that it made"
    " before are those of everybody who resumes this state"
)


@dataclass(frozen=True, slots=True)
class WokenCard:
    """The network card that a resumed guest has now.

    Attributes:
        interface: its name in the guest.
        mac: as text; "" for the one that it has.
        mtu: bytes of its longest IP packet.
        addresses: what it gets; None leaves that to a DHCP client of the image.
    """

    interface: str
    mac: str
    mtu: int
    addresses: Addresses | None

    def words(self) -> list[bytes]:
        """The arguments of wake.sh."""
        words = [self.interface, self.mac, "", "", "", str(self.mtu)]
        if (wire := self.addresses) is not None:
            words[2:5] = [f"{wire.guest}/{wire.prefix_length}", wire.gateway, wire.nameserver]
        return [word.encode() for word in words]


@dataclass(frozen=True, slots=True)
class Waking:
    """What a resumed guest is told.

    Attributes:
        suspended: when it stopped, in seconds of Unix time.
        card: its network card; None where it has none, or that leads nowhere.
        host_name: "" for the one that it has.
        late: whether it is told after its answer even if nothing of its memory has to come.
        due: returns when it is to be told; commands wait until then.
        found: given what the agent found, once all is done.
    """

    suspended: float
    card: WokenCard | None = None
    host_name: str = ""
    late: bool = False
    due: Callable[[], Awaitable[None]] = trio.lowlevel.checkpoint
    found: Callable[[Woken], None] = lambda _: None


@dataclass(frozen=True, slots=True)
class Woken:
    """What the agent found.

    Attributes:
        behind: by how many seconds the clock was stepped; None if it said nothing.
        reseeds: whether the kernel has begun its random numbers anew by itself.
        connections: TCP connections that lead nowhere.
    """

    behind: int | None
    reseeds: bool
    connections: int

    @classmethod
    def read(cls, said: bytes) -> Woken:
        """Read what the agent answers; of one that says something else, what there is."""
        behind, reseeds, connections, *_ = *said.split(), b"", b"", b""
        return cls(_number(behind), reseeds == b"yes", _number(connections) or 0)


async def wake_up(
    channel: Channel,
    waking: Waking,
    say: Callable[[str], None],
    clock: Callable[[], float] = time.time,
) -> None:
    """Wake a guest that was resumed and runs; tell its user how that went.

    Args:
        channel: to its agent.
        waking: what it is told.
        say: called with sentences without their subject, the guest.
        clock: seconds of Unix time.
    """
    channel.hold()
    try:
        await waking.due()
        await _wake_up(channel, waking, say, clock)
    finally:
        channel.release()


async def _wake_up(
    channel: Channel, waking: Waking, say: Callable[[str], None], clock: Callable[[], float]
) -> None:
    ago = format_duration(max(0.0, clock() - waking.suspended))
    goes_on = tr("goes on where it was suspended {ago} ago", ago=ago)
    if channel.is_missing:
        say(tr("{goes_on}. It has no agent of p2pcloop: {left}", goes_on=goes_on, left=_LEFT))
        return
    try:
        with trio.move_on_after(PATIENCE) as waiting:
            await channel.wait_open()
        if waiting.cancelled_caught:
            say(
                tr(
                    "{goes_on}. Its agent has not answered yet: until it does, its clock is wrong",
                    goes_on=goes_on,
                )
            )
            await channel.wait_open()
        woken = await _run(channel, waking, clock)
    except P2pcloopError as err:
        say(
            tr(
                "{goes_on}, and could not be woken ({err}): {left}",
                goes_on=goes_on,
                err=err,
                left=_LEFT,
            )
        )
        return
    for sentence in _told(goes_on, woken):
        say(sentence)


def _told(goes_on: str, woken: Woken) -> list[str]:
    if woken.behind is None:
        return [tr("{goes_on}, and its agent did not do all: {left}", goes_on=goes_on, left=_LEFT)]
    told = [tr("{goes_on}; its clock was set", goes_on=goes_on)]
    if woken.connections:
        told.append(
            tr_n(
                "has {count} TCP connection of before, which lead nowhere now",
                "has {count} TCP connections of before, which lead nowhere now",
                woken.connections,
            )
        )
    if not woken.reseeds:
        told.append(
            tr(
                "has a kernel that does not know that it was resumed (no vmgenid: Linux 5.18 has"
                " it): for up to a minute its random numbers may be those of others who resume"
                " this state"
            )
        )
    return told


async def _run(channel: Channel, waking: Waking, clock: Callable[[], float]) -> Woken:
    seed = os.urandom(_SEED_SIZE)
    said = b""

    def begin() -> int:
        channel.release()  # what commands have to say is behind this
        return int(clock())

    with trio.move_on_after(ANSWER_SECONDS) as answering:
        said = await channel.tell_woken(begin, 1, seed, waking.host_name)
    if answering.cancelled_caught:  # one of before may not know the word
        raise GuestError(
            tr(
                "its agent has not answered within {answer_seconds:g} s",
                answer_seconds=ANSWER_SECONDS,
            )
        )
    with plain_errors():
        async with trio.open_nursery() as nursery:
            if waking.card is not None:
                nursery.start_soon(_set_card, channel, waking.card)
            # Once more at the beginning of a second: busybox sets clocks to whole seconds.
            now = clock()
            await trio.sleep(math.floor(now) + 1 - now)
            await channel.tell_woken(lambda: round(clock()), 0, b"", "")
    woken = Woken.read(said)
    waking.found(woken)
    return woken


async def _set_card(channel: Channel, card: WokenCard) -> None:
    words = [script("wake").encode(), b"wake", *card.words()]
    async with channel.command(words, tools=True) as command:
        command.end_input()
        for output in (command.stdout, command.stderr):
            output.drop()
        await command.finish()


def _number(text: bytes) -> int | None:
    digits = text.removeprefix(b"-")
    if not digits.isdigit() or not digits.isascii() or len(digits) > len(str(_MAX_COUNT)):
        return None
    return int(text)
