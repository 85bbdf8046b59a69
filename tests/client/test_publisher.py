"""What is not published, since no reader would open it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.publisher import Content, Publisher
from p2pcloop.errors import FormatError, UsageError
from p2pcloop.formats.index import MAX_HEADER_SIZE
from p2pcloop.formats.manifest import LayerRef, Manifest
from p2pcloop.formats.name import Name
from p2pcloop.formats.seal import key_check
from p2pcloop.image.api import Missing
from p2pcloop.image.stored import MAX_HEADERS_SIZE, StoredImage
from p2pcloop.store.home import Home
from tests.support.shared_layers import SECRET, SharedLayer

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAME = Name(KEY.public_key().public_bytes_raw(), "image")


class ServedError(Exception):
    """It was signed, and is about to be served."""


class Node:
    """Serves nothing."""

    def call(self, *_: object, **__: object) -> object:
        raise ServedError


def layers_of(tmp_path: Path, *header_lengths: int) -> tuple[LayerRef, ...]:
    ref = SharedLayer(tmp_path, 0, {0: 1}, size=8).ref
    return tuple(
        replace(
            ref,
            layer_id=bytes([n]) * 32,
            torrent=bytes([n]) * 20,
            header_length=length,
            index_length=2 * length,
        )
        for n, length in enumerate(header_lengths)
    )


@pytest.mark.parametrize("over", [0, 1])
@pytest.mark.parametrize("secret", [None, SECRET])
def test_headers_that_no_reader_loads_are_refused(
    tmp_path: Path, over: int, secret: bytes | None
) -> None:
    """Of a private image the headers of its sources count, too: by the same count as readers'."""
    home = Home.at(tmp_path / "home")
    home.create()
    last = MAX_HEADERS_SIZE - MAX_HEADER_SIZE + over
    *layers, source = layers_of(tmp_path, MAX_HEADER_SIZE, last - bool(secret) * 500, 500)
    content = Content(8 * 4096, tuple(layers), (source,))
    client = cast("ControlClient", Node())
    publisher = Publisher(home, client, KEY, NAME, None)
    size = MAX_HEADERS_SIZE + over
    with (
        pytest.raises(
            UsageError, match=f"{size} bytes in all, over the limit of {MAX_HEADERS_SIZE}"
        )
        if over
        else pytest.raises(ServedError)
    ):
        publisher.release(content, secret=secret)
    check = None if secret is None else key_check(secret)
    manifest = Manifest(
        NAME.key, NAME.label, 1, 0, content.size, content.layers, sources=(source,), key_check=check
    )
    with pytest.raises(FormatError if over else Missing):
        StoredImage(manifest, home.torrents, secret).open()
