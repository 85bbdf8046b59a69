"""KNOPPIX's cheatcodes in `boot --append`: what they do to a guest."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.programs import Guest, Nodes

pytestmark = pytest.mark.e2e


def test_toram_brings_all_of_the_image_before_the_boot(nodes: Nodes, cloop: Path) -> None:
    """What is useless here is told, and the words reach the guest's init all the same."""
    seeder, reader = nodes.make(), nodes.make()
    link = seeder.json("seed", cloop)["link"]
    words = "quiet toram lang=de hostname=box home=/dev/sda1"
    with Guest(reader, link, "--append", words) as guest:
        guest.prompt()
        [image] = reader.json("images")["images"]
        assert image["here"] == image["stored"]
        told = guest.sh("cat /proc/cmdline")
        ours = "locale.LANG=de_DE.UTF-8 vconsole.keymap=de systemd.hostname=box"
        assert f"{ours} {words}" in told
        guest.kill()
    assert "home: it names a place on this machine" in guest.said
