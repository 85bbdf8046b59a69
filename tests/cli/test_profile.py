"""`p2pcloop profile` of image files that lie here: shown, exported, attached, forgotten."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.formats.name import format_key
from p2pcloop.formats.profile import (
    Profile,
    Touch,
    open_profile,
    pack_profile,
    pack_touches,
    sign_profile,
    unpack_touches,
)
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.local import inspect_file, open_local
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import keep_profile, load_profile
from tests.support.command import Run
from tests.support.images import ignore, make_image, write_cloop_file

OTHER = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
OTHER_KEY = OTHER.public_key().public_bytes_raw()
TOUCHES = [Touch(40, 3, 0), Touch(0, 1, 20), Touch(16, 16, 1500)]
"""Chunks 2, 0 and 1 of the cloop; the last is zeros."""


@pytest.fixture
def cloop(tmp_path: Path) -> Path:
    return write_cloop_file(tmp_path / "a.cloop", make_image(400_000, seed=4))


@pytest.fixture
def image(cloop: Path) -> MergedImage:
    return open_local(inspect_file(cloop), None, ignore)


def profile_of(image: MergedImage, touches: list[Touch] = TOUCHES) -> Profile:
    return Profile(image.image_id, image.size, 1_700_000_000, pack_touches(touches))


def kept(home: Path, image: MergedImage) -> Profile:
    profile = load_profile(Home.at(home), image.image_id)
    assert profile is not None
    return profile


def test_what_a_boot_recorded_is_shown(
    p2pcloop: Run, home: Path, cloop: Path, image: MergedImage
) -> None:
    keep_profile(Home.at(home), pack_profile(profile_of(image)))
    assert p2pcloop("profile", "show", cloop, "--json").json == {
        "name": str(cloop),
        "origin": "recorded",
        "key": None,
        "of": None,
        "image_id": image.image_id.hex(),
        "size": image.size,
        "created": 1_700_000_000,
        "touches": 3,
        "blocks": 20,
        "bytes": 20 * 4096,
        "seconds": 1.5,
        "fetched": sum(image.layers[0].chunk(number).length for number in (0, 1)),
    }
    text = p2pcloop("profile", "show", cloop).out
    assert "recorded here" in text
    assert "2023-11-14" in text
    assert "81.9 kB in 20 blocks of 4 KiB, 3 touches, within 1.5 s" in text


def test_where_none_is_known(p2pcloop: Run, cloop: Path) -> None:
    for words in (["show", cloop], ["export", cloop, cloop.with_suffix(".p")], ["forget", cloop]):
        ran = p2pcloop("profile", *words)
        assert (ran.code, ran.out) == (7, "")
        assert "hint: " in ran.err


def test_it_is_exported_signed_attached_and_forgotten(
    p2pcloop: Run, home: Path, cloop: Path, image: MergedImage, tmp_path: Path
) -> None:
    keep_profile(Home.at(home), pack_profile(profile_of(image)))
    out = tmp_path / "a.profile"
    assert p2pcloop("profile", "export", cloop, out).code == 0
    mine = p2pcloop("key", "show", "--json").json["key"]
    assert format_key(open_profile(out.read_bytes()).key or b"") == mine
    assert open_profile(out.read_bytes()).touches == kept(home, image).touches
    shown = p2pcloop("profile", "show", out, "--json").json
    assert (shown["origin"], shown["key"], shown["fetched"]) == ("file", mine, None)
    # A file is not replaced, and nothing but the file is made.
    again = p2pcloop("profile", "export", cloop, out)
    assert (again.code, again.out) == (2, "")
    assert p2pcloop("profile", "export", cloop, tmp_path / "b", "--key", "none").code == 7
    assert not (tmp_path / "b").exists()

    assert p2pcloop("profile", "forget", cloop).code == 0
    assert p2pcloop("profile", "show", cloop).code == 7
    ran = p2pcloop("profile", "attach", cloop, out)
    assert (ran.code, ran.err) == (0, "")
    assert p2pcloop("profile", "show", cloop, "--json").json["origin"] == "kept"
    assert kept(home, image).key is not None


def test_what_somebody_else_signed_is_kept_as_it_is(
    p2pcloop: Run, home: Path, cloop: Path, image: MergedImage, tmp_path: Path
) -> None:
    file = tmp_path / "a.profile"
    file.write_bytes(sign_profile(profile_of(image), OTHER))
    answer = p2pcloop("profile", "attach", cloop, file, "--json").json
    assert answer == {"name": str(cloop), "changed": False}
    assert kept(home, image).key == OTHER_KEY
    assert f"signed by @{format_key(OTHER_KEY)}" in p2pcloop("profile", "show", cloop).out
    # Nothing was signed, so no key was made.
    assert p2pcloop("key", "list", "--json").json == {"keys": []}


def test_that_of_another_image_is_signed_anew_where_it_fits(
    p2pcloop: Run, home: Path, cloop: Path, image: MergedImage, tmp_path: Path
) -> None:
    file = tmp_path / "a.profile"
    other = Profile(bytes(32), 1 << 30, 0, pack_touches(TOUCHES))
    file.write_bytes(sign_profile(other, OTHER))
    ran = p2pcloop("profile", "attach", cloop, file)
    assert (ran.code, ran.err.count("\n")) == (0, 1)
    assert "of another image" in ran.err
    mine = p2pcloop("key", "show", "--json").json["key"]
    profile = kept(home, image)
    assert (format_key(profile.key or b""), profile.size) == (mine, image.size)
    assert unpack_touches(profile.touches) == TOUCHES


def test_what_cannot_be_meant_is_refused(
    p2pcloop: Run, home: Path, cloop: Path, image: MergedImage, tmp_path: Path
) -> None:
    file = tmp_path / "a.profile"
    beyond = Profile(bytes(32), 1 << 30, 0, pack_touches([*TOUCHES, Touch(1000, 1, 2000)]))
    signed = sign_profile(profile_of(image), OTHER)
    forged = bytearray(signed)
    forged[-1] ^= 1
    nothing = Profile(image.image_id, image.size, 0, pack_touches([]))
    for data, code, said in (
        (sign_profile(beyond, OTHER), 5, "does not have"),
        (sign_profile(nothing, OTHER), 5, "names no block"),
        (bytes(forged), 5, "is not signed by that key"),
        (signed[:-1], 3, "profile"),
        (pack_profile(profile_of(image)), 3, "is not signed"),
        (cloop.read_bytes(), 3, "is not a profile"),
        (b"", 3, "is not a profile"),
    ):
        file.write_bytes(data)
        ran = p2pcloop("profile", "attach", cloop, file)
        assert (ran.code, ran.out) == (code, ""), ran.err
        assert said in ran.err
    assert p2pcloop("profile", "attach", cloop, tmp_path).code == 2
    assert p2pcloop("profile", "attach", cloop, tmp_path / "none").code == 7
    assert load_profile(Home.at(home), image.image_id) is None


def test_a_damaged_profile_is_no_image(p2pcloop: Run, image: MergedImage, tmp_path: Path) -> None:
    file = tmp_path / "a.profile"
    file.write_bytes(pack_profile(profile_of(image))[:-1])
    ran = p2pcloop("profile", "show", file)
    assert (ran.code, ran.out) == (3, "")
