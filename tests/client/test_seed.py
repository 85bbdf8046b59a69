"""Whether a file is seeded is decided before p2pcloopd gets its layer."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest

from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.publisher import Publisher
from p2pcloop.client.seed import seed_image
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import UsageError
from p2pcloop.formats.boot_parameters import BootParameters
from p2pcloop.formats.manifest import Manifest, open_manifest, sign_manifest
from p2pcloop.making.local import inspect_file
from p2pcloop.making.pack import write_layer
from p2pcloop.store.home import Home
from p2pcloop.store.removed import mark_removed
from p2pcloop.store.sources import remember_source
from tests.support.shared_layers import SharedLayer

from .test_publisher import KEY, NAME, Node, ServedError


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image"
    path.write_bytes(bytes(range(256)) * 128)
    return path


@pytest.fixture
def publisher(image: Path, tmp_path: Path) -> Publisher:
    """The newest version lies on the image, with a layer on top."""
    home = Home.at(tmp_path / "home")
    home.create()
    with home.staging() as staging:
        header, _ = write_layer(inspect_file(image, raw=True), staging, lambda *_: None)
    lower, upper = (SharedLayer(tmp_path, n, {0: 1}, size=8).ref for n in range(2))
    layers = replace(lower, layer_id=header.layer_id), upper
    manifest = Manifest(NAME.key, NAME.label, 1, 0, 8 * 4096, layers, BootParameters("", "splash"))
    client = cast("ControlClient", Node())
    signed = open_manifest(sign_manifest(manifest, KEY))
    remember_source(home, NAME, image)
    return Publisher(home, client, KEY, NAME, StoredRef(signed, str(NAME), "", client))


def test_what_is_refused_is_not_served_before(
    publisher: Publisher, image: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = inspect_file(image, raw=True)
    with pytest.raises(ServedError):
        seed_image(file, publisher)
    for words in "quiet", "":
        with pytest.raises(UsageError, match="--append is for a new version"):
            seed_image(file, publisher, append=words)
    assert publisher.newest is not None
    mark_removed(publisher.home, [publisher.newest.signed.id])
    with pytest.raises(UsageError, match="was removed from here, and this file is older"):
        seed_image(file, publisher)
    with pytest.raises(ServedError):
        seed_image(file, publisher, as_new_version=True)
    assert "stays the newest" not in capsys.readouterr().err
