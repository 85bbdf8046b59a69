"""What `p2pcloop profile show` tells."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Any

from p2pcloop.cli.profiles import FoundProfile
from p2pcloop.formats.name import format_key
from p2pcloop.formats.profile import unpack_touches
from p2pcloop.units import BLOCK_SIZE, format_size


def profile_facts(name: str, found: FoundProfile) -> dict[str, Any]:
    """The facts of a profile (docs/commands.md).

    Args:
        name: of the image or file that was asked for.
        found: its profile.
    """
    profile, of = found.profile, found.of
    touches = unpack_touches(profile.touches)
    blocks = sum(touch.count for touch in touches)
    return {
        "name": name,
        "origin": found.origin,
        "key": None if profile.key is None else format_key(profile.key),
        "of": None if of is None else {"name": str(of.name), "version": of.version},
        "image_id": profile.image_id,
        "size": profile.size,
        "created": profile.created,
        "touches": len(touches),
        "blocks": blocks,
        "bytes": blocks * BLOCK_SIZE,
        "seconds": touches[-1].after / 1000 if touches else 0.0,
        "fetched": None,
    }


def profile_lines(facts: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """The facts for people."""
    yield (
        "profile",
        {
            "recorded": "recorded here, by a boot",
            "kept": f"attached here, signed by @{facts['key']}",
            "attached": f"attached by the publisher, @{facts['key']}",
            "file": f"in a file, signed by @{facts['key']}"
            if facts["key"]
            else "in a file, not signed",
        }[facts["origin"]],
    )
    of = facts["of"]
    if of is None:
        yield "of", facts["name"] if facts["origin"] != "file" else facts["image_id"].hex()
    else:
        yield "of", f"{of['name']}, version {of['version']}, which it was made from"
    yield "created", datetime.fromtimestamp(facts["created"], UTC).isoformat(sep=" ")
    yield (
        "reads",
        (
            f"{format_size(facts['bytes'])} in {facts['blocks']} blocks of 4 KiB,"
            f" {facts['touches']} touches, within {facts['seconds']:.1f} s"
        ),
    )
    if facts["fetched"] is not None:
        yield "fetches", f"{format_size(facts['fetched'])}, the compressed chunks of these"
