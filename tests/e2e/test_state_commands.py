"""What commands that read images do with a state: most take its disk, and none loses a part."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from p2pcloop.formats.elf import PT_LOAD
from p2pcloop.formats.profile import Profile, Touch, pack_profile, pack_touches
from p2pcloop.store.profiles import expected_touches, keep_profile, load_profile
from tests.support.elf_files import elf
from tests.support.mounts import mounted, needs_fuse
from tests.support.programs import Guest, Node, Nodes, read_until, tool
from tests.support.states import MEMORY, Memory, manifest_of, noise, read_parts, suspend

pytestmark = pytest.mark.e2e

DISK = noise(1, 256) + noise(2)[:2048]
"""Half a block at its end."""

DEVICES = b"QEVM" + noise(3)[:1000]
FIRST = Memory({page: noise(100 + page) for page in range(30)})


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(DISK)
    return path


def seeded(node: Node, disk: Path) -> str:
    name: str = node.seed(disk, "disk")["name"]
    return name


def two_states(node: Node, disk: Path) -> str:
    """The name of two states, the second with a page changed."""
    image = seeded(node, disk)
    first = suspend(node, image, "guest", FIRST, DEVICES, message="before lunch")
    suspend(node, first["name"], "guest", {7: noise(77)}, DEVICES, message="after it")
    name: str = first["name"]
    return name


SECOND = Memory(FIRST.pages | {7: noise(77)})


def test_a_state_is_told_as_one(nodes: Nodes, disk: Path) -> None:
    node = nodes.make()
    image = seeded(node, disk)
    made = suspend(
        node,
        image,
        "guest",
        FIRST,
        DEVICES,
        message="at work",
        devices=("isa-serial,index=0",),
        firmware=(("bios", bytes(32)),),
    )
    facts = node.json("info", made["name"])
    assert (facts["state"], facts["size"], facts["memory"]) == (True, len(DISK), MEMORY)
    assert (facts["machine"], facts["cpu"], facts["accelerator"]) == (
        "pc-q35-7.2",
        "qemu64,+aes",
        "tcg",
    )
    assert facts["firmware"] == {"bios": bytes(32).hex()}
    told = node.run("info", made["name"]).out
    assert "2023-11-14 22:13:20+00:00" in told
    assert "isa-serial,index=0" in told
    assert node.json("info", image)["state"] is False
    assert "a state, with 4.2 MB of memory" in node.run("log", made["name"]).out
    assert "a state with 4.2 MB of memory" in node.run("images").out
    memories = {each["name"]: each["memory"] for each in node.json("images")["images"]}
    assert memories == {image: None, made["name"]: MEMORY}
    [version] = node.json("log", image)["versions"]
    assert version["memory"] is None


def test_versions_of_a_state_are_compared_part_by_part(nodes: Nodes, disk: Path) -> None:
    node = nodes.make()
    name = two_states(node, disk)
    assert [each["message"] for each in node.json("log", name)["versions"]] == [
        "after it",
        "before lunch",
    ]
    found = node.json("diff", "--at", "1", name, name)
    assert (found["sizes"], found["parts"]["disk"]) == ([len(DISK)] * 2, 0)
    assert found["parts"]["memory"] == found["blocks"] == 1
    assert "1 of the memory" in node.run("diff", "--at", "1", name, name).out
    image = manifest_of(node, name).parent
    assert image is not None
    with_image = node.json("diff", "disk", name)
    assert (with_image["blocks"], with_image["parts"]) == (0, {"disk": 0})


def test_a_squashed_state_is_still_one(nodes: Nodes, disk: Path) -> None:
    node, other = nodes.make(), nodes.make()
    name = two_states(node, disk)
    for more, layers in (((), 2), (("--all",), 1)):
        made = node.json("squash", name, *more)
        assert made["layers"] == layers
        assert read_parts(other, made["link"]) == (DISK, bytes(SECOND), DEVICES)


def test_a_state_is_kept_and_given_up_as_a_whole(nodes: Nodes, disk: Path) -> None:
    node, other = nodes.make(), nodes.make()
    name = two_states(node, disk)
    link = node.json("info", name)["link"]
    other.json("fetch", link)
    assert other.json("verify", name)["bad"] == 0
    other.json("pin", name)
    assert other.json("gc", "--quota", "0", code=11)["kept"]["pinned"] > len(bytes(SECOND.pages[7]))
    other.json("unpin", name)
    assert len(other.json("gc", "--quota", "0", code=11)["evicted"]) == 3
    assert read_parts(other, link) == (DISK, bytes(SECOND), DEVICES)


def test_a_mirror_of_a_state_serves_all_of_it(nodes: Nodes, disk: Path, tmp_path: Path) -> None:
    node, other = nodes.make(), nodes.make()
    name = two_states(node, disk)
    directory = tmp_path / "www"
    node.json("mirror", name, directory)
    node.run("daemon", "stop", "--force")  # this process has read it, and holds a lease
    at = f"{directory}/{name}"
    assert read_parts(other, at) == (DISK, bytes(SECOND), DEVICES)


def test_a_file_or_a_device_of_a_state_is_its_disk(
    nodes: Nodes, disk: Path, tmp_path: Path
) -> None:
    node = nodes.make()
    name = two_states(node, disk)
    out = tmp_path / "out.img"
    done = node.run("export", name, out)
    assert out.read_bytes() == DISK
    assert "its memory is not" in done.err
    socket = tmp_path / "s"
    overlay = tmp_path / "mine.delta"
    with node.started("block", name, "--nbd", f"unix:{socket}", "--overlay", overlay) as block:
        read_until(block, "serving")
        uri = f"nbd+unix:///?socket={socket}"
        assert json.loads(tool("nbdinfo", "--json", uri))["exports"][0]["export-size"] == len(DISK)
        tool("nbdcopy", uri, tmp_path / "copied.img")
        tool("qemu-io", "-f", "raw", "-c", "write -P 9 4096 4096", uri)
    assert (tmp_path / "copied.img").read_bytes() == DISK

    # What was written to that disk is published as an image: nothing of the memory is in it.
    changed = DISK[:4096] + b"\x09" * 4096 + DISK[8192:]
    assert node.json("info", overlay)["size"] == len(DISK)
    made = node.json("publish", overlay, "--name", "mine")
    facts = node.json("info", made["name"])
    assert (facts["state"], facts["size"]) == (False, len(DISK))
    node.run("export", made["name"], out, "--force")
    assert out.read_bytes() == changed
    # The next version of the label of the state, too, is an image again.
    again = node.json("publish", overlay, "--name", "guest")
    assert (again["version"], node.json("info", again["name"])["state"]) == (3, False)
    node.run("export", again["name"], out, "--force")
    assert out.read_bytes() == changed


@needs_fuse
def test_a_mount_shows_the_disk_of_a_state(nodes: Nodes, disk: Path, tmp_path: Path) -> None:
    node = nodes.make()
    name = two_states(node, disk)
    with mounted(node, tmp_path / "mnt"):
        shown = tmp_path / "mnt" / name / "disk.img"
        assert shown.stat().st_size == len(DISK)
        assert shown.read_bytes() == DISK


def test_touches_of_the_memory_are_kept_and_packed(nodes: Nodes, disk: Path) -> None:
    node, other = nodes.make(), nodes.make()
    name = two_states(node, disk)
    state = manifest_of(node, name)
    assert state.machine is not None
    first = state.machine.memory.blocks.start
    touches = [Touch(first + 20, 5, 0), Touch(3, 1, 1), Touch(first + 2, 8, 2)]
    data = pack_profile(Profile(state.image_id, state.size, 0, pack_touches(touches)))
    keep_profile(node.home, data)
    made = node.json("optimize", name, "--name", "guest")
    assert (made["layers"], made["stored_blocks"], made["profile"]) == (4, 14, True)
    assert node.json("info", name)["state"] is True
    assert read_parts(other, made["link"]) == (DISK, bytes(SECOND), DEVICES)
    optimized = manifest_of(other, made["link"])
    assert list(expected_touches(other.home, optimized)) == touches
    # The next state has them, too: its memory is at the same place.
    third = suspend(node, name, "guest", {8: noise(88)}, DEVICES)
    assert list(expected_touches(node.home, manifest_of(node, name))) == touches
    assert third["profile"] is True
    # Packed otherwise it is the same memory.
    assert node.json("squash", name)["layers"] == 2
    assert list(expected_touches(node.home, manifest_of(node, name))) == touches
    # For a boot of its disk they say nothing, nor for the memory of another boot.
    assert expected_touches(node.home, manifest_of(node, name), boots=True) == ()
    later = suspend(node, "disk", "guest", FIRST, DEVICES, suspended=1_700_000_001)
    assert later["profile"] is False


KERNEL = noise(4, 12)
RUNNING = KERNEL[: 10 * 4096] + bytes(9) + KERNEL[10 * 4096 + 9 :]
WITH_KERNEL = FIRST.pages | {40 + page: RUNNING[page * 4096 :][:4096] for page in range(12)}


def state_with_kernel(node: Node, disk: Path, cache: Path) -> str:
    """The name of a state with a profile; a machine with that cache has the guest's kernel."""
    folder = cache / "p2pcloop" / "kernels"
    folder.mkdir(parents=True)
    folder.joinpath("vmlinux-1").write_bytes(elf((PT_LOAD, 40 * 4096, KERNEL)))
    image = seeded(node, disk)
    name: str = suspend(node, image, "guest", Memory(WITH_KERNEL), DEVICES)["name"]
    state = manifest_of(node, name)
    assert state.machine is not None
    touches = pack_touches([Touch(state.machine.memory.blocks.start, 60, 0)])
    keep_profile(node.home, pack_profile(Profile(state.image_id, state.size, 0, touches)))
    return name


def test_a_state_with_pages_of_its_kernel_as_dictionary(
    nodes: Nodes, disk: Path, tmp_path: Path
) -> None:
    """Machines without the kernel read it, and its next versions are as those of other states."""
    node, other = nodes.make(), nodes.make()
    name = state_with_kernel(node, disk, tmp_path / "cache")
    made = []
    for cache in ("cache", "cache", "none", "cache"):
        node.environment["XDG_CACHE_HOME"] = str(tmp_path / cache)
        made.append(node.json("optimize", name, "--name", "guest"))
        assert (made[-1]["layers"], made[-1]["stored_blocks"]) == (3, 42)
    assert [each["version"] - made[0]["version"] for each in made] == [0, 0, 1, 2]
    for cache, needs_all in (("cache", False), ("none", True)):
        node.environment["XDG_CACHE_HOME"] = str(tmp_path / cache)
        fetched = node.json("profile", "show", name)["fetched"]
        assert (fetched == made[-1]["stored"]) is needs_all
    assert node.json("diff", "--at", "2", name, name)["blocks"] == 0
    link = made[-1]["link"]
    whole = DISK, bytes(Memory(WITH_KERNEL)), DEVICES
    other.json("fetch", link)
    assert other.json("verify", link)["bad"] == 0
    node.json("mirror", name, tmp_path / "www")
    node.run("daemon", "stop", "--force")
    assert read_parts(other, link) == whole
    assert read_parts(nodes.make(), f"{tmp_path}/www/{name}") == whole
    changed = Memory(WITH_KERNEL | {41: noise(41), 44: KERNEL[:4096], 60: WITH_KERNEL[44]})
    known = other.json("info", link)["name"]
    for squash in (False, True):
        suspended = suspend(other, known, "mine", changed, DEVICES)
        if squash:
            suspended = other.json("squash", suspended["name"])
        assert read_parts(other, suspended["link"]) == (DISK, bytes(changed), DEVICES)


def test_the_disk_of_a_state_boots(nodes: Nodes, cloop: Path, tmp_path: Path) -> None:
    node = nodes.make()
    image = node.seed(cloop, "tiny")["name"]
    first = node.json("info", image)
    with Guest(node, image) as guest:
        guest.prompt()
        guest.power_off()
    booted = load_profile(node.home, bytes.fromhex(first["image_id"]))
    assert booted is not None
    made = suspend(node, image, "guest", FIRST, DEVICES)
    state = manifest_of(node, made["name"])
    assert made["profile"] is False, "what a boot reads says nothing about a resume"
    assert expected_touches(node.home, state, boots=True)
    overlay = tmp_path / "mine.delta"
    with Guest(node, made["name"], "--overlay", overlay) as guest:
        guest.prompt()
        assert (
            "is a state of a guest that ran; its disk boots as after a power failure" in guest.said
        )
        assert int(guest.sh("blockdev --getsize64 /dev/vda")) == first["size"]
        guest.sh("echo mine > /root/mine; sync")
        guest.power_off()
    assert load_profile(node.home, state.image_id) is None, "that is for what a resume reads"
    published = node.json("publish", overlay, "--name", "mine")
    out = tmp_path / "out.img"
    node.run("export", published["name"], out)
    assert tool("debugfs", "-R", "cat /root/mine", out) == "mine\n"
