"""What tests of nodes share: a key, content, and a layer of it that a node seeds."""

from __future__ import annotations

import random
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.formats.manifest import LayerRef, Manifest, sign_manifest
from tests.support.programs import Node

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


def publish_version(node: Node, data: bytes, version: int = 1) -> dict[str, Any]:
    """Seed `data` as a layer's pack with a small index; return the answers, merged."""
    files = {"index": b"i" * 4096, "pack": data}
    seeded = node.call("seed", staging=str(node.stage(files)))
    layer = LayerRef(
        layer_id=b"l" * 32,
        torrent=seeded["torrent"],
        index_length=4096,
        header_length=512,
        pack_length=len(data),
        piece_length=seeded["piece_length"],
    )
    key = KEY.public_key().public_bytes_raw()
    manifest = Manifest(key, "image", version, 0, 4096, (layer,))
    signed = sign_manifest(manifest, KEY)
    return seeded | node.call("seed_manifest", manifest=signed) | {"manifest": signed}


@pytest.fixture
def content() -> bytes:
    """Bytes that no piece of repeats."""
    return random.Random(1).randbytes(300_000)
