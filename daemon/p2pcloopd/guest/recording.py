"""A boot's profile: what the guest read until it was up, kept for the next boot.

A guest is up at its prompt. One with a display goes on, since its desktop starts beside the login:
it is up once it rests, that is, at its first pause in reading after the prompt.

A guest that is resumed goes on at once: it is up at its first short pause. Pages of its memory that
its profile named were pushed, so they are not read: what is recorded is added to that profile.
What its machine read before it went on has the time 0. What it touched after its first answer is
marked (`LATER`): who waits for its answer does not wait for that, and it is woken only once that is
here. A kernel that does not begin its random numbers anew by itself must be woken at once: then all
belongs to its answer. One that is rehearsed with a command is ended when that is done: all until
then belongs to its answer, too.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence
from typing import Any

from p2pcloop.errors import StorageError
from p2pcloop.formats.profile import (
    LATER,
    Profile,
    Touch,
    by_address,
    merge_touches,
    pack_profile,
    pack_touches,
)
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import keep_profile, load_profile
from p2pcloopd.guest.report import Outcome

_REST_SECONDS = 4.0
"""A guest that reads nothing new for so long rests. An XFce that starts on a busy machine was seen
to pause for at most 1.5 s."""

_RESUMED_REST_SECONDS = 1.0
"""As above, of a guest that was resumed: all that it needs to answer is read within half a second,
and what is missing takes a round trip of the line."""

_SILENCE_SECONDS = 0.9
"""A guest that says nothing for so long has answered. A rehearsal ends it after a second of it, and
what it says then is no answer."""

_log = logging.getLogger(__name__)


def keep_recording(
    home: Home,
    size: int,
    outcome: Outcome,
    *,
    fresh: bool,
    display: bool = False,
    known: Sequence[Touch] | None = None,
    whole: bool = False,
) -> dict[str, Any]:
    """Keep what a boot read first as the profile of its image, and take it out of the report.

    A signed profile that the user was given is never replaced. Nor is any profile if this boot was
    not `fresh`: its overlay already held blocks, and a boot without the overlay reads more.

    Args:
        size: bytes of the image's device.
        outcome: of the boot; the touches are taken out of the block server's report.
        fresh: whether its overlay held nothing when it began.
        display: whether it had a display.
        known: the profile by which a guest was resumed; None for one that booted.
        whole: whether all that a resumed guest touched until its end counts.

    Returns:
        For the report: `touches`, `blocks`, and whether it was `kept`.
    """
    image_id, found = outcome.block.pop("image_id", b""), outcome.block.pop("touches", [])
    touches = boot_touches(found, outcome, display=display, resumed=known is not None, whole=whole)
    if not touches:
        return {"touches": 0, "blocks": 0, "kept": False}
    touches = merge_touches(known or (), touches)
    if whole:
        touches = by_address(touches)
    own = load_profile(home, image_id)
    kept = own is None or (own.key is None and fresh)
    if kept:
        profile = Profile(image_id, size, int(time.time()), pack_touches(touches))
        try:
            keep_profile(home, pack_profile(profile))
        except StorageError as err:  # the guest's data is safe, and the next boot records again
            _log.warning("the profile of this boot is not kept: %s", err)
            kept = False
    return {"touches": len(touches), "blocks": sum(t.count for t in touches), "kept": kept}


def boot_touches(
    found: Sequence[Sequence[Any]],
    outcome: Outcome,
    *,
    display: bool = False,
    resumed: bool = False,
    whole: bool = False,
) -> list[Touch]:
    """Return the touches until the guest was up, or all of them if there was no prompt.

    Later reads depend on the user: after a script that shuts the guest down at its prompt, the next
    boot would prefetch all that a shutdown reads.

    Args:
        found: first block, blocks, and monotonic seconds of each touch, in order of time.
        outcome: when the guest began, and how long its boot took.
        display: whether it had a display.
        resumed: whether it was resumed, and not booted.
        whole: whether all that a resumed guest touched until its end counts.
    """
    if not found:
        return []
    times = [at for _, _, at in found]
    begun = went_on = times[0]
    answered = end = float("inf")
    if resumed:
        # Its machine reads something before, and then waits for what the guest needs.
        went_on = outcome.went_on or begun
        if not whole:
            # What wakes it is told after its answer, and may wait for bytes: that pause is no rest.
            end = _rests_at(times, max(went_on, outcome.woken or 0), _RESUMED_REST_SECONDS)
            said = [at for at in outcome.said if at <= end + _RESUMED_REST_SECONDS]
            if outcome.reseeds:
                answered = _rests_at(said, said[0], _SILENCE_SECONDS) if said else end
    elif outcome.begun is not None and outcome.guest and outcome.guest.boot_seconds is not None:
        end = outcome.begun + outcome.guest.boot_seconds
        if display:
            end = _rests_at(times, end, _REST_SECONDS)

    def after(at: float) -> int:
        if resumed and at < went_on:
            return 0
        return int((at - begun) * 1000) + (LATER if at > answered else 0)

    return [Touch(start, count, after(at)) for start, count, at in found if at <= end]


def _rests_at(times: Sequence[float], start: float, pause: float) -> float:
    """When a guest made the last touch before its first pause of `pause` seconds after `start`."""
    last = start
    for at in times:
        if at > last + pause:
            break
        last = max(last, at)
    return last
