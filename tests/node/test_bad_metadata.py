"""Metadata from a mirror that has the right hash, and is none: the publisher made it so."""

from __future__ import annotations

import hashlib
import signal
from dataclasses import replace
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.manifest import LayerRef, Manifest, sign_manifest
from p2pcloop.formats.mirror import ManifestPath, MetainfoPath, build_metainfo
from p2pcloopd.engine.disk.metainfo import bencode
from tests.support.programs import Nodes
from tests.support.static_server import misbehaving

from .conftest import KEY

GOOD = bencode({b"name": b"a", b"piece length": 16384, b"pieces": b"x" * 20, b"length": 5})


@pytest.mark.parametrize(
    "info",
    [b"nonsense", b"", b"d", b"l" * 300 + b"e" * 300, GOOD + b"junk", GOOD + b"3:abci1e", b"i5e"],
    ids=["text", "empty", "cut", "deep", "longer", "second-key", "number"],
)
def test_it_is_an_error_and_p2pcloopd_goes_on(nodes: Nodes, info: bytes, tmp_path: Path) -> None:
    publisher, reader = nodes.start(), nodes.start()
    torrent = hashlib.sha1(info, usedforsecurity=False).digest()
    layer = LayerRef(b"l" * 32, torrent, 4096, 512, 8192, 16384)
    key = KEY.public_key().public_bytes_raw()
    data = sign_manifest(Manifest(key, "image", 1, 0, 4096, (layer,)), KEY)
    publisher.call("add", torrent=torrent, peers=[], trackers=[], web_seeds=[])
    answer = publisher.call("seed_manifest", manifest=data)
    for path, content in (
        (ManifestPath(answer["id"]), data),
        (MetainfoPath(torrent), build_metainfo(info)),
    ):
        where = tmp_path / str(path)
        where.parent.mkdir()
        where.write_bytes(content)
    with misbehaving(tmp_path) as web:
        link = replace(parse_link(answer["link"]), mirrors=(web.url,), peers=())
        reader.call("resolve", ref=str(link))
        for _ in range(2):
            with pytest.raises(FormatError):
                reader.call("read", torrent=torrent, offset=0, length=5, heal=True)
            reader.end(signal.SIGKILL)
            reader.start()
