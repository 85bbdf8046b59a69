"""Which profile serves an image, and what of one fits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import MismatchError
from p2pcloop.formats.manifest import (
    LayerRef,
    Manifest,
    ManifestRef,
    SignedManifest,
    open_manifest,
    sign_manifest,
)
from p2pcloop.formats.profile import Profile, Touch, pack_profile, pack_touches, unpack_touches
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import (
    Found,
    find_profile,
    fit_profile,
    forget_profile,
    keep_profile,
    load_profile,
    look_up_profile,
    profile_path,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
ONE = pack_touches([Touch(5, 3, 0), Touch(90, 10, 4)])
OTHER = pack_touches([Touch(1, 1, 0)])
SIZE = 100 * 4096


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path / "home")
    home.create()
    return home


def manifest_of(number: int, **fields: Any) -> Manifest:
    """A version with a layer of its own."""
    layer = LayerRef(bytes([number]) * 32, bytes([number]) * 20, 365, 112, 12345, 1 << 14)
    base = Manifest(
        KEY.public_key().public_bytes_raw(), "debian", number, 1000 + number, SIZE, (layer,)
    )
    return replace(base, **fields)


def known(home: Home, manifest: Manifest) -> ManifestRef:
    """Have a home know a manifest."""
    signed: SignedManifest = open_manifest(sign_manifest(manifest, KEY))
    (home.manifests / signed.id.hex()).write_bytes(signed.data)
    return ManifestRef(signed.id, bytes(20))


def keep(home: Home, manifest: Manifest, touches: bytes) -> Profile:
    profile = Profile(manifest.image_id, manifest.size, 7, touches)
    return keep_profile(home, pack_profile(profile))


def test_the_nearest_is_found_and_what_is_kept_before_what_is_attached(home: Home) -> None:
    first = manifest_of(1, profile=ONE)
    second = manifest_of(2, previous=known(home, first))
    third = manifest_of(3, previous=known(home, second))
    key = KEY.public_key().public_bytes_raw()
    attached = Profile(first.image_id, SIZE, 1001, ONE, key)
    assert look_up_profile(home, third) == Found(attached, first, kept=False)
    recorded = keep(home, first, OTHER)
    assert look_up_profile(home, third) == Found(recorded, first, kept=True)
    fourth = replace(third, profile=ONE)
    found = look_up_profile(home, fourth)
    assert found is not None
    assert (found.of, found.kept) == (fourth, False)
    nearer = keep(home, second, ONE)
    assert find_profile(home, third) == nearer
    assert forget_profile(home, second.image_id)
    assert not forget_profile(home, second.image_id)
    assert find_profile(home, third) == recorded


def test_what_was_made_from_somebody_elses_has_that_ones(home: Home) -> None:
    base = manifest_of(1, label="theirs", profile=ONE)
    mine = manifest_of(2, parent=known(home, base))
    found = look_up_profile(home, mine)
    assert found is not None
    assert found.of == base


def test_a_damaged_one_is_none(home: Home) -> None:
    manifest = manifest_of(1)
    keep(home, manifest, ONE)
    path = profile_path(home, manifest.image_id)
    for data in (path.read_bytes()[:-1], b""):
        path.write_bytes(data)
        assert load_profile(home, manifest.image_id) is None
        assert look_up_profile(home, manifest) is None


def test_a_profile_of_this_very_image_fits_without_a_word() -> None:
    manifest = manifest_of(1)
    profile = Profile(manifest.image_id, SIZE, 0, ONE)
    assert fit_profile(profile, manifest.image_id, SIZE) == (ONE, "")


def test_of_an_older_versions_profile_what_is_still_there_fits() -> None:
    older = manifest_of(1)
    profile = Profile(older.image_id, SIZE, 0, ONE)
    touches, remark = fit_profile(profile, bytes(32), 50 * 4096, [older])
    assert unpack_touches(touches) == [Touch(5, 3, 0)]
    assert f"of {older.name}, version 1" in remark
    with pytest.raises(MismatchError, match="names no block"):
        fit_profile(profile, bytes(32), 5 * 4096, [older])


def test_any_other_fits_whole_or_not_at_all() -> None:
    profile = Profile(bytes(32), SIZE, 0, ONE)
    touches, remark = fit_profile(profile, bytes([1]) * 32, SIZE)
    assert touches == ONE
    assert "of another image" in remark
    with pytest.raises(MismatchError, match="does not have"):
        fit_profile(profile, bytes([1]) * 32, SIZE - 4096)
