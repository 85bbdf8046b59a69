"""Resolving by links, names, mirrors and versions: what may be refused is refused, whole."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import FormatError, MismatchError, NotHereError
from p2pcloop.formats.link import Link, parse_link
from p2pcloop.formats.manifest import (
    LayerRef,
    Manifest,
    ManifestRef,
    SignedManifest,
    open_manifest,
    sign_manifest,
)
from p2pcloop.formats.name import Name
from p2pcloop.formats.packing import pack_canonical
from p2pcloop.formats.record import Record, sign_record
from p2pcloop.formats.seal import key_check
from tests.node.conftest import KEY
from tests.support.programs import Node, Nodes
from tests.support.static_server import Fault, Misbehaving, misbehaving
from tests.support.versions import torrent_of

PUBLIC = KEY.public_key().public_bytes_raw()
NAME = Name(PUBLIC, "debian")
LAYER = LayerRef(b"l" * 32, b"t" * 20, 4096, 512, 8192, 16384)


@dataclass
class Publisher:
    """Writes a mirror: records and manifests, as `p2pcloop mirror` does."""

    directory: Path
    links: dict[int, Link] = field(default_factory=dict)

    def make(self, version: int, **fields: Any) -> tuple[SignedManifest, Link]:
        """Sign a version; it is put nowhere."""
        values: dict[str, Any] = {"created": 0, "size": 4096, "layers": (LAYER,)} | fields
        manifest = Manifest(PUBLIC, NAME.label, version, **values)
        signed = open_manifest(sign_manifest(manifest, KEY))
        return signed, Link(NAME, signed.id, torrent_of(signed))

    def publish(self, version: int, **fields: Any) -> SignedManifest:
        """Sign a version and put it, and a record of it, into the mirror."""
        signed, link = self.make(version, **fields)
        self.links[version] = link
        self.put_manifest(signed)
        self.put(sign_record(self.record(version), KEY))
        return signed

    def record(self, version: int) -> Record:
        link = self.links[version]
        return Record(PUBLIC, NAME.label, version, 0, link.manifest_id, link.manifest_torrent)

    def ref(self, version: int) -> ManifestRef:
        return ManifestRef(self.links[version].manifest_id, self.links[version].manifest_torrent)

    def put_manifest(self, signed: SignedManifest) -> None:
        path = self.directory / "manifests" / signed.id.hex()
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(signed.data)

    def put(self, record: bytes) -> None:
        path = self.directory / str(NAME)
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(record)


@pytest.fixture
def publisher(tmp_path: Path) -> Publisher:
    return Publisher(tmp_path)


@pytest.fixture
def mirror(tmp_path: Path) -> Iterator[Misbehaving]:
    with misbehaving(tmp_path) as server:
        yield server


@pytest.fixture
def node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.start()


def tree(node: Node) -> dict[str, bytes]:
    """All that lies in a node's home, but for its log."""
    return {
        str(path): path.read_bytes() if path.is_file() else b""
        for path in node.home.root.rglob("*")
        if path != node.home.log
    }


def refused(
    node: Node, error: type[Exception], says: str, **args: Any
) -> pytest.ExceptionInfo[Exception]:
    """Resolve what must be refused: that is said, and nothing changes on disk."""
    before = tree(node)
    with pytest.raises(error, match=says) as caught:
        node.call("resolve", **args)
    assert tree(node) == before
    assert "\n" not in str(caught.value)
    return caught


@pytest.mark.parametrize("kind", ["url", "directory"])
def test_a_name_is_found_at_the_place_that_the_user_names(
    node: Node, publisher: Publisher, mirror: Misbehaving, kind: str
) -> None:
    signed = publisher.publish(3, message="hello")
    base = mirror.url if kind == "url" else f"{publisher.directory}/"
    found = node.call("resolve", ref=f"{base}{NAME}")
    assert (found["id"], found["version"], found["before"]) == (signed.id, 3, 0)
    assert found["manifest"] == signed.data
    link = parse_link(found["link"])
    assert link.manifest_torrent == publisher.links[3].manifest_torrent
    assert link.mirrors == ((mirror.url,) if kind == "url" else ())
    mirror.fault = Fault.NOT_FOUND
    assert node.call("resolve", ref=str(NAME))["id"] == signed.id
    [torrent] = [
        each
        for each in node.call("status")["torrents"]
        if each["info_hash"] == link.manifest_torrent
    ]
    assert torrent["have_bytes"] == torrent["size"] == len(signed.data), "it is served on"


def test_update_finds_what_the_mirrors_of_the_link_have(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    publisher.publish(1)
    link = replace(publisher.links[1], mirrors=(mirror.url,))
    assert node.call("resolve", ref=str(link))["version"] == 1
    publisher.publish(2, previous=publisher.ref(1))
    assert node.call("resolve", ref=str(NAME))["version"] == 1
    found = node.call("resolve", ref=str(NAME), look=True)
    assert (found["version"], found["before"]) == (2, 1)
    assert node.call("resolve", ref=str(NAME))["version"] == 2
    assert node.call("resolve", ref=str(link), look=True)["version"] == 2


def test_a_link_to_what_is_known_adds_its_places(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    """By any publisher: also those of a stranger, who could take away who has the image."""
    publisher.publish(1)
    first = replace(
        publisher.links[1],
        peers=(("192.0.2.1", 1), ("192.0.2.2", 2)),
        trackers=("http://192.0.2.1/announce",),
        web_seeds=("http://192.0.2.1/data/",),
        mirrors=(mirror.url,),
    )
    second = replace(
        publisher.links[1],
        peers=(("192.0.2.3", 3), ("192.0.2.2", 2)),
        mirrors=("http://192.0.2.3/",),
    )
    node.call("resolve", ref=str(first))
    for link in (second, publisher.links[1]):
        found = parse_link(node.call("resolve", ref=str(link))["link"])
        assert set(found.peers) == {*first.peers, *second.peers}
        assert set(found.mirrors) == {*first.mirrors, *second.mirrors}
        assert (found.trackers, found.web_seeds) == (first.trackers, first.web_seeds)
        if link == second:
            assert found.peers[:2] == second.peers
            assert found.mirrors[0] == second.mirrors[0]


def test_what_hangs_hides_nothing(node: Node, publisher: Publisher, mirror: Misbehaving) -> None:
    publisher.publish(1)
    with misbehaving(publisher.directory, Fault.HANGS) as hanging:
        mirrors = (hanging.url, mirror.url, "http://127.0.0.1:9/")
        link = replace(publisher.links[1], mirrors=mirrors)
        assert node.call("resolve", ref=str(link))["version"] == 1
        signed = publisher.publish(2)
        events = []
        with node.connect() as client:
            found = client.call(
                "resolve", lambda *event: events.append(event), ref=str(NAME), look=True
            )
    assert found["id"] == signed.id
    [(event, fields)] = events
    assert event == "asked"
    told = " ".join(fields["problems"])
    assert hanging.url in told
    assert "127.0.0.1:9" in told


@pytest.mark.parametrize("fault", [Fault.NOT_FOUND, Fault.HTML, Fault.REDIRECT, Fault.SERVER_ERROR])
def test_a_mirror_that_misbehaves_is_told_of(
    node: Node, publisher: Publisher, mirror: Misbehaving, fault: Fault
) -> None:
    publisher.publish(1)
    mirror.fault = fault
    refused(node, NotHereError, mirror.url, ref=f"{mirror.url}{NAME}")


def test_a_mirror_that_knows_nothing_of_a_name_is_no_fault(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    """Unless the user said that it is there."""
    publisher.publish(1)
    node.call("resolve", ref=str(replace(publisher.links[1], mirrors=(mirror.url,))))
    (publisher.directory / str(NAME)).unlink()
    for ref, lines in ((str(NAME), 0), (f"{mirror.url}{NAME}", 1)):
        events: list[dict[str, Any]] = []
        with node.connect() as client:
            note = partial(lambda told, _, fields: told.append(fields), events)
            client.call("resolve", note, ref=ref, look=True)
        [fields] = events
        assert (fields["found"], len(fields["problems"])) == (False, lines)
    [known] = node.call("status")["mirrors"]
    assert (known["base"], known["error"]) == (mirror.url, None)


def test_no_source_knows_the_name(node: Node, tmp_path: Path) -> None:
    refused(node, NotHereError, "asked: no source", ref=str(NAME))
    refused(node, NotHereError, "was not found", ref=f"{tmp_path}/{NAME}")
    refused(node, FormatError, "not absolute", ref=f"there/{NAME}")


def test_a_place_does_not_go_back(node: Node, publisher: Publisher, mirror: Misbehaving) -> None:
    publisher.publish(1)
    publisher.publish(5)
    node.call("resolve", ref=f"{mirror.url}{NAME}")
    publisher.put(sign_record(publisher.record(1), KEY))
    caught = refused(node, MismatchError, "never goes back", ref=f"{mirror.url}{NAME}")
    assert "--at 1" in str(getattr(caught.value, "hint", ""))
    old_link = replace(publisher.links[1], mirrors=(mirror.url,))
    refused(node, MismatchError, "never goes back", ref=str(old_link))
    # A node that asks all is told of the newest, whatever a stale mirror says.
    assert node.call("resolve", ref=str(NAME), look=True)["version"] == 5


def test_a_fork_is_told_with_both_manifests(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    one = publisher.publish(2)
    link = replace(publisher.links[2], mirrors=(mirror.url,))
    node.call("resolve", ref=str(link))
    other = publisher.publish(2, message="another")
    for args in ({"ref": str(NAME), "look": True}, {"ref": f"{mirror.url}{NAME}"}):
        caught = refused(node, MismatchError, "^fork: ", **args)
        assert one.id.hex() in str(caught.value)
        assert other.id.hex() in str(caught.value)
    refused(
        node, MismatchError, "^fork: ", ref=str(replace(publisher.links[2], mirrors=(mirror.url,)))
    )
    assert node.call("resolve", ref=str(NAME))["id"] == one.id
    publisher.publish(3)
    assert node.call("resolve", ref=str(NAME), look=True)["version"] == 3


def test_two_mirrors_that_disagree_are_a_fork(
    node: Node, publisher: Publisher, mirror: Misbehaving, tmp_path: Path
) -> None:
    (tmp_path / "other").mkdir()
    twin = Publisher(tmp_path / "other")
    publisher.publish(1)
    with misbehaving(twin.directory) as second:
        link = replace(publisher.links[1], mirrors=(mirror.url, second.url))
        node.call("resolve", ref=str(link))
        publisher.publish(2)
        twin.publish(2, message="twin")
        refused(node, MismatchError, "^fork: ", ref=str(NAME), look=True)


def forged_record(publisher: Publisher) -> bytes:
    other = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
    key = other.public_key().public_bytes_raw()
    return sign_record(replace(publisher.record(1), key=key), other)


def unknown_format(_: Publisher) -> bytes:
    body = pack_canonical({"format": 99, "key": PUBLIC, "label": NAME.label})
    return pack_canonical({"body": body, "signature": bytes(64)})


@pytest.mark.parametrize(
    ("record", "says"),
    [
        (lambda p: sign_record(p.record(1), KEY)[:-1] + b"\0", "not signed by that key"),
        (forged_record, "answered with a record of @"),
        (lambda p: forged_record(p).replace(b"x", b"y"), "record"),
        (lambda p: sign_record(replace(p.record(1), label="other"), KEY), "answered with a record"),
        (unknown_format, "format 99"),
        (lambda _: b"", "record"),
        (lambda _: b"\x80" * 600, "longer than"),
    ],
)
def test_a_bad_record_is_refused(
    node: Node, publisher: Publisher, mirror: Misbehaving, record: Any, says: str
) -> None:
    publisher.publish(1)
    publisher.put(record(publisher))
    refused(node, NotHereError, says, ref=f"{mirror.url}{NAME}")


def test_a_manifest_that_is_not_the_records_is_refused(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    publisher.publish(1)
    record, link = publisher.record(1), publisher.links[1]
    place = f"{mirror.url}{NAME}"
    publisher.put(sign_record(replace(record, version=2), KEY))
    refused(node, MismatchError, "version 2, leads to a manifest of .*, version 1", ref=place)
    publisher.put(sign_record(replace(record, manifest_torrent=b"x" * 20), KEY))
    refused(node, MismatchError, "another torrent", ref=place)
    publisher.put(sign_record(record, KEY))
    path = publisher.directory / "manifests" / link.manifest_id.hex()
    whole = path.read_bytes()
    for data, error in (
        (publisher.make(9)[0].data, MismatchError),
        (whole[:-1] + bytes([whole[-1] ^ 1]), MismatchError),
        (b"<html>", FormatError),
        (bytes(70_000), FormatError),
    ):
        path.write_bytes(data)
        refused(node, error, mirror.url, ref=place)
    path.unlink()
    refused(node, NotHereError, mirror.url, ref=place)
    path.write_bytes(whole)
    assert node.call("resolve", ref=place)["id"] == link.manifest_id


def chain(publisher: Publisher, length: int) -> None:
    for version in range(1, length + 1):
        previous = publisher.ref(version - 1) if version > 1 else None
        publisher.publish(version, previous=previous)


def test_an_old_version_is_found_by_going_back(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    chain(publisher, 4)
    link = replace(publisher.links[4], mirrors=(mirror.url,))
    node.call("resolve", ref=str(link))
    old = node.call("resolve", ref=str(NAME), at=2)
    assert (old["version"], old["id"]) == (2, publisher.links[2].manifest_id)
    assert parse_link(old["link"]).manifest_id == old["id"]
    assert node.call("resolve", ref=str(NAME))["version"] == 4
    mirror.fault = Fault.NOT_FOUND
    for version in (2, 3, 4):  # those on the way were kept, too
        assert node.call("resolve", ref=str(NAME), at=version)["version"] == version
    refused(node, NotHereError, "has no version 9 yet", ref=str(NAME), at=9)
    refused(node, NotHereError, mirror.url, ref=str(NAME), at=1)
    # An old link is taken when its version is asked for by its number.
    mirror.fault = None
    old_link = replace(publisher.links[1], mirrors=(mirror.url,))
    refused(node, MismatchError, "never goes back", ref=str(old_link))
    assert node.call("resolve", ref=str(old_link), at=1)["version"] == 1
    assert node.call("resolve", ref=str(NAME))["version"] == 4


def test_a_link_leads_to_every_version_that_is_known(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    """By its number, as the name does; and what the link tells of places is kept."""
    chain(publisher, 3)
    links = {n: replace(link, mirrors=(mirror.url,)) for n, link in publisher.links.items()}
    node.call("resolve", ref=str(links[3]))
    node.call("resolve", ref=str(NAME), at=1)
    mirror.fault = Fault.NOT_FOUND
    for asked in 1, 2, 3:
        for at in 1, 2, 3:
            link = replace(links[asked], peers=(("192.0.2.1", asked),))
            found = node.call("resolve", ref=str(link), at=at)
            assert (found["version"], found["id"]) == (at, links[at].manifest_id)
            assert ("192.0.2.1", asked) in parse_link(found["link"]).peers
    refused(node, MismatchError, "never goes back", ref=str(links[1]))
    refused(node, MismatchError, "never goes back", ref=str(links[2]), at=9)


def test_a_chain_of_versions_that_does_not_go_down_is_refused(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    publisher.publish(1)
    publisher.publish(7)
    publisher.publish(5, previous=publisher.ref(7))
    place = f"{mirror.url}{NAME}"
    node.call("resolve", ref=place)
    refused(node, MismatchError, "version 5 of .* says that version 7", ref=str(NAME), at=1)
    assert node.call("resolve", ref=str(NAME))["version"] == 5
    publisher.publish(8, previous=publisher.ref(1))
    node.call("resolve", ref=place)
    with pytest.raises(NotHereError, match="has no version 3"):
        node.call("resolve", ref=str(NAME), at=3)
    assert node.call("resolve", ref=str(NAME))["version"] == 8


def test_the_secret_of_a_private_image_is_checked_and_kept(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    secret = bytes(range(32))
    publisher.publish(1, key_check=key_check(secret))
    link = replace(publisher.links[1], mirrors=(mirror.url,))
    wrong = replace(link, secret=b"w" * 32)
    refused(node, MismatchError, "wrong key", ref=str(wrong))
    assert parse_link(node.call("resolve", ref=str(link))["link"]).secret is None
    node.call("resolve", ref=str(replace(link, secret=secret)))
    refused(node, MismatchError, "wrong key", ref=str(wrong))
    publisher.publish(2, key_check=key_check(secret), previous=publisher.ref(1))
    for args in ({"ref": str(link)}, {"ref": str(NAME), "look": True}, {"ref": str(NAME), "at": 1}):
        assert parse_link(node.call("resolve", **args)["link"]).secret == secret
    assert (node.home.names.stat().st_mode & 0o777) == 0o600
    assert "key=" not in node.home.log.read_text()


def test_a_manifest_of_the_history_is_told(
    node: Node, publisher: Publisher, mirror: Misbehaving
) -> None:
    chain(publisher, 2)
    node.call("resolve", ref=str(replace(publisher.links[2], mirrors=(mirror.url,))))
    old = publisher.ref(1)
    args = {"id": old.id, "torrent": old.torrent, "near": str(NAME)}
    assert open_manifest(node.call("manifest", **args)["manifest"]).manifest.version == 1
    with pytest.raises(NotHereError):
        node.call("manifest", id=b"x" * 32, torrent=b"", near=str(NAME))


def test_a_record_must_be_of_what_is_known(node: Node, publisher: Publisher) -> None:
    publisher.publish(1)
    publisher.publish(2)
    with pytest.raises(NotHereError):
        node.call("seed_record", record=sign_record(publisher.record(1), KEY))
    node.call("resolve", ref=f"{publisher.directory}/{NAME}")
    before = tree(node)
    with pytest.raises(MismatchError):
        node.call("seed_record", record=sign_record(publisher.record(1), KEY))
    with pytest.raises(MismatchError):
        node.call("seed_record", record=sign_record(publisher.record(2), KEY)[:-1] + b"\0")
    assert tree(node) == before
