"""Which chunks of other layers a publisher refers to."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.client.delta import _Others
from p2pcloop.formats.manifest import Manifest, open_manifest, sign_manifest
from p2pcloop.store.home import Home
from tests.support.shared_layers import SharedLayer, manifest_of

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))


@pytest.mark.parametrize("in_stack", [True, False])
def test_a_table_that_lies_is_not_referred_to(tmp_path: Path, in_stack: bool) -> None:
    """A reader of the new version would find other bytes there than it says."""
    home = Home.at(tmp_path / "home")
    home.create()
    layer = SharedLayer(home.torrents, 0, {0: 1, 1: 2}, size=8)
    layer.store_all()
    unsigned = manifest_of([layer])
    fields = {name: getattr(unsigned, name) for name in unsigned.__slots__}
    manifest = Manifest(**fields | {"key": KEY.public_key().public_bytes_raw()})
    data = sign_manifest(manifest, KEY)
    (home.manifests / open_manifest(data).id.hex()).write_bytes(data)
    pack = bytearray(layer.stored.pack_path.read_bytes())
    pack[layer.chunks[0].offset + 20] ^= 1
    layer.stored.write(b"", pack)
    others = _Others(home, manifest if in_stack else None, None)
    assert others.find(layer.chunks[0].id) is None
    assert others.find(layer.chunks[1].id) == (layer.ref.layer_id, layer.chunks[1])
    others.close()
