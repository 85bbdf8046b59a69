"""p2pcloopd's log: lines or JSON, at a level that changes while it runs, without secrets."""

from __future__ import annotations

import io
import json
import logging
import signal
import sys
from typing import Any

import pytest

from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.manifest import LayerRef, Manifest, sign_manifest
from p2pcloop.formats.name import format_key
from p2pcloop.formats.seal import key_check
from p2pcloopd.log_output import LogOutput
from tests.support.programs import Node, Nodes
from tests.support.waiting import wait_until

from .conftest import KEY, publish_version

SECRET = bytes(range(100, 132))
TRACKER = "http://user:tr4ckerword@tracker.invalid/PASSKEY/announce?passkey=QUERYWORD"
CONFIG = f"""
log_level = "debug"
log_format = "json"
[discovery]
announce_trackers = ["{TRACKER}"]
"""


def publish_private(node: Node, layer: dict[str, Any]) -> str:
    """A private version; its link, with the secret."""
    ref = LayerRef(b"l" * 32, layer["torrent"], 4096, 512, 300_000, layer["piece_length"])
    key = KEY.public_key().public_bytes_raw()
    manifest = Manifest(key, "mine", 1, 0, 4096, (ref,), key_check=key_check(SECRET))
    signed = sign_manifest(manifest, KEY)
    link: str = node.call("seed_manifest", manifest=signed, secret=SECRET)["link"]
    assert format_key(SECRET) in link
    return link


def test_a_log_in_json_holds_no_secret_and_changes_while_it_runs(
    nodes: Nodes, content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PCLOOP_PASSPHRASE", "pa55phrase")
    node = nodes.start(CONFIG)
    layer = publish_version(node, content)
    node.call("seed_manifest", manifest=layer["manifest"], public=True)
    link = publish_private(node, layer)
    for bad in (link, link.replace("x.manifest=", "x.manifest=00"), f"{TRACKER}{link}"):
        with pytest.raises(P2pcloopError):
            node.call("resolve", ref=bad, nothing=1)
    wait_until(lambda: "tracker.invalid" in node.home.log.read_text())
    node.run("config", "set", "log_format", "lines")
    assert node.json("config", "set", "log_level", "info")["changed"] == ["log_level"]
    node.end(signal.SIGTERM)
    lines = node.home.log.read_text().splitlines()
    messages = [json.loads(line) for line in lines if line.startswith("{")]
    # More may have been told just before the level was changed.
    later = lines[len(messages) :]
    assert not any(line.startswith("{") for line in later)
    assert any(line.endswith(" INFO p2pcloopd: stopping: SIGTERM") for line in later)
    assert {"time", "level", "logger", "message"} == set().union(*messages)
    assert "warning" in {message["level"] for message in messages}
    words = ["tr4ckerword", "PASSKEY", "QUERYWORD", "pa55phrase"]
    for secret in (SECRET, KEY.private_bytes_raw()):
        words += [format_key(secret), secret.hex(), repr(secret)[2:-1]]
    log = node.home.log.read_text()
    assert [word for word in words if word in log] == []


def test_a_level_that_was_given_holds_until_the_setting_changes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    said = io.StringIO()
    monkeypatch.setattr(sys, "stderr", said)
    monkeypatch.setattr(logging.root, "handlers", [])
    monkeypatch.setattr(logging.root, "level", logging.WARNING)
    log = LogOutput("warning")
    log.set_up("debug", "lines")
    logging.getLogger("p").info("not told")
    log.set_up("info", "json")
    logging.getLogger("p").info("told\n%s", "magnet:?xt=0#key=abc")
    try:
        raise ValueError("http://me:word@h/")
    except ValueError:
        logging.getLogger("p").exception("a bug")
    first, second = map(json.loads, said.getvalue().splitlines())
    assert (first["level"], first["message"]) == ("info", "told\nmagnet:?xt=0#key=…")
    assert first["time"].endswith("+00:00")
    assert second["traceback"].endswith("ValueError: http://…@h/")
    log.set_up("info", "lines")
    logging.getLogger("p").warning("a\x1b[2J line")
    assert said.getvalue().endswith(r" WARNING p: a\x1b[2J line" + "\n")
