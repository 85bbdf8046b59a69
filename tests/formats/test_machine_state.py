"""States: manifests of format 7, and the parts of a state's device."""

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import FormatError, MismatchError
from p2pcloop.formats.boot_parameters import BootParameters, Root
from p2pcloop.formats.machine_state import (
    MAX_DEVICE_STATE,
    MAX_DEVICES,
    MAX_FIRMWARE,
    MAX_MEMORY,
    MachineState,
    Part,
)
from p2pcloop.formats.manifest import Manifest, open_manifest, sign_manifest
from p2pcloop.formats.profile import Touch, pack_touches
from tests.formats.test_manifest import DATA, MANIFEST_2, MANIFEST_5, PRIVATE, fields_of, sign

GOLDEN_7 = DATA / "manifest-v7.bin"
DISK, MEMORY = 600 << 20, 512 << 20
MACHINE = MachineState(
    disk_length=DISK - 2048,
    memory_length=MEMORY,
    device_state_length=340_001,
    type="pc-q35-7.2",
    cpu="qemu64,+aes,+cx16",
    accelerator="tcg",
    qemu="7.2.22 (Debian 1:7.2+dfsg-7+deb12u18)",
    suspended=1_700_000_000,
    devices=("isa-serial,index=0", "virtio-blk-pci,addr=02,bootindex=1"),
    firmware=(("bios", bytes(range(32))), ("kvmvapic", bytes(range(32, 64)))),
    network="user",
    host_name="g1",
)
STATE = replace(
    MANIFEST_2,
    size=DISK + MEMORY + 344_064,
    machine=MACHINE,
    profile=pack_touches([Touch((DISK + MEMORY) // 4096, 84, 0), Touch(DISK // 4096, 3, 7)]),
)


def test_the_golden_state_of_format_7() -> None:
    assert open_manifest(GOLDEN_7.read_bytes()).manifest == STATE
    assert sign_manifest(STATE, PRIVATE) == GOLDEN_7.read_bytes()


def test_any_flipped_byte_of_the_golden_state_is_noticed() -> None:
    golden = GOLDEN_7.read_bytes()
    for at in range(len(golden)):
        damaged = bytearray(golden)
        damaged[at] ^= 1 << at % 8
        with pytest.raises((FormatError, MismatchError)):
            open_manifest(bytes(damaged))


def test_the_parts_lie_one_behind_the_other() -> None:
    assert Part(0, DISK - 2048) == MACHINE.disk
    assert Part(DISK, MEMORY) == MACHINE.memory
    assert Part(DISK + MEMORY, 340_001) == MACHINE.device_state
    assert (MACHINE.disk.size, MACHINE.disk.end) == (DISK, DISK)
    assert MACHINE.memory.blocks == range(DISK // 4096, (DISK + MEMORY) // 4096)
    assert MACHINE.device_state.size == 344_064
    assert MACHINE.size == STATE.size
    assert (STATE.disk_size, STATE.disk_length) == (DISK, DISK - 2048)


def test_a_state_without_more_has_no_empty_fields() -> None:
    machine = replace(MACHINE, devices=(), firmware=(), host_name="")
    plain = replace(STATE, machine=machine, profile=b"", message="", sources=())
    fields = fields_of(sign_manifest(plain, PRIVATE))
    assert fields["format"] == 7
    assert not {"devices", "firmware", "host_name"} & set(fields["machine"])
    assert open_manifest(sign_manifest(plain, PRIVATE)).manifest == plain


def test_an_older_program_says_that_it_cannot_read_a_state(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("p2pcloop.formats.manifest.FORMATS", (1, 2, 3, 4, 5, 6))
    with pytest.raises(FormatError, match="of format 7; this program reads") as caught:
        open_manifest(GOLDEN_7.read_bytes())
    assert "newer p2pcloop" in str(caught.value.hint)


def test_another_format_with_a_machine_is_a_second_spelling() -> None:
    fields = fields_of(GOLDEN_7.read_bytes())
    with pytest.raises(FormatError, match="second spelling"):
        open_manifest(sign(fields | {"format": 6}))
    del fields["machine"]
    with pytest.raises(FormatError, match="second spelling"):
        open_manifest(sign(fields))


@pytest.mark.parametrize(
    ("manifest", "message"),
    [
        (replace(STATE, size=STATE.size + 4096), "not the whole of its device"),
        (replace(STATE, size=STATE.size - 4096, profile=b""), "not the whole of its device"),
        (replace(STATE, length=STATE.size - 5), "the length of a state is that of its parts"),
        (replace(MANIFEST_5, size=STATE.size, machine=MACHINE), "withdraws an image"),
        (
            replace(STATE, boot=BootParameters("ext4", "", (Root(DISK, 4096),))),
            "overlap or lie outside",
        ),
        (replace(STATE, profile=pack_touches([Touch(STATE.size // 4096, 1, 0)])), "does not have"),
    ],
)
def test_a_state_that_contradicts_itself_is_not_signed(manifest: Manifest, message: str) -> None:
    with pytest.raises(FormatError, match=message):
        sign_manifest(manifest, PRIVATE)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"disk": 0}, "'disk' of 'machine' of a manifest is not within"),
        ({"disk": (1 << 44) + 1}, "'disk' of 'machine' of a manifest is not within"),
        ({"disk": True}, "'disk' of 'machine' of a manifest is not an integer"),
        ({"memory": 0}, "'memory' of 'machine' of a manifest is not within"),
        ({"memory": MEMORY + 1}, "memory of a state is not a multiple of 4096"),
        ({"memory": MAX_MEMORY + 4096}, "'memory' of 'machine' of a manifest is not within"),
        ({"device_state": 0}, "'device_state' of 'machine' of a manifest is not within"),
        ({"device_state": MAX_DEVICE_STATE + 1}, "'device_state' of 'machine' of a manifest"),
        ({"type": "pc,graphics=off"}, "'type' of the machine of a state is not of the form"),
        ({"type": ""}, "'type' of the machine of a state is not of the form"),
        ({"type": "p" * 65}, "'type' of the machine of a state is not of the form"),
        ({"type": b"pc"}, "'type' of 'machine' of a manifest is not text"),
        ({"cpu": "-cpu"}, "'cpu' of the machine of a state is not of the form"),
        ({"cpu": "qemu64 -drive"}, "'cpu' of the machine of a state is not of the form"),
        ({"cpu": "q" * 1025}, "too long"),
        ({"accelerator": "xen"}, "'xen', not one of kvm, tcg"),
        ({"qemu": "7.2\n"}, "not printable"),
        ({"qemu": "7" * 129}, "too long"),
        ({"suspended": -1}, "'suspended' of 'machine' of a manifest is not within"),
        ({"suspended": 253_402_300_800}, "'suspended' of 'machine' of a manifest is not within"),
        ({"network": "tap"}, "'tap', not one of none, user, lan, bridge"),
        ({"host_name": ""}, "'host_name' of the machine of a state is not of the form"),
        ({"host_name": "a/b"}, "'host_name' of the machine of a state is not of the form"),
        ({"host_name": "a" * 64}, "'host_name' of the machine of a state is not of the form"),
        ({"devices": []}, "second spelling"),
        ({"devices": "isa-serial"}, "'devices' of 'machine' of a manifest is not a list"),
        ({"devices": [7]}, "a device of the machine of a state is not of the form"),
        ({"devices": ["a\nb"]}, "a device of the machine of a state is not of the form"),
        ({"devices": ["d" * 257]}, "a device of the machine of a state is not of the form"),
        ({"devices": ["d"] * (MAX_DEVICES + 1)}, "more than 64 items"),
        ({"firmware": {}}, "second spelling"),
        ({"firmware": {"bios": bytes(31)}}, "not 32 bytes"),
        ({"firmware": {"../bios": bytes(32)}}, "role of a firmware of a state is not of the form"),
        ({"firmware": {f"r{n}": bytes(32) for n in range(MAX_FIRMWARE + 1)}}, "more than 16"),
        ({"path": "/etc/passwd"}, "unknown fields: 'path'"),
    ],
)
def test_signed_lies_about_a_machine_are_refused(changes: dict[str, Any], message: str) -> None:
    fields = fields_of(GOLDEN_7.read_bytes())
    fields["machine"] |= changes
    with pytest.raises(FormatError, match=message):
        open_manifest(sign(fields))


@pytest.mark.parametrize("key", sorted(MACHINE.to_map().keys() - {"devices", "firmware"}))
def test_a_machine_that_lacks_a_field_is_refused(key: str) -> None:
    fields = fields_of(GOLDEN_7.read_bytes())
    del fields["machine"][key]
    if key == "host_name":
        open_manifest(sign(fields))
        return
    with pytest.raises(FormatError, match=f"has no field '{key}'"):
        open_manifest(sign(fields))


WORDS = st.from_regex(r"[a-z0-9][a-z0-9.,=+-]{0,40}", fullmatch=True)

FIRMWARE = st.dictionaries(
    st.from_regex(r"[a-z][a-z0-9-]{0,31}", fullmatch=True),
    st.binary(min_size=32, max_size=32),
    max_size=MAX_FIRMWARE,
)


@st.composite
def machines(draw: st.DrawFn) -> MachineState:
    return MachineState(
        disk_length=draw(st.integers(1, 1 << 40)),
        memory_length=4096 * draw(st.integers(1, MAX_MEMORY // 4096)),
        device_state_length=draw(st.integers(1, MAX_DEVICE_STATE)),
        type=draw(st.from_regex(r"[a-z0-9][a-z0-9._-]{0,63}", fullmatch=True)),
        cpu=draw(WORDS),
        accelerator=draw(st.sampled_from(["kvm", "tcg"])),
        qemu=draw(st.text(st.characters(categories=["L", "N", "P"]), max_size=128)),
        suspended=draw(st.integers(0, 253_402_300_799)),
        devices=tuple(draw(st.lists(WORDS, max_size=MAX_DEVICES))),
        firmware=tuple(sorted(draw(FIRMWARE).items())),
        network=draw(st.sampled_from(["none", "user", "lan", "bridge"])),
        host_name=draw(st.from_regex(r"([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?)?", fullmatch=True)),
    )


@given(machines())
def test_what_is_written_is_read(machine: MachineState) -> None:
    machine.check()
    state = replace(STATE, size=machine.size, machine=machine, profile=b"")
    data = sign_manifest(state, PRIVATE)
    assert open_manifest(data).manifest == state
    parts = (machine.disk, machine.memory, machine.device_state)
    starts = [0, *(part.end for part in parts)]
    assert starts == [part.start for part in parts] + [machine.size]
    assert all(part.length <= part.size < part.length + 4096 for part in parts)
