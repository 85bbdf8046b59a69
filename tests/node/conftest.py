"""Real nodes: p2pcloopd processes on loopback, each on a home of its own."""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.client.control_client import ControlClient
from p2pcloop.formats.manifest import LayerRef, Manifest, sign_manifest
from p2pcloop.protocol.control import ControlReceiver, Event
from p2pcloop.store.home import Home

STOP_SECONDS = 30
KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


class NodeProcess:
    """One node: its home stays when its p2pcloopd is stopped or killed and started again."""

    def __init__(self) -> None:
        self.home = Home.at(tempfile.mkdtemp(prefix="p2pn"))
        self.home.create()
        self.process: subprocess.Popen[bytes] | None = None

    def launch(self) -> tuple[subprocess.Popen[bytes], bytes]:
        """Start p2pcloopd; return it and what it says when it is ready or has failed."""
        read_end, write_end = os.pipe()
        with open(self.home.root / "log", "ab") as log, open(read_end, "rb") as ready:
            command = [sys.executable, "-P", "-m", "p2pcloopd", "--home", str(self.home.root)]
            process = subprocess.Popen(
                [*command, "--ready-fd", str(write_end)], pass_fds=[write_end], stderr=log
            )
            os.close(write_end)
            return process, ready.read()

    def start(self) -> None:
        self.process, said = self.launch()
        [message] = ControlReceiver().receive(said)
        assert isinstance(message, Event)
        assert message.event == "ready"

    def end(self, number: signal.Signals) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        code = self.process.wait(STOP_SECONDS)
        self.process = None
        return code

    def configure(self, text: str) -> None:
        self.home.config.write_text(text)

    def connect(self) -> ControlClient:
        return ControlClient.connect(self.home)

    def call(self, op: str, **args: Any) -> dict[str, Any]:
        with self.connect() as client:
            return client.call(op, **args)

    def stage(self, files: dict[str, bytes], top: str = "layer") -> Path:
        staging = Path(tempfile.mkdtemp(dir=self.home.tmp))
        for name, data in files.items():
            path = staging / "data" / top / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(data)
        return staging

    def publish(self, data: bytes, label: str = "image", version: int = 1) -> dict[str, Any]:
        """Seed `data` as a layer's pack with a small index; return the answers, merged."""
        files = {"index": b"i" * 4096, "pack": data}
        seeded = self.call("seed", staging=str(self.stage(files)))
        layer = LayerRef(
            layer_id=b"l" * 32,
            torrent=seeded["torrent"],
            index_length=4096,
            header_length=512,
            pack_length=len(data),
            piece_length=seeded["piece_length"],
        )
        key = KEY.public_key().public_bytes_raw()
        manifest = Manifest(key, label, version, 0, 4096, (layer,))
        signed = sign_manifest(manifest, KEY)
        return seeded | self.call("seed_manifest", manifest=signed) | {"manifest": signed}

    def remove(self) -> None:
        try:
            if self.process is not None:
                self.end(signal.SIGKILL)
        finally:
            shutil.rmtree(self.home.root)


class Nodes:
    """Makes nodes and takes all of them down."""

    def __init__(self) -> None:
        self._nodes: list[NodeProcess] = []

    def make(self, config: str = "") -> NodeProcess:
        """A node that does not run yet."""
        node = NodeProcess()
        self._nodes.append(node)
        node.configure(config)
        return node

    def start(self, config: str = "") -> NodeProcess:
        node = self.make(config)
        node.start()
        return node

    def remove(self) -> None:
        for node in self._nodes:
            node.remove()


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    nodes = Nodes()
    try:
        yield nodes
    finally:
        nodes.remove()


@pytest.fixture
def content() -> bytes:
    """Bytes that no piece of repeats."""
    return random.Random(1).randbytes(300_000)
