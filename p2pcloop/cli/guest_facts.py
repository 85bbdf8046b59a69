"""What `ps` and `status` tell of a guest."""

from __future__ import annotations

import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from p2pcloop.cli.completion import SHOWN_KEY
from p2pcloop.store.guests import GuestState
from p2pcloop.text import printable
from p2pcloop.units import format_duration
from p2pcloop.words import tr

_ENDINGS = {"poweroff": tr("shut down"), "reboot": tr("shut down")}
"""Ctrl-Alt-Del makes an image's init reboot: that is how a guest is shut down from outside."""


def guest_facts(guest: GuestState) -> dict[str, Any]:
    """A guest, as `ps --json` and `status --json` tell it (docs/commands.md)."""
    record = guest.record
    facts = asdict(record)
    for key in ("process_start", "words", "directory", "state", "state_version"):
        del facts[key]
    suspended = {"name": record.state, "version": record.state_version}
    ended = record.ended
    up = (time.time() if ended is None else ended) - record.started
    return facts | {
        "suspended_as": None if record.state is None else suspended,
        "state": guest.state,
        "up": None if guest.state in ("lost", "damaged") else up,
        "fetched": guest.fetched,
        "waiting": None if guest.waiting is None else guest.waiting.what,
        "waiting_since": None if guest.waiting is None else guest.waiting.since,
    }


def short_name(place: str) -> str:
    """The name of a file; or the name of an image, which a command takes with so much of its key
    unless two keys begin with that."""
    if place.startswith("@"):
        key, _, label = place.partition("/")
        return f"{key[: SHOWN_KEY + 1]}/{label}"
    return Path(place).name or place


def describe_state(facts: dict[str, Any]) -> str:
    """How long a guest is up and what it waits for, or how it ended; of `guest_facts`."""
    match facts["state"]:
        case "lost":
            return tr("its process was killed")
        case "damaged":
            return printable(facts["error"])
        case "ended":
            why = f": {printable(facts['error'])}" if facts["error"] else ""
            ago = format_duration(time.time() - facts["ended"])
            if facts["reason"] == "suspended":
                return tr("suspended {ago} ago", ago=ago)
            if facts["reason"] == "moved":
                return tr("moved to {host} {ago} ago", host=printable(facts["host"]), ago=ago)
            how = _ENDINGS.get(facts["reason"], facts["reason"])
            return tr(
                "{how} ({exit_code}) {ago} ago{why}",
                how=how,
                exit_code=facts["exit_code"],
                ago=ago,
                why=why,
            )
    up = tr("up {up}", up=format_duration(facts["up"]))
    if facts["display"] is not None:
        up += tr(", display {what}", what=printable(str(facts["display"].get("address"))))
    if facts["waiting"] is None:
        return up
    return tr(
        "{up}, waits {time}: {waiting}",
        up=up,
        time=format_duration(time.time() - facts["waiting_since"]),
        waiting=facts["waiting"],
    )
