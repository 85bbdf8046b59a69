"""Damaged states are refused or healed: nobody ever reads a wrong byte of a disk or a memory.

The trials are bounded, and the same each time. `P2PCLOOP_TRIALS` runs more of them.
"""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError, MismatchError, P2pcloopError
from p2pcloop.formats.elf import PT_LOAD
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.manifest import SignedManifest, open_manifest
from p2pcloop.formats.profile import Profile, Touch, pack_profile, pack_touches
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.stored import StoredImage
from p2pcloop.making.targets import DeviceTarget
from p2pcloop.store.profiles import keep_profile
from p2pcloop.store.unpacked_kernels import PageLike, pages_like
from tests.support.elf_files import elf
from tests.support.programs import Node, Nodes
from tests.support.states import Memory, manifest_of, noise, read_parts, suspend

pytestmark = pytest.mark.e2e

TRIALS = int(os.environ.get("P2PCLOOP_TRIALS", "40"))
TEXT = b"".join(b"line %06d of a file\n" % n for n in range(12_000))
DISK = (TEXT + noise(1, 20)).ljust(80 * 4096, b"\0")[: 80 * 4096]
DEVICES = b"QEVM" + noise(3)[:1000]
PAGES = {page: noise(page)[:2048] + TEXT[page * 100 : page * 100 + 2048] for page in range(40)}
KERNEL_AT, KERNEL = 42, noise(4, 20)
RUNNING = KERNEL[:40_000] + bytes(100) + KERNEL[40_100:70_000] + bytes(9) + KERNEL[70_009:]
"""A kernel, and what it has made of itself."""

FIRST = Memory(
    PAGES
    | {KERNEL_AT + page: RUNNING[page * 4096 : (page + 1) * 4096] for page in range(20)}
    | {page: DISK[(page - 60) * 4096 : (page - 59) * 4096] for page in range(64, 80)}
)
HEALS = 300
"""Ranges that are fetched anew for one damage at most."""


@dataclass(frozen=True)
class Kept:
    """A state in a store without a node.

    Attributes:
        signed: its manifest.
        torrents: the folder of the store.
        secret: of a private one.
        whole: what its device reads as.
        machines: the kernels that a reader's machine has: the guest's, none, another one, and one
            whose file is cut off.
    """

    signed: SignedManifest
    torrents: Path
    secret: bytes | None
    whole: bytes
    machines: Sequence[Sequence[PageLike]]

    def files(self) -> list[Path]:
        """Index and pack of each layer."""
        layers = self.signed.manifest.all_layers
        found = (
            [*(self.torrents / layer.torrent.hex()).rglob("index"), self.pack(layer.torrent)]
            for layer in layers
        )
        return [path for each in found for path in each]

    def pack(self, torrent: bytes) -> Path:
        [path] = (self.torrents / torrent.hex()).rglob("pack")
        return path

    def content(self, torrent: bytes) -> bytes:
        """All bytes of a layer's torrent."""
        pack = self.pack(torrent)
        return pack.with_name("index").read_bytes() + pack.read_bytes()

    def read(self, supply: Callable[[StoredImage, Missing], None], machine: int = 1) -> bytes:
        """Read the whole device; `supply` fetches what is missing, or does not match.

        Args:
            machine: which of the machines reads, counted round and round.
        """
        kernels = self.machines[machine % len(self.machines)]
        stored = StoredImage(self.signed.manifest, self.torrents, self.secret, kernels=kernels)
        while True:
            try:
                image = stored.open()
            except Missing as missing:
                supply(stored, missing)
            else:
                break
        try:
            target = DeviceTarget(ImageDevice(image), lambda missing: supply(stored, missing), ())
            return target.read(0, target.size // 4096)
        finally:
            image.close()


def keep(node: Node, name: str, to: Path) -> Kept:
    """Take a state out of a node's store."""
    facts = node.json("info", name)
    parts = read_parts(node, facts["link"])
    whole = b"".join(part + bytes(-len(part) % 4096) for part in parts)
    shutil.copytree(node.home.torrents, to)
    signed = open_manifest((node.home.manifests / facts["manifest"]).read_bytes())
    machine = signed.manifest.machine
    assert machine is not None
    cut_off = write_kernel(to.with_name("cut off"), KERNEL)
    os.truncate(cut_off, cut_off.stat().st_size - 5000)
    folders = [
        write_kernel(to.with_name("right"), KERNEL).parent,
        to.with_name("none"),
        write_kernel(to.with_name("other"), KERNEL[:-1] + b"\0").parent,
        cut_off.parent,
    ]
    machines = [pages_like(machine, each) for each in folders]
    return Kept(signed, to, parse_link(facts["link"]).secret, whole, machines)


def write_kernel(folder: Path, pages: bytes) -> Path:
    """Put a kernel where those of a machine are."""
    folder.mkdir(parents=True)
    path = folder / "vmlinux-1"
    path.write_bytes(elf((PT_LOAD, KERNEL_AT * 4096, pages)))
    return path


@pytest.fixture(scope="module", params=["public", "private"])
def kept(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Kept]:
    """Two states, one over the other; the memory is packed in a chain, too, with the pages of a
    kernel as dictionary."""
    folder = tmp_path_factory.mktemp("states")
    disk = folder / "disk.img"
    disk.write_bytes(DISK)
    with Nodes() as nodes:
        node = nodes.make()
        node.environment["XDG_CACHE_HOME"] = str(folder / "cache")
        write_kernel(folder / "cache" / "p2pcloop" / "kernels", KERNEL)
        image = node.seed(disk, "disk")["name"]
        private = request.param == "private"
        name = suspend(node, image, "guest", FIRST, DEVICES, private=private)["name"]
        suspend(node, name, "guest", {7: noise(77), 8: bytes(4096)}, DEVICES)
        state = manifest_of(node, name)
        assert state.machine is not None
        touches = pack_touches([Touch(state.machine.memory.blocks.start, 90, 0)])
        keep_profile(node.home, pack_profile(Profile(state.image_id, state.size, 0, touches)))
        node.json("optimize", name, "--name", "guest")
        yield keep(node, name, folder / "torrents")


def flip(data: bytearray, dice: random.Random) -> None:
    data[dice.randrange(len(data))] ^= dice.randrange(1, 256)


def cut(data: bytearray, dice: random.Random) -> None:
    del data[dice.randrange(len(data)) :]


def swap(data: bytearray, dice: random.Random) -> None:
    length = dice.randrange(1, len(data) // 2)
    one, other = sorted(dice.sample(range(len(data) - length), 2))
    first, second = data[one : one + length], data[other : other + length]
    data[one : one + length], data[other : other + length] = second, first


def clear(data: bytearray, dice: random.Random) -> None:
    start = dice.randrange(len(data))
    end = dice.randrange(start, len(data)) + 1
    data[start:end] = bytes(end - start)


def append(data: bytearray, dice: random.Random) -> None:
    data += dice.randbytes(dice.randrange(1, 5000))


DAMAGES = [flip, cut, swap, clear, append]


def test_damaged_files_of_a_state_are_healed_or_refused(kept: Kept) -> None:
    dice = random.Random(16)
    contents = {
        layer.torrent: kept.content(layer.torrent) for layer in kept.signed.manifest.all_layers
    }
    healed = 0

    def supply(stored: StoredImage, missing: Missing) -> None:
        nonlocal healed
        for part in missing.ranges:
            healed += 1
            assert healed < HEALS
            stored.accept(part, contents[part.torrent][part.offset : part.offset + part.length])

    assert kept.read(supply) == kept.whole
    assert healed == 0
    in_all = 0
    for number in range(TRIALS):
        path = dice.choice(kept.files())
        good = path.read_bytes()
        bad = bytearray(good)
        DAMAGES[number % len(DAMAGES)](bad, dice)
        path.write_bytes(bad)
        healed = 0
        try:
            assert kept.read(supply, number) == kept.whole, (path.name, number)
        finally:
            path.write_bytes(good)
        in_all += healed
    assert in_all > TRIALS // 2, "most damage is met"


def test_a_source_that_lies_is_refused(kept: Kept) -> None:
    """Nothing is here, and what comes is damaged somewhere: asked again, or an error; no more."""
    dice = random.Random(17)
    empty = replace(kept, torrents=kept.torrents.with_name("none"))
    contents = {
        layer.torrent: kept.content(layer.torrent) for layer in kept.signed.manifest.all_layers
    }
    for number in range(TRIALS // 2):
        torrent = dice.choice(list(contents))
        bad = bytearray(contents[torrent])
        (flip, swap, clear)[number % 3](bad, dice)
        lying = contents | {torrent: bytes(bad)}
        again: set[tuple[bytes, int]] = set()

        def supply(
            stored: StoredImage,
            missing: Missing,
            again: set[tuple[bytes, int]] = again,
            lying: dict[bytes, bytes] = lying,
        ) -> None:
            for part in missing.ranges:
                # The second time it is told that it did not match, and another source is asked.
                key = part.torrent, part.offset
                source = contents if part.heal or key in again else lying
                again.add(key)
                stored.accept(part, source[part.torrent][part.offset : part.offset + part.length])

        assert empty.read(supply, number) == kept.whole, number


def test_only_a_machine_with_the_kernel_fetches_no_dictionary(kept: Kept) -> None:
    empty = replace(kept, torrents=kept.torrents.with_name("none"))
    contents = {
        layer.torrent: kept.content(layer.torrent) for layer in kept.signed.manifest.all_layers
    }
    fetched = [0] * len(kept.machines)
    for number in range(len(fetched)):

        def supply(stored: StoredImage, missing: Missing, number: int = number) -> None:
            for part in missing.ranges:
                fetched[number] += part.length
                stored.accept(part, contents[part.torrent][part.offset : part.offset + part.length])

        assert empty.read(supply, number) == kept.whole
    with_kernel, *others = fetched
    assert others == [others[0]] * 3
    assert others[0] - with_kernel >= len(KERNEL)


def test_a_damaged_manifest_of_a_state_is_refused(kept: Kept) -> None:
    dice = random.Random(18)
    for number in range(20 * TRIALS):
        bad = bytearray(kept.signed.data)
        DAMAGES[number % len(DAMAGES)](bad, dice)
        if bad == kept.signed.data:
            continue
        with pytest.raises((FormatError, MismatchError)):
            open_manifest(bytes(bad))


def test_parts_that_are_not_those_of_the_layers_are_refused(kept: Kept) -> None:
    """Its publisher signed what cannot be."""
    manifest = kept.signed.manifest
    assert manifest.machine is not None
    machine = replace(manifest.machine, memory_length=manifest.machine.memory_length + 4096)
    lie = replace(manifest, machine=machine, size=machine.size)
    wrong = replace(kept, signed=replace(kept.signed, manifest=lie))
    with pytest.raises(P2pcloopError, match="another size than the manifest says"):
        wrong.read(lambda _stored, missing: pytest.fail(str(missing)))
