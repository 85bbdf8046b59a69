"""What the state of a guest is a delta of."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest

from p2pcloop.client import suspend
from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.state import MANY_LAYERS
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.formats.manifest import LayerRef, Manifest, SignedManifest
from tests.support.states import machine

MACHINE = machine(8192, b"state")
OTHER = replace(MACHINE, memory_length=8192)


def layer(number: int) -> LayerRef:
    return LayerRef(bytes([number]) * 32, bytes([number]) * 20, 365, 112, 9, 1 << 14)


def stored(manifest: Manifest) -> StoredRef:
    return StoredRef(SignedManifest(manifest, bytes(32), b""), "", "", cast("ControlClient", None))


IMAGE = Manifest(bytes(32), "image", 1, 0, 8192, (layer(0),))
STATE = replace(IMAGE, size=MACHINE.size, layers=(layer(0), layer(1)), machine=MACHINE)


@pytest.mark.parametrize(
    ("newest", "is_taken"),
    [
        (STATE, True),
        (IMAGE, False),
        (replace(STATE, machine=OTHER), False),
        (replace(STATE, layers=(layer(2), layer(1))), False),
        (replace(STATE, layers=tuple(map(layer, range(MANY_LAYERS - 1)))), True),
        (replace(STATE, layers=tuple(map(layer, range(MANY_LAYERS)))), False),
    ],
)
def test_a_state_is_a_delta_of_the_last_one_of_its_image(newest: Manifest, is_taken: bool) -> None:
    last = stored(newest)
    found = suspend._earlier(last, stored(IMAGE), MACHINE)
    assert found is (last if is_taken else None)
    assert suspend._earlier(None, stored(IMAGE), MACHINE) is None
