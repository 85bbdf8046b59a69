"""A boot is recorded, passed on with the image, and brought ahead of the next guest."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.formats.manifest import open_manifest
from p2pcloop.formats.profile import unpack_touches
from tests.support.programs import Guest, Node, Nodes

pytestmark = pytest.mark.e2e


def boot(node: Node, ref: str, report: Path, *options: str | Path) -> dict[str, Any]:
    """Boot to the prompt and shut down; what the report says."""
    with Guest(node, ref, "--report", report, *options) as guest:
        guest.prompt()
        guest.power_off()
    told: dict[str, Any] = json.loads(report.read_text())
    return told


def test_a_recorded_boot_goes_with_the_image_and_ahead_of_guests(
    nodes: Nodes, cloop: Path, tmp_path: Path
) -> None:
    seeder, reader, report = nodes.make(), nodes.make(), tmp_path / "report.json"
    assert json.loads(seeder.run("seed", cloop, "--name", "tiny", "--json").out)["version"] == 1
    recorded = boot(seeder, str(cloop), report)["profile"]  # the file itself: the content counts
    assert recorded["kept"]
    assert recorded["touches"] > 3

    seeded = json.loads(seeder.run("seed", cloop, "--name", "tiny", "--json").out)
    assert (seeded["version"], seeded["profile"]) == (2, True)
    assert json.loads(seeder.run("seed", cloop, "--name", "tiny", "--json").out)["version"] == 2

    told = boot(reader, seeded["link"], report, "--fill", "full")
    ahead = told["block_server"]["prefetched"]
    assert ahead["chunks"] > 3
    assert ahead["unused_bytes"] <= ahead["bytes"]
    assert told["profile"]["kept"]
    [path] = reader.home.manifests.iterdir()
    manifest = open_manifest(path.read_bytes()).manifest
    assert len(unpack_touches(manifest.profile)) == recorded["touches"]


def test_a_boot_without_a_profile_reads_nothing_ahead_and_records_nothing(
    nodes: Nodes, cloop: Path, tmp_path: Path
) -> None:
    node, report = nodes.make(), tmp_path / "report.json"
    told = boot(node, str(cloop), report, "--no-profile")
    assert told["profile"] == {"touches": 0, "blocks": 0, "kept": False}
    assert not list((node.home.root / "profiles").iterdir())
