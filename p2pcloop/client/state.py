"""Publishing a state: what a suspended guest had on its disk, in its memory and in its devices."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from p2pcloop.client.delta import Maker, delta_facts
from p2pcloop.client.open_stored import Opened, open_stored
from p2pcloop.client.publisher import Publisher, reference
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import notify
from p2pcloop.errors import UsageError
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.formats.manifest import MAX_LAYERS
from p2pcloop.formats.overlay import Overlay
from p2pcloop.frozen import dataclass
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.changes import Target
from p2pcloop.making.encoding import WHOLE
from p2pcloop.making.state import Memory, MemoryTarget, state_target
from p2pcloop.making.targets import overlay_target
from p2pcloop.words import tr

_SEARCH_FROM = 1 << 10
"""Changed blocks from which on the layers below are searched for equal ones: to read them takes a
second for each 1.5 GB, and a guest that went on for a minute has changed fewer."""

MANY_LAYERS = 128
"""Layers from which on a user is told to join them."""


@dataclass(frozen=True, slots=True)
class Suspended:
    """A guest that was suspended. Nothing of it may change until its state is made.

    Attributes:
        image: what its overlay lies over: the image that it was booted from, or the state that it
            was resumed from.
        overlay: flushed; a path is opened read-only. None if the guest wrote nothing.
        memory: all of it; or, where it is not whole, only the pages that the guest changed since it
            was resumed: then `image` is the state that it came from, and `over` is None.
        device_state: the bytes that QEMU wrote.
        machine: what it ran on.
        over: the state that the new one is to be a delta of, where that is not `image` but an
            earlier one of the same guest, which went on; its layers lie on those of `image`.
    """

    image: StoredRef
    overlay: Path | Overlay | None
    memory: Memory
    device_state: bytes
    machine: MachineState
    over: StoredRef | None = None


def check_suspendable(image: StoredRef) -> None:
    """Refuse a guest whose state could not be made; to be called before it is stopped.

    Args:
        image: what it was booted or resumed from.

    Raises:
        UsageError: it has as many layers as an image may have.
    """
    if len(image.signed.manifest.layers) >= MAX_LAYERS:
        raise UsageError(
            tr(
                "{image} has {max_layers} layers, and a state of its guest would have one more",
                image=image.name,
                max_layers=MAX_LAYERS,
            ),
            hint=tr(
                "end the guest, join the layers (`p2pcloop squash {image}`), and boot or resume"
                " what comes out",
                image=image.name,
            ),
        )


def make_state(
    guest: Suspended,
    publisher: Publisher,
    *,
    secret: bytes | None,
    message: str = "",
    public: bool = False,
    quiet: bool = False,
) -> dict[str, Any]:
    """Publish a suspended guest as the next version under the publisher's name.

    Args:
        guest: what was captured.
        publisher: signs and has the state served.
        secret: of a private state (`choose_secret`); None for one that every reader can open.
        message: one line about it.
        public: announce it as far as the node's settings allow.
        quiet: show no progress.

    Returns:
        As of `Publisher.release`, with `base` (the name of what it is a delta of), `size` (of the
        disk), `memory`, `layers`, and the facts of the layer as of `publish`.

    Raises:
        UsageError: the guest's disk is no block overlay of `image`; what is said of the guest does
            not fit its image; or as of `Publisher.release`.
        MismatchError: the overlay is of another image.
        P2pcloopError: a part cannot be read, or p2pcloopd could not serve the state.
    """
    publisher.check_secret(secret)
    base = guest.over or guest.image
    _check(guest, base, secret)
    with ExitStack() as stack:
        below = open_stored(base, publisher.home, stack)
        opened = below if base is guest.image else open_stored(guest.image, publisher.home, stack)
        target = _target(guest, opened, None if opened is below else below.image, stack)
        maker = Maker(publisher, secret, quiet)
        made = maker.over(below, target, shape=WHOLE, search_from=_SEARCH_FROM, ask=False)
    boot = base.signed.manifest.boot
    content = replace(made.content, boot=boot, profile=b"", length=0, machine=guest.machine)
    if len(content.layers) > MANY_LAYERS:
        notify(
            tr(
                "it has {layers_count} layers, of at most {max_layers}: `p2pcloop squash"
                " {publisher}` joins them, before it is resumed",
                layers_count=len(content.layers),
                max_layers=MAX_LAYERS,
                publisher=publisher.name,
            )
        )
    answer = publisher.release(
        content, message=message, parent=reference(base), public=public, secret=secret
    )
    return answer | {
        "base": base.name,
        "size": content.disk_length,
        "memory": guest.machine.memory_length,
        "layers": len(content.layers),
        **delta_facts(made.delta),
    }


def _check(guest: Suspended, base: StoredRef, secret: bytes | None) -> None:
    """Refuse what is no state of this guest."""
    manifest, below = guest.image.signed.manifest, base.signed.manifest
    if below.private and secret != base.secret:
        raise UsageError(
            tr("{base} is private, and this would be under another key, or none", base=base.name)
        )
    if manifest.disk_length != guest.machine.disk_length:
        raise UsageError(
            tr(
                "the guest's disk has {disk_length} bytes, and that of {image} has {disk_length2}",
                disk_length=guest.machine.disk_length,
                image=guest.image.name,
                disk_length2=manifest.disk_length,
            )
        )
    if not guest.memory.is_whole and (manifest.machine is None or guest.over is not None):
        raise UsageError("only some of the guest's memory is known, and not over what it lies")
    if below.layers[: len(manifest.layers)] != manifest.layers:
        raise UsageError(
            tr(
                "{base} does not lie on the layers of {image}",
                base=base.name,
                image=guest.image.name,
            )
        )


def _target(
    guest: Suspended, opened: Opened, below: MergedImage | None, stack: ExitStack
) -> Target:
    """The device of the state; `below` is what it is compared with, if that is not its image."""
    overlay = _open_overlay(guest, opened.image, stack)
    size = guest.machine.disk.size
    disk = overlay_target(opened.image, overlay, opened.supply, below, size)
    return state_target(disk, MemoryTarget(guest.memory), guest.device_state, guest.machine)


def _open_overlay(guest: Suspended, image: MergedImage, stack: ExitStack) -> Overlay | None:
    if not isinstance(guest.overlay, Path):
        return guest.overlay
    if Overlay.inspect(guest.overlay).mode != "block":
        raise UsageError(
            tr(
                "{overlay} holds changed files on a disk of its own: a guest with two disks"
                " cannot be suspended",
                overlay=guest.overlay,
            ),
            hint="boot it without --overlay: then its changes are in its memory",
        )
    overlay = Overlay.open(guest.overlay, image_id=image.image_id, read_only=True)
    stack.callback(overlay.close)
    return overlay
