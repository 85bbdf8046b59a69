"""Rehearsing the resume of a state: it goes on here once, and what it touches first is recorded.

It is not known before which of a guest's pages it needs to answer: a few of a hundred. Without a
profile, who resumes the state elsewhere first would fetch them one by one, a round trip each. So
the publisher does it first, on this machine, where all of them are. The guest of the rehearsal has
no network, its changes are dropped, and it ends after some seconds.

A console's answer tells little of a guest that is used by a screen, or serves web pages. So the
publisher may give a command that then uses it as its readers will (use.py). So it has its network,
and all that it touches until the command has ended is recorded.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from typing import IO, Any

from p2pcloop.client.hot import HotMaker
from p2pcloop.client.interpreter import module_command
from p2pcloop.client.open_stored import open_stored
from p2pcloop.client.progress import waiting_for
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.use import Use
from p2pcloop.errors import GuestError
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.profile import (
    Profile,
    Touch,
    join_touches,
    merge_touches,
    pack_profile,
    pack_touches,
    unpack_touches,
)
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import forget_profile, keep_profile, load_profile
from p2pcloop.text import printable
from p2pcloop.words import language, tr

TIMES = 2
"""Rehearsals of a state. What is touched depends on time, too: the second one adds a twentieth.
None goes by what another recorded: a page that is pushed before it is touched is not recorded."""

_BEGIN_SECONDS = 60.0
"""How long a guest may take to answer a key. A program that does not answer keys has run meanwhile,
and that counts, too."""

_REST_SECONDS = 1.0
"""After so long without output it has answered; on a busy machine, after as long as its first
output took. What it does later on is not what a reader of the state waits for. But what is missed
is dear: a page then comes with fifteen others, and after a round trip."""

_MOST_SECONDS = 15.0
"""Of a guest that prints without end."""

_WOKEN_SECONDS, _LOOK_SECONDS = 60.0, 0.05
"""How long it may take to be woken, and between looks whether it was."""

_END_SECONDS = 30.0
_GONE_SECONDS = 1.0
"""Within this time after the end of its output a process has ended."""

_KEYS = b"""\rtrue; printf '%s:%d\\n' "$HOME" $?\r"""
"""Enter, and a line for a shell, with what many have: two commands, quotes, a variable, output. At
once, since a pause ends the recording. To another program they are keys, in a copy that is
dropped."""

_MAX_SAID = 1000


def publish_rehearsed(
    publisher: Publisher,
    state: StoredRef,
    message: str,
    *,
    public: bool,
    quiet: bool,
    use: Use | None = None,
) -> dict[str, Any]:
    """Rehearse the newest version of a name, a state, and publish the next one: with a profile, and
    with what that names packed together.

    Args:
        publisher: of that name.
        state: its newest version.
        message: one line about the next one.
        public: announce it as far as the node's settings allow.
        quiet: show no progress.
        use: what is done with the guest meanwhile; None for keys at its console alone.

    Returns:
        As of `Publisher.release`, with `rehearsed`: bytes that were packed once more.

    Raises:
        GuestError: it did not go on, or the command failed.
        P2pcloopError: p2pcloopd could not serve it.
    """
    home, manifest = publisher.home, state.signed.manifest
    touches = pack_touches(rehearsed_touches(manifest, home, use))
    with ExitStack() as stack:
        opened = open_stored(state, home, stack)
        made = HotMaker(publisher, quiet).optimize(opened, touches)
    answer = publisher.release(
        made.content, message=message, parent=made.parent, public=public, secret=state.secret
    )
    return answer | {"rehearsed": made.layer.pack_length}


def rehearsed_touches(manifest: Manifest, home: Home, use: Use | None = None) -> list[Touch]:
    """Rehearse a state some times; return what was touched, and keep it as the state's profile."""
    state, machine = manifest.image_id, manifest.machine
    assert machine is not None, "it is a state"
    known = load_profile(home, state)
    if known is not None and known.key is not None:  # the user was given it
        return unpack_touches(known.touches)
    touches: list[Touch] = []

    def keep() -> None:
        now = int(time.time())
        keep_profile(home, pack_profile(Profile(state, manifest.size, now, pack_touches(touches))))

    found: list[Touch] = []
    try:
        for number in range(1, TIMES + 1):
            keep()  # an empty one: else that of an earlier state would be taken
            with waiting_for(tr("rehearsal {number} of {times}", number=number, times=TIMES)):
                rehearse(str(manifest.name), manifest.version, home, use)
            if (recorded := load_profile(home, state)) is not None:
                found = merge_touches(found, unpack_touches(recorded.touches))
    finally:
        forget_profile(home, state)
    touches += in_packing_order(found, machine)
    keep()
    return touches


def in_packing_order(touches: Sequence[Touch], machine: MachineState) -> list[Touch]:
    """The touches of a state as its blocks should be packed.

    First the devices, and what QEMU reads before the guest goes on, which waits for that. What the
    guest needs to answer is all there once it goes on, so its order is free: that of addresses
    takes a thirtieth fewer bytes than that of time.
    """
    device = machine.device_state.blocks.start

    def placed(touch: Touch) -> Touch:
        return replace(touch, after=0 if touch.start >= device else min(touch.after, 1))

    ordered = sorted(
        (placed(touch) for touch in touches if not touch.is_later),
        key=lambda touch: (touch.start < device, touch.after, touch.start),
    )
    return [*join_touches(ordered), *(touch for touch in touches if touch.is_later)]


def rehearse(name: str, version: int, home: Home, use: Use | None = None) -> None:
    """Resume a state of this node, type something at its console, use it once it rests, and end it;
    the home then has a profile of it.

    Args:
        name: of the state.

    Raises:
        GuestError: it did not go on, or the command failed.
    """
    command = [*module_command("p2pcloop.cli.main"), "resume", name, "--at", str(version)]
    command += ["--home", os.fspath(home.root), *(use.words() if use else ["--wake-late"])]
    with ExitStack() as stack:
        said = stack.enter_context(tempfile.TemporaryFile())
        process = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=said,
            env=os.environ | {"LANGUAGE": language()},  # what it says is told by us
            start_new_session=True,  # a Ctrl-C at our terminal is for us
        )
        stack.callback(_end, process)
        # Its input stays open: at the end of it the guest would be shut down.
        goes_on = _press_keys(process)
        if use is not None:
            # Not before it rests: else what wakes it would be recorded in part.
            goes_on = use.run(process, _end_of)
        elif goes_on:
            _wait_until_woken(process, said)
        if not goes_on:
            with suppress(subprocess.TimeoutExpired):
                code = process.wait(_GONE_SECONDS)
                raise GuestError(
                    tr("it does not go on here ({code}): {said}", code=code, said=_end_of(said))
                )


def _press_keys(process: subprocess.Popen[bytes]) -> bool:
    """Press keys at a guest's console, and wait until it rests; return whether it has answered."""
    assert process.stdin is not None
    assert process.stdout is not None
    with suppress(BrokenPipeError):  # it has ended already
        os.write(process.stdin.fileno(), _KEYS)
    return _wait_for_rest(process.stdout)


def _wait_for_rest(output: IO[bytes]) -> bool:
    """Return when nothing has been printed for a while, or the guest has ended.

    Returns:
        Whether anything was printed.
    """
    begun = time.monotonic()
    wait, end = _BEGIN_SECONDS, begun + _BEGIN_SECONDS
    has_answered = False
    while (left := min(wait, end - time.monotonic())) > 0:
        readable, _, _ = select.select([output], [], [], left)
        if not readable or not os.read(output.fileno(), 1 << 16):
            break
        if not has_answered:
            has_answered, now = True, time.monotonic()
            wait = max(_REST_SECONDS, now - begun)
            end = now + max(_MOST_SECONDS, 2 * wait)
    return has_answered


def _wait_until_woken(process: subprocess.Popen[bytes], said: IO[bytes]) -> None:
    """Return when a guest that has answered was told that it was resumed, and rests again. Its
    process says so."""
    end = time.monotonic() + _WOKEN_SECONDS
    while process.poll() is None and time.monotonic() < end:
        if os.fstat(said.fileno()).st_size:
            time.sleep(_REST_SECONDS)
            return
        time.sleep(_LOOK_SECONDS)


def _end(process: subprocess.Popen[bytes]) -> None:
    """End the guest at once; its profile is kept by its process, which ends then."""
    # The first signal asks it to shut down. Two of a kind that come at once would be one.
    for number in (signal.SIGTERM, signal.SIGINT):
        process.send_signal(number)
    try:
        process.communicate(timeout=_END_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()


def _end_of(said: IO[bytes]) -> str:
    said.seek(0)
    return printable(said.read()[-_MAX_SAID:].decode(errors="replace").strip()) or tr(
        "it said nothing"
    )
