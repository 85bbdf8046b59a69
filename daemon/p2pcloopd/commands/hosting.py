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
from p2pcloop.words import tr
from p2pcloopd.block.spec import FilesOverlay
from p2pcloopd.commands.guest_options import GuestOptions
from p2pcloopd.guest.disk import choose_files, choose_firmware, disk_of, layer_places, size_of
from p2pcloopd.guest.machine.kvm import probe_kvm
from p2pcloopd.guest.recording import keep_recording
from p2pcloopd.guest.report import Outcome, image_facts, write_report
from p2pcloopd.guest.result import GuestResult
from p2pcloopd.guest.sandbox import syscall_filter
from p2pcloopd.guest.spec import GuestSpec, last_allowed_cpu
from p2pcloopd.guest.system.addresses import USER, Addresses
from p2pcloopd.guest.system.cheatcodes import read_cheatcodes
from p2pcloopd.guest.system.files_root import build_files_initramfs
from p2pcloopd.guest.system.hostname import hostname_part, hostname_words
from p2pcloopd.guest.system.initramfs import HAND_OVER, Part, build_initramfs
from p2pcloopd.guest.system.kernel import Kernel, find_kernel, shared_libraries
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel
from p2pcloopd.guest.vm import Firmware, Vm
from p2pcloopd.guest.with_block_server import ReadyGuest, open_control

if TYPE_CHECKING:
    from trio import SocketListener

    from p2pcloop.store.guests import GuestFolder
    from p2pcloopd.block.spec import BlockServerSpec, MemoryPart
    from p2pcloopd.commands.resuming import Resuming
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
        start: boots the guest and waits for its end.
        prefetch: fetch the image's profile ahead of the guest, and record a profile.
        ending: what the guest's first root does once the root is there.
        words: the command's own for the kernel.
        reachable: whether other programs may follow the guest's console and type there.
        display: an X server for the guest, or None.
        earlier: what to do about a guest that had the name before, as for `OwnGuest`.
        invocation: how the command was called, for `start`; None where that boots no such guest.
        resuming: what the guest goes on with; None for one that boots.
        records_all: record what a resumed guest touches until its end, not only until it rests.
    """

    start: Callable[[ReadyGuest], None]
    prefetch: bool
    ending: Part = HAND_OVER
    words: str = ""
    reachable: bool = False
    display: Display | None = None
    earlier: Earlier = "refuse"
    invocation: Invocation | None = None
    resuming: Resuming | None = None
    records_all: bool = False


def prepare(options: GuestOptions) -> None:
    """Find out what depends on this system alone; `Hosting.run` would do so later."""
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


@dataclass(frozen=True, slots=True)
class Hosting:
    """A command's guest.

    Attributes:
        ref: the image, as the user named it.
        target: the image.
        options: of the command.
        plan: what the command does with its guest.
        ports: of this machine, which lead into the guest.
    """

    ref: str
    target: ImageFile | StoredRef
    options: GuestOptions
    plan: Plan
    ports: tuple[BoundPort, ...] = ()

    def run(self, started: float) -> GuestResult:
        """Run the guest to its end; keep its first reads as a profile, and write the report.

        Args:
            started: seconds of the monotonic clock at the command's start.

        Raises:
            P2pcloopError: there was no guest, or none to its end.
        """
        outcome = Outcome(started=started)
        target, options, plan = self.target, self.options, self.plan
        home, overlay = options.home, options.overlay
        if isinstance(target, StoredRef):
            target.check_secret()
        firmware = choose_firmware(target, options.vm, options.firmware, home)
        if firmware is not None:
            _check_firmware_options(options, plan)
        mode, size = options.overlay_mode, options.overlay_size
        files = choose_files(target, overlay, mode, size, home, whole_disk=firmware is not None)
        before = None if options.report is None else _status(target)
        disk = disk_of(
            target,
            overlay,
            home,
            prefetch=plan.prefetch,
            fill=options.fill,
            files=files,
            resumes=plan.resuming is not None,
        )
        fresh = overlay is None or not overlay.exists()
        _check_overlay_unused(home, overlay)
        with temporary_folder() as folder, ExitStack() as stack:
            own = stack.enter_context(OwnGuest(home, options.name, plan.earlier))
            if plan.resuming is not None:
                disk = plan.resuming.with_memory(disk, folder, stack)
            spec, listener = self._open(own, folder, files, firmware, disk.memory, stack)
            disk = _with_places(disk, own.folder)
            plan.start(ReadyGuest(own, spec, disk, outcome, listener, _late_node(target)))
            _record_end(own, outcome, arrives=isinstance(target, StoredRef))
        try:
            self._keep_facts(outcome, disk, before, fresh=fresh)
        finally:
            outcome.check()
        assert outcome.guest is not None
        return outcome.guest

    def _keep_facts(
        self,
        outcome: Outcome,
        disk: BlockServerSpec,
        before: dict[str, Any] | None,
        *,
        fresh: bool,
    ) -> None:
        """Keep what the guest read first, and write the report."""
        target, options, plan = self.target, self.options, self.plan
        recorded = keep_recording(
            options.home,
            size_of(target),
            outcome,
            fresh=fresh,
            display=plan.display is not None,
            known=None if plan.resuming is None else plan.resuming.known(disk),
            whole=plan.records_all,
        )
        if options.report is not None:
            facts = image_facts(target, before, options.home) | outcome.facts()
            facts |= {"overlay_mode": disk.mode, "profile": recorded}
            write_report(options.report, facts)

    def _open(
        self,
        own: OwnGuest,
        folder: Path,
        files: FilesOverlay | None,
        firmware: Firmware | None,
        memory: MemoryPart | None,
        stack: ExitStack,
    ) -> tuple[GuestSpec, SocketListener | None]:
        """Write the guest's record, with its network card and its control socket open until `stack`
        is closed."""
        options, plan = self.options, self.plan
        card = _card(options, own, self.ports, stack)
        wire = USER if card is None else card.addresses
        listener = open_control(own, stack) if plan.reachable else None
        own.begin(**self._record_facts(wire))
        parts, words = _extras(options, plan)
        spec = GuestSpec(
            disk_socket=folder / "vda",
            more_disks=() if files is None else (folder / "vdb",),
            initramfs=self._first_root(files, wire, parts),
            memory=options.mem,
            network="user" if options.net.kind == "user" else "none",
            vm=options.vm,
            firmware=firmware,
            kernel=_kernel(options.kernel, options.vm),
            cpu=_cpu(options),
            append=self._append(words),
            forwarded=self.ports,
            opened=options.opened,
            display=plan.display,
            card=card,
            waiting=own.folder.read_waiting,
        )
        if plan.resuming is not None and memory is not None:
            spec = plan.resuming.apply(spec, memory, options.net, card)
        return spec, listener

    def _record_facts(self, wire: Addresses | None) -> dict[str, Any]:
        target, options, display = self.target, self.options, self.plan.display
        address = None if wire is None or options.net.kind == "none" else wire.guest
        stored = target if isinstance(target, StoredRef) else None
        called = self.plan.invocation
        return {
            "ref": self.ref,
            "image": str(target.name),
            "version": None if stored is None else stored.signed.manifest.version,
            "overlay": None if options.overlay is None else str(options.overlay.absolute()),
            "memory": options.mem,
            "network": str(options.net),
            "address": address,
            "ports": [port.option for port in options.ports],
            "opened": list(map(str, options.opened)),
            "words": None if called is None else list(called.words),
            "directory": None if called is None else called.directory,
            "display": None if display is None else display.facts(),
        }

    def _first_root(
        self, files: FilesOverlay | None, wire: Addresses | None, more: Sequence[Part]
    ) -> Callable[[Kernel], bytes]:
        """The function that makes the guest's initramfs."""
        ending = self.plan.ending
        if files is None:
            return partial(build_initramfs, ending=ending, more=more, network=wire)
        places = layer_places(self.target)
        return partial(build_files_initramfs, places=places, ending=ending, more=more, network=wire)

    def _append(self, words: Sequence[str]) -> str:
        """Words for the kernel: the publisher's, ours, and the user's, of which the last one
        counts."""
        target = self.target
        published = target.signed.manifest.boot.append if isinstance(target, StoredRef) else ""
        ours = (self.plan.words, *words)
        return " ".join(filter(None, (published, *ours, self.options.append)))


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
                tr(
                    "a disk that boots by its own boot loader has its own kernel: {option} says"
                    " nothing",
                    option=option,
                ),
                hint="leave it out; or boot its root partition (without --firmware and --raw)",
            )


def _card(
    options: GuestOptions, own: OwnGuest, ports: tuple[BoundPort, ...], stack: ExitStack
) -> Card | None:
    """The guest's network card, until `stack` is closed; None where it needs no tap."""
    if options.net.kind in ("none", "user"):
        return None
    from p2pcloopd.guest.network.opening import open_card  # noqa: PLC0415  few guests have one

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
        tr(
            "the guest {user} has {overlay} open (process {pid})",
            user=user.name,
            overlay=overlay,
            pid=user.pid,
        ),
        hint=tr("end it with `p2pcloop stop {user}`, or give another overlay", user=user.name),
    )


def _with_places(disk: BlockServerSpec, folder: GuestFolder) -> BlockServerSpec:
    """Tell a block server where it says what its guest waits for, and what came; and which files
    are those of a guest that runs."""
    return replace(
        disk,
        waiting=folder.waiting_path,
        fetched=folder.fetched_path,
        timeline=folder.timeline_path,
        leftovers=folder.of_running,
    )


def _record_end(own: OwnGuest, outcome: Outcome, *, arrives: bool) -> None:
    """Record how the guest ended, and let it go; its own end matters more than errors here.

    Args:
        arrives: whether bytes of the image may come from others.
    """
    facts = outcome.facts()
    state, version = (outcome.guest and outcome.guest.state) or (None, None)
    came = own.folder.read_fetched()
    try:
        if facts["exit"] == "suspended":
            own.keep()
        own.end(
            state=state,
            state_version=version,
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
    cheatcodes = read_cheatcodes(options.append)
    words += cheatcodes.words
    name = options.name or cheatcodes.host_name
    if name is not None and plan.reachable:  # a command of `run` has no init
        parts.append(hostname_part(name))
        words.append(hostname_words(name))
    return parts, words


def _late_node(target: ImageFile | StoredRef) -> Callable[[], object] | None:
    """What starts p2pcloopd for an image that was found without it."""
    client = target.client if isinstance(target, StoredRef) else None
    return client.begin if isinstance(client, LateClient) else None


def _status(target: ImageFile | StoredRef) -> dict[str, Any] | None:
    return target.client.call("status") if isinstance(target, StoredRef) else None
