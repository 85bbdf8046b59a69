"""`p2pcloop migrate`: a guest moves to another node, and back; ssh is played by a script."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.support.boot_disks import stock_kernel
from tests.support.programs import EXEC, GUEST_OPTIONS, P2PCLOOP, Node, Nodes

pytestmark = pytest.mark.e2e


@pytest.fixture
def ssh(tmp_path: Path) -> Path:
    """Runs commands at nodes of this machine, whose names are the paths of their homes."""
    script = tmp_path / "ssh"
    script.write_text(
        "#!/bin/sh\n"
        f'export PATH={P2PCLOOP.parent}:$PATH P2PCLOOP_HOME="$1"\n'
        f'echo "$2" >>{tmp_path}/told\n'
        'exec sh -c "$2"\n'
    )
    script.chmod(0o755)
    return script


def note(node: Node) -> str:
    return node.run(*EXEC, "g1", "--", "cat", "/dev/note").out


def test_a_guest_moves_and_comes_back(cloop: Path, nodes: Nodes, ssh: Path) -> None:
    stock_kernel()
    here, there = nodes.make(), nodes.make()
    here.seed(cloop, "tiny")
    here.run("boot", "tiny", "--vm", "qemu", *GUEST_OPTIONS, "--name", "g1", "--detach")
    here.run(*EXEC, "g1", "--", "sh", "-c", "echo moves >/dev/note")
    gone = here.json("migrate", "g1", there.root, "--ssh", ssh)
    assert (gone["guest"], gone["host"], gone["version"]) == ("g1", str(there.root), 2)
    assert here.json("ps")["guests"] == []
    for command in ("start", "resume"):
        refused = here.run(command, "g1", code=2).err
        assert "goes on at" in refused, "else it would be there twice"
    assert "moved to" in here.run("ps", "--all").out
    assert note(there) == "moves\n"
    there.run(*EXEC, "g1", "--", "sh", "-c", "echo comes back >/dev/note")
    back = there.json("migrate", "g1", here.root, "--ssh", ssh)
    assert back["base"] == gone["name"], "only what it has changed there"
    assert there.json("ps")["guests"] == []
    assert note(here) == "comes back\n"
    told = ssh.with_name("told").read_text()
    assert "magnet" not in told, "words of commands can be listed by all users"
    here.run("stop", "g1", "--time", "0")


def test_a_host_that_does_nothing_is_told_before_the_guest_stops(
    nodes: Nodes, tmp_path: Path
) -> None:
    node = nodes.make()
    script = tmp_path / "ssh"
    for body, code, why in (("exit 127", 12, "has no"), ("exit 255", 12, "exit code 255")):
        script.write_text(f"#!/bin/sh\n{body}\n")
        script.chmod(0o755)
        assert why in node.run("migrate", "g1", "host", "--ssh", script, code=code).err
    nothing = node.run("migrate", "g1", "host", "--ssh", os.fspath(tmp_path / "none"), code=2)
    assert "cannot run" in nothing.err
