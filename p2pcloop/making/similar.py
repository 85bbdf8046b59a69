"""Putting similar blocks of a delta next to each other, so that one chunk holds them.

Programs that are linked with one library hold the same code at other offsets, megabytes apart, and
a chunk compresses on its own. This module picks some strings of each stretch of blocks by their
content, at any place in it: those with the least checksums of all that follow certain bytes (a
sketch by min-hash; Broder, On the resemblance and containment of documents, 1997). Stretches that
share a string are put together; all others stay in the order of the device.
"""

from __future__ import annotations

import re
from collections import deque
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from p2pcloop.making.changes import Stretch, checksum
from p2pcloop.units import BLOCK_SIZE

SEGMENT = 4
"""Blocks that stay together: 16 KiB. Git's programs pack to 0.59 so, with 64 KiB to 0.74."""

_STRINGS = [re.compile(rb"(?s)%b.{14}" % pair) for pair in (rb"\x48\x89", rb"\x00\x48", rb"e ")]
"""Pairs of bytes that are frequent, but not too frequent, in x86-64 code and in text. Strings that
follow them are picked; a stretch without them is not grouped. A search for each pair alone is twice
as fast as one with `|`."""

Row = tuple[int, memoryview]
"""Number of the first block, and content, of blocks that stay together."""

_FEATURES = 8
_WAITING = (32 << 20) // BLOCK_SIZE
"""Blocks in the window that is searched. Packs are 2 percent larger with 16 MiB, and not smaller
with 64 MiB."""


@dataclass(slots=True, eq=False)
class _Group:
    features: list[int]
    blocks: int = 0
    stretches: list[Stretch] = field(default_factory=list)


def side_by_side(rows: Iterable[Row], most: int) -> Iterator[Stretch]:
    """Yield stretches of blocks in the order in which they are to be packed.

    Args:
        rows: in the order of the device; taken ahead, up to the window.
        most: blocks of a group at most: those of a chunk.
    """
    by_feature: dict[int, _Group] = {}
    groups: deque[_Group] = deque()
    waiting = 0
    for first, content in rows:
        count = len(content) // BLOCK_SIZE
        features = _features(content)
        found = (by_feature[feature] for feature in features if feature in by_feature)
        group = next((known for known in found if known.blocks + count <= most), None)
        if group is None:
            group = _Group(features)
            groups.append(group)
            by_feature.update(dict.fromkeys(features, group))
        group.stretches.append((first, count))
        group.blocks += count
        waiting += count
        while waiting > _WAITING:
            oldest = groups.popleft()
            waiting -= oldest.blocks
            for feature in oldest.features:
                if by_feature.get(feature) is oldest:
                    del by_feature[feature]
            yield from oldest.stretches
    for group in groups:
        yield from group.stretches


def _features(content: memoryview) -> list[int]:
    strings = (string for pattern in _STRINGS for string in pattern.findall(content))
    return sorted(set(map(checksum, strings)))[:_FEATURES]
