"""An image that is all here is found without p2pcloopd; all else is left to p2pcloopd."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.client import refs, stored_ref
from p2pcloop.client.whole import LateClient, find_whole
from p2pcloop.formats.link import Link
from p2pcloop.formats.manifest import LayerRef, Manifest, SignedManifest, open_manifest
from p2pcloop.formats.manifest import sign_manifest as sign
from p2pcloop.formats.seal import key_check
from p2pcloop.store.have import HaveFile
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
SECRET = b"s" * 32
PIECES = 3


def layer(number: int) -> LayerRef:
    return LayerRef(
        layer_id=bytes([number]) * 32,
        torrent=bytes([number]) * 20,
        index_length=4096,
        header_length=512,
        pack_length=PIECES * 16384 - 4096,
        piece_length=16384,
    )


def make(version: int = 1, *layers: int, private: bool = False) -> SignedManifest:
    key = KEY.public_key().public_bytes_raw()
    check = key_check(SECRET) if private else None
    refs = tuple(map(layer, layers))
    return open_manifest(sign(Manifest(key, "os", version, 0, 4096, refs, key_check=check), KEY))


def link_to(signed: SignedManifest) -> Link:
    return Link(signed.manifest.name, signed.id, signed.id[:20])


def bring(home: Home, *layers: int, pieces: int = PIECES) -> None:
    """Have the first `pieces` pieces of layers."""
    for number in layers:
        directory = home.torrents / layer(number).torrent.hex()
        directory.mkdir(exist_ok=True)
        have = HaveFile.create(directory / "have", layer(number).torrent, PIECES)
        have.add(range(pieces))
        have.close()


@pytest.fixture
def home(tmp_path: Path) -> Home:
    home = Home.at(tmp_path)
    home.create()
    return home


def test_a_whole_image_is_found_by_its_link_and_by_its_name(home: Home) -> None:
    signed = make(1, 1, 2)
    Records(home).keep(signed, link_to(signed))
    bring(home, 1, 2)
    for asked in (str(link_to(signed)), str(signed.manifest.name)):
        found = find_whole(asked, home)
        assert found is not None
        assert found.signed == signed
        assert found.name == str(signed.manifest.name)
        assert isinstance(found.client, LateClient)


def test_what_is_not_here_is_left_to_p2pcloopd(home: Home) -> None:
    signed = make(1, 1, 2)
    name, link = str(signed.manifest.name), str(link_to(signed))
    assert find_whole(link, home) is None
    assert find_whole(name, home) is None
    Records(home).keep(signed, link_to(signed))
    bring(home, 1)
    assert find_whole(link, home) is None
    bring(home, 2, pieces=PIECES - 1)
    assert find_whole(link, home) is None
    (home.manifests / signed.id.hex()).write_bytes(b"damaged")
    bring(home, 2)
    assert find_whole(link, home) is None
    home.names.write_bytes(b"damaged")
    assert find_whole(name, home) is None


def test_a_place_is_looked_at(home: Home) -> None:
    signed = make(1, 1)
    Records(home).keep(signed, link_to(signed))
    bring(home, 1)
    assert find_whole(f"https://example.org/{signed.manifest.name}", home) is None
    assert find_whole(f"/mirror/{signed.manifest.name}", home) is None


def test_older_versions_only_by_number_and_links_that_go_back_never(home: Home) -> None:
    old, new, other = make(1, 1), make(2, 2), make(2, 3)
    for signed in (old, new):
        Records(home).keep(signed, link_to(signed))
    bring(home, 1, 2, 3)
    name = str(old.manifest.name)

    def found(asked: str, at: int = 0) -> int | None:
        ref = find_whole(asked, home, at)
        return None if ref is None else ref.signed.manifest.version

    assert (found(name), found(name, 1), found(name, 2), found(name, 3)) == (2, 1, 2, None)
    assert found(str(link_to(new))) == 2
    assert found(str(link_to(old))) is None
    assert found(str(link_to(old)), 1) == 1
    assert found(str(link_to(new)), 1) is None
    assert found(str(link_to(other))) is None  # a fork: p2pcloopd says so


def test_a_withdrawn_image_is_left_to_p2pcloopd(home: Home) -> None:
    key = KEY.public_key().public_bytes_raw()
    signed = open_manifest(sign(Manifest(key, "os", 1, 0, 4096, (), withdrawn=True), KEY))
    assert signed.manifest.withdrawn
    Records(home).keep(signed, link_to(signed))
    assert find_whole(str(signed.manifest.name), home) is None


def test_the_secret_is_the_links_else_the_one_that_is_known(home: Home) -> None:
    signed = make(1, 1, private=True)
    link = link_to(signed)
    Records(home).keep(signed, replace(link, secret=SECRET))
    bring(home, 1)
    for asked, secret in (
        (str(link), SECRET),
        (str(signed.manifest.name), SECRET),
        (str(replace(link, secret=b"w" * 32)), b"w" * 32),  # the wrong one is not corrected
    ):
        found = find_whole(asked, home)
        assert found is not None
        assert found.secret == secret


def test_a_late_ref_is_found_without_p2pcloopd(
    home: Home, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    signed = make(1, 1)
    Records(home).keep(signed, link_to(signed))
    bring(home, 1)
    asked: list[Home] = []

    class StartsError(Exception):
        pass

    def ensure(home: Home, *_: object, **_options: object) -> None:
        asked.append(home)
        raise StartsError

    monkeypatch.setattr(refs, "ensure_daemon", ensure)
    found = refs.resolve_ref(str(link_to(signed)), home, late=True)
    assert isinstance(found, stored_ref.StoredRef)
    assert not asked
    assert "once the guest is up" in capsys.readouterr().err
    with pytest.raises(StartsError):
        refs.resolve_ref(str(link_to(signed)), home)
    with pytest.raises(StartsError):
        refs.resolve_ref(str(link_to(make(2, 1))), home, late=True)
