"""Runs the guest of a command, once the image is known."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.whole import LateClient
from p2pcloop.errors import BusyError, P2pcloopError, StorageError, UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.guests import Earlier, OwnGuest, user_of_overlay
from p2pcloop.store.home import Home
from p2pcloop.store.temporary_folder import temporary_folder
from p2pcloopd.block.spec import FilesOverlay
from p2pcloopd.commands.guest_options import GuestOptions
from p2pcloopd.guest.boot import Start, open_control
from p2pcloopd.guest.disk import choose_files, choose_firmware, disk_of, layer_places, size_of
from p2pcloopd.guest.machine.kvm import disk_protocol, probe_kvm
from p2pcloopd.guest.recording import keep_recording
from p2pcloopd.guest.report import Outcome, image_facts, write_report
from p2pcloopd.guest.sandbox import syscall_filter
from p2pcloopd.guest.spec import GuestResult, GuestSpec, last_allowed_cpu
from p2pcloopd.guest.system.addresses import USER, Addresses
from p2pcloopd.guest.system.files_root import build_files_initramfs
from p2pcloopd.guest.system.hostname import hostname_part, hostname_words
from p2pcloopd.guest.system.initramfs import HAND_OVER, Part, build_initramfs
from p2pcloopd.guest.system.kernel import Kernel, find_kernel, shared_libraries
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel
from p2pcloopd.guest.vm import Vm

if TYPE_CHECKING:
    from p2pcloopd.guest.display.spec import Display
    from p2pcloopd.guest.network.card import Card
    from p2pcloopd.guest.network.forwarding import BoundPort

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Invocation:
    """A call of `p2pcloop boot`.

    Attributes:
        words: behind `p2pcloop boot`.
        directory: the working directory.
    """

    words: tuple[str, ...]
    directory: str


@dataclass(frozen=True, slots=True)
class Plan:
    """What a command does with its guest.

    Attributes:
        start: runs the guest; of an image that is all here, it starts p2pcloopd meanwhile.
        prefetch: fetch the image's profile ahead of the guest, and record a profile.
        ending: what the guest's first root does once the root is there.
        words: the command's own for the kernel.
        reachable: whether other programs may follow the guest's console and type there.
        display: an X server for the guest, or None.
        earlier: what to do about a guest that had the name before, as for `OwnGuest`.
        invocation: how the command was called, for `start`; None where that boots no such guest.
    """

    start: Start
    prefetch: bool
    ending: Part = HAND_OVER
    words: str = ""
    reachable: bool = False
    display: Display | None = None
    earlier: Earlier = "refuse"
    invocation: Invocation | None = None


def prepare(options: GuestOptions) -> None:
    """Find out what depends on this system alone; `host` would do so later."""
    kernel = _kernel(options.kernel, options.vm)
    if options.vm == "qemu":
        probe_kvm()
    elif isinstance(kernel, Kernel):
        shared_libraries(kernel.path)
    with suppress(P2pcloopError):  # as above
        syscall_filter.build(socket.AF_UNIX)


@cache
def _kernel(path: Path | None, vm: Vm) -> Kernel | Path | None:
    """The kernel, or the path where there is none: `run_guest` raises the error."""
    try:
        return find_kernel(path) if vm == "uml" else find_stock_kernel(path)
    except P2pcloopError:
        return path


def host(
    ref: str,
    target: ImageFile | StoredRef,
    options: GuestOptions,
    plan: Plan,
    started: float,
    ports: tuple[BoundPort, ...] = (),
) -> GuestResult:
    """Run a guest to its end; keep its first reads as a profile, and write the report.

    Args:
        ref: the image, as the user named it.
        target: the image.
        options: of the command.
        plan: what it does with its guest.
        started: seconds of the monotonic clock at the command's start.
        ports: of this machine, which lead into the guest.

    Raises:
        P2pcloopError: there was no guest, or none to its end.
    """
    outcome = Outcome(started=started)
    home, overlay = options.home, options.overlay
    if isinstance(target, StoredRef):
        target.check_secret()
    firmware = choose_firmware(target, options.vm, options.firmware, home)
    if firmware is not None:
        _check_firmware_options(options, plan)
    mode, size = options.overlay_mode, options.overlay_size
    files = choose_files(target, overlay, mode, size, home, whole_disk=firmware is not None)
    before = None if options.report is None else _status(target)
    disk = disk_of(target, overlay, home, prefetch=plan.prefetch, fill=options.fill, files=files)
    fresh = overlay is None or not overlay.exists()
    _check_overlay_unused(home, overlay)
    with temporary_folder() as folder, ExitStack() as stack:
        own = stack.enter_context(OwnGuest(home, options.name, plan.earlier))
        card = _card(options, own, ports, stack)
        wire = USER if card is None else card.addresses
        listener = open_control(own, stack) if plan.reachable else None
        shown = None if plan.display is None else plan.display.facts()
        own.begin(**_record_facts(ref, target, options, wire, plan), display=shown)
        disk = replace(disk, waiting=own.folder.waiting_path, fetched=own.folder.fetched_path)
        parts, words = _extras(options, plan)
        first_root = _first_root(target, files, plan, wire, parts)
        spec = _spec(options, folder, first_root, two=bool(files))
        append = _append(target, plan.words, *words, options.append)
        spec = replace(spec, append=append, forwarded=ports, display=plan.display, card=card)
        spec = replace(spec, waiting=own.folder.read_waiting, firmware=firmware)
        plan.start(own, spec, disk, outcome, listener=listener, late_node=_late_node(target))
        _record_end(own, outcome, arrives=isinstance(target, StoredRef))
    try:
        display = plan.display is not None
        recorded = keep_recording(home, size_of(target), outcome, fresh=fresh, display=display)
        if options.report is not None:
            facts = image_facts(target, before, home) | outcome.facts()
            write_report(options.report, facts | {"overlay_mode": disk.mode, "profile": recorded})
    finally:
        outcome.check()
    assert outcome.guest is not None
    return outcome.guest


def _spec(
    options: GuestOptions, folder: Path, initramfs: Callable[[Kernel], bytes], *, two: bool
) -> GuestSpec:
    """The guest of a command; `two` is whether it has a second disk."""
    return GuestSpec(
        vhost_socket=folder / "vda",
        more_disks=(folder / "vdb",) if two else (),
        initramfs=initramfs,
        memory=options.mem,
        network="user" if options.net.kind == "user" else "none",
        vm=options.vm,
        disk_protocol=disk_protocol() if options.vm == "qemu" else "vhost-user",
        kernel=_kernel(options.kernel, options.vm),
        cpu=_cpu(options),
    )


def _check_firmware_options(options: GuestOptions, plan: Plan) -> None:
    """Refuse what needs a kernel and a first root of this system.

    Raises:
        UsageError: it was asked for.
    """
    given = {
        "--append": options.append,
        "--kernel": options.kernel,
        "--display": plan.display,
        "--autologin, --locale, --keyboard": plan.words,
    }
    if not plan.reachable:
        raise UsageError(
            "a disk that boots by its own boot loader runs its own init: `run` has no say there",
            hint="`boot` it; or seed its root partition (`p2pcloop seed` without --raw), and run"
            " the command in that",
        )
    for option, value in given.items():
        if value:
            raise UsageError(
                f"a disk that boots by its own boot loader has its own kernel: {option} says"
                " nothing",
                hint="leave it out; or boot its root partition (without --firmware and --raw)",
            )


def _card(
    options: GuestOptions, own: OwnGuest, ports: tuple[BoundPort, ...], stack: ExitStack
) -> Card | None:
    """The guest's network card, until `stack` is closed; None where it needs no tap."""
    if options.net.kind in ("none", "user"):
        return None
    from p2pcloopd.guest.network.card import open_card  # noqa: PLC0415  few guests have one

    return stack.enter_context(open_card(options.net, options.home, own.name, ports))


def _check_overlay_unused(home: Home, overlay: Path | None) -> None:
    """Refuse an overlay that a running guest of this home has open.

    Its lock is what keeps others out; this only names the guest.

    Raises:
        BusyError: it is open.
    """
    if overlay is None or (user := user_of_overlay(home, overlay)) is None:
        return
    raise BusyError(
        f"the guest {user.name} has {overlay} open (process {user.pid})",
        hint=f"end it with `p2pcloop stop {user.name}`, or give another overlay",
    )


def _record_facts(
    ref: str,
    target: ImageFile | StoredRef,
    options: GuestOptions,
    wire: Addresses | None,
    plan: Plan,
) -> dict[str, Any]:
    address = None if wire is None or options.net.kind == "none" else wire.guest
    stored = target if isinstance(target, StoredRef) else None
    called = plan.invocation
    return {
        "ref": ref,
        "image": str(target.name),
        "version": None if stored is None else stored.signed.manifest.version,
        "overlay": None if options.overlay is None else str(options.overlay.absolute()),
        "memory": options.mem,
        "network": str(options.net),
        "address": address,
        "ports": [port.option for port in options.ports],
        "words": None if called is None else list(called.words),
        "directory": None if called is None else called.directory,
    }


def _record_end(own: OwnGuest, outcome: Outcome, *, arrives: bool) -> None:
    """Record how the guest ended, and let it go; its own end matters more than errors here.

    Args:
        arrives: whether bytes of the image may come from others.
    """
    facts = outcome.facts()
    came = own.folder.read_fetched()
    try:
        own.end(
            reason=facts["exit"],
            exit_code=facts["exit_code"],
            error=facts.get("error"),
            boot_seconds=facts["boot_seconds"],
            fetched=(0 if came is None else came.count) if arrives else None,
        )
        own.close()
    except StorageError as err:
        _log.warning("the end of the guest %s is not recorded: %s", own.name, err)


def _cpu(options: GuestOptions) -> int | None:
    if options.cpu is None:
        # QEMU's threads wait for each other only now and then.
        return last_allowed_cpu() if options.vm == "uml" else None
    return None if options.cpu == -1 else options.cpu


def _extras(options: GuestOptions, plan: Plan) -> tuple[list[Part], list[str]]:
    """Parts of the guest's first root, and words for its kernel, for what not all guests have."""
    parts, words = [], []
    if plan.display is not None:
        from p2pcloopd.guest.display.access import authority_file  # noqa: PLC0415  few guests
        from p2pcloopd.guest.system.display import display_part, display_words  # noqa: PLC0415

        parts.append(display_part(authority_file(plan.display.cookie), plan.display.variables))
        words.append(display_words())
    if options.name is not None and plan.reachable:  # a command of `run` has no init
        parts.append(hostname_part(options.name))
        words.append(hostname_words(options.name))
    return parts, words


def _first_root(
    target: ImageFile | StoredRef,
    files: FilesOverlay | None,
    plan: Plan,
    wire: Addresses | None,
    more: Sequence[Part],
) -> Callable[[Kernel], bytes]:
    """The function that makes the guest's initramfs."""
    if files is None:
        return partial(build_initramfs, ending=plan.ending, more=more, network=wire)
    places = layer_places(target)
    return partial(
        build_files_initramfs, places=places, ending=plan.ending, more=more, network=wire
    )


def _append(target: ImageFile | StoredRef, *words: str) -> str:
    """Words for the kernel: the publisher's, ours, and the user's, of which the last one counts."""
    published = target.signed.manifest.boot.append if isinstance(target, StoredRef) else ""
    return " ".join(filter(None, (published, *words)))


def _late_node(target: ImageFile | StoredRef) -> Callable[[], object] | None:
    """What starts p2pcloopd for an image that was found without it."""
    client = target.client if isinstance(target, StoredRef) else None
    return client.begin if isinstance(client, LateClient) else None


def _status(target: ImageFile | StoredRef) -> dict[str, Any] | None:
    return target.client.call("status") if isinstance(target, StoredRef) else None
