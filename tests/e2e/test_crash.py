"""A guest and its block server are killed in the midst of writes: what was synced stays."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.support.programs import Guest, Nodes, tool
from tests.support.waiting import BOUND

pytestmark = pytest.mark.e2e

WRITER = (
    "mkdir $d; i=0; while [ $i -lt 1000 ]; do i=$((i + 1)); "
    "dd if=/dev/urandom of=$d/$i bs=1000 count=$((i % 30)) conv=fsync 2>/dev/null && "
    'echo "synced $(md5sum $d/$i)"; done'
)
"""Each file is told of once it is synced, and with it, as ext4 does it, its name."""

SYNCED = re.compile(r"^synced ([0-9a-f]{32})  (/root/\S+)\r*\n", re.MULTILINE)


def test_what_was_synced_outlives_the_kill(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    node = nodes.make()
    overlay = tmp_path / "mine.delta"
    synced: dict[str, str] = {}
    for life in range(2):
        with Guest(node, cloop, "--overlay", overlay) as guest:
            guest.prompt()
            guest.send_line(f"d=/root/{life}; {WRITER}")
            for _ in range(12):
                guest.expect(r"\nsynced \w+  \S+", BOUND)
            guest.kill()
            found = SYNCED.findall(guest.printed)
        assert len(found) >= 12
        synced |= {path: digest for digest, path in found}

    with Guest(node, cloop, "--overlay", overlay) as guest:
        guest.prompt()  # the guest's own kernel has replayed the journal
        sums = guest.sh("md5sum /root/*/*")
        guest.power_off()
    there = {path: digest for digest, path in map(str.split, sums.splitlines())}
    assert synced == {path: there.get(path) for path in synced}
    merged = nodes.directory / "merged.img"
    node.run("export", cloop, merged, "--overlay", overlay)
    tool("e2fsck", "-fn", merged)
