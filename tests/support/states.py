"""States of guests that never ran: a disk of a real image, and memory made up."""

from __future__ import annotations

import random
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from p2pcloop.client.open_stored import open_stored
from p2pcloop.client.publisher import Publisher, choose_secret
from p2pcloop.client.refs import resolve_ref, resolve_stored
from p2pcloop.client.state import Suspended, make_state
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.formats.manifest import Manifest
from p2pcloop.image.device import ImageDevice
from p2pcloop.making.targets import DeviceTarget
from tests.support.programs import Node

MEMORY = 4 << 20
PAGES = MEMORY // 4096


def noise(seed: int, pages: int = 1) -> bytes:
    """Content that nothing compresses, another one for each seed."""
    return random.Random(seed).randbytes(4096 * pages)


@dataclass
class Memory:
    """The memory of a guest: pages by their numbers; see `making.state.Memory`."""

    pages: dict[int, bytes]
    is_whole: bool = True
    size: int = MEMORY

    def __bytes__(self) -> bytes:
        return b"".join(self.pages.get(page, bytes(4096)) for page in range(PAGES))

    def extents(self) -> list[tuple[int, int]]:
        """Those of pages in a row together."""
        found: list[tuple[int, int]] = []
        for page in sorted(self.pages):
            if found and sum(found[-1]) == page * 4096:
                found[-1] = found[-1][0], found[-1][1] + 4096
            else:
                found.append((page * 4096, 4096))
        return found

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of pages that it has."""
        whole = [self.pages[page] for page in range(offset // 4096, (offset + length) // 4096)]
        return b"".join(whole)

    def close(self) -> None:
        """There is nothing to give back."""


def machine(disk_length: int, device_state: bytes, **facts: Any) -> MachineState:
    """A machine with `MEMORY` bytes of memory."""
    known: dict[str, Any] = {
        "disk_length": disk_length,
        "memory_length": MEMORY,
        "device_state_length": len(device_state),
        "type": "pc-q35-7.2",
        "cpu": "qemu64,+aes",
        "accelerator": "tcg",
        "qemu": "7.2.22",
        "suspended": 1_700_000_000,
    }
    return MachineState(**(known | facts))


def stored(node: Node, ref: str, stack: ExitStack) -> StoredRef:
    """An image that a node knows."""
    found = resolve_stored(ref, node.home, why_no_file="", hint="")
    stack.enter_context(found.client)
    return found


def manifest_of(node: Node, ref: str) -> Manifest:
    """The manifest of an image that a node knows."""
    with ExitStack() as stack:
        return stored(node, ref, stack).signed.manifest


def suspend(
    node: Node,
    ref: str,
    label: str,
    memory: Memory | dict[int, bytes],
    device_state: bytes,
    *,
    overlay: Path | None = None,
    over: str | None = None,
    private: bool = False,
    message: str = "",
    **facts: Any,
) -> dict[str, Any]:
    """Make a state of a guest that ran from `ref`; return what `make_state` says.

    Args:
        memory: all of it, or only the pages that differ from those of the state `ref`.
        over: the state that the new one is a delta of, if that is not `ref`.
        facts: of the machine; and `secret`, where it is not to be chosen.
    """
    with ExitStack() as stack:
        image = stored(node, ref, stack)
        above = None if over is None else stored(node, over, stack)
        client = stack.enter_context(node.connect())
        publisher = stack.enter_context(Publisher.of(node.home, client, label, None))
        secret = facts.pop("secret", False)
        if not isinstance(memory, Memory):
            memory = Memory(memory, is_whole=False)
        length = facts.pop("disk_length", image.signed.manifest.disk_length)
        what = machine(length, device_state, **facts)
        guest = Suspended(image, overlay, memory, device_state, what, above)
        if secret is False:
            secret = choose_secret(image, publisher, private=private)
        return make_state(guest, publisher, secret=secret, message=message, quiet=True)


def read_parts(node: Node, ref: str, *, at: int = 0) -> tuple[bytes, bytes, bytes]:
    """Disk, memory and device state of a state, by their exact bytes."""
    with ExitStack() as stack:
        found = resolve_ref(ref, node.home, at=at)
        assert isinstance(found, StoredRef)
        stack.enter_context(found.client)
        opened = open_stored(found, node.home, stack)
        target = DeviceTarget(ImageDevice(opened.image), opened.supply, ())
        whole = target.read(0, target.size // 4096)
        parts = found.signed.manifest.machine
        assert parts is not None
        assert len(whole) == parts.size
        disk, memory, state = (
            whole[part.start : part.start + part.length]
            for part in (parts.disk, parts.memory, parts.device_state)
        )
        return disk, memory, state
