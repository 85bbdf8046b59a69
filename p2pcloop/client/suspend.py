"""Suspending a guest: its own process captures it, and this one makes a state of that."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.publisher import Publisher, choose_secret
from p2pcloop.client.refs import resolve_stored
from p2pcloop.client.state import MANY_LAYERS, Suspended, check_suspendable, make_state
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import DaemonError, GuestError, NotHereError, UsageError, storage_error
from p2pcloop.formats.holes import next_data, next_hole
from p2pcloop.formats.machine_state import MachineState, read_machine_state
from p2pcloop.formats.packing import Fields
from p2pcloop.frozen import dataclass
from p2pcloop.store.guest_record import GuestRecord
from p2pcloop.store.guests import GuestFolder
from p2pcloop.store.home import Home
from p2pcloop.text import printable
from p2pcloop.words import tr


@dataclass(frozen=True, slots=True)
class Wish:
    """How a guest is to be suspended.

    Attributes:
        goes_on: it runs on here.
        private: only users with the whole link can read the state.
        public: announce it as far as the node's settings allow.
        message: one line about it.
        quiet: show no progress.
    """

    goes_on: bool
    private: bool
    public: bool
    message: str
    quiet: bool


def image_of(record: GuestRecord, home: Home) -> StoredRef:
    """The image that a guest runs from.

    Raises:
        UsageError: it is a file of this machine.
        P2pcloopError: as for `resolve_ref`.
    """
    if record.version is None:
        raise UsageError(
            tr(
                "the guest {record} runs from the file {image}, which others cannot have from"
                " this node",
                record=record.name,
                image=printable(record.image),
            ),
            hint="`p2pcloop seed` it, boot it by its name, and suspend that guest",
        )
    return resolve_stored(
        record.image,
        home,
        why_no_file="others cannot have it",
        hint="seed it first",
        at=record.version,
    )


def suspend(
    record: GuestRecord, image: StoredRef, publisher: Publisher, wish: Wish
) -> dict[str, Any]:
    """Suspend a running guest, and publish its state.

    If this fails, or this process ends before the state is served, the guest goes on.

    Args:
        record: of the guest.
        image: what it runs from.

    Returns:
        See `make_state`.

    Raises:
        UsageError, GuestError, BusyError: it cannot be suspended, or not now.
        P2pcloopError: as of `make_state`.
    """
    home = publisher.home
    check_suspendable(image)
    secret = choose_secret(image, publisher, private=wish.private)
    publisher.check_secret(secret)  # before the guest is stopped
    made: dict[str, Any] = {}
    folder = GuestFolder(home, record.name)

    def make(fields: dict[str, Any]) -> None:
        with _opened(fields, image, publisher.image) as guest:
            facts = make_state(
                guest,
                publisher,
                secret=secret,
                message=wish.message,
                public=wish.public,
                quiet=wish.quiet,
            )
        made.update(facts)

    with home.staging() as staging:
        order = {
            "folder": os.fsencode(staging),
            "goes_on": wish.goes_on,
            "disk_length": image.signed.manifest.disk_length,
            "network": record.network.partition(":")[0],
            "host_name": record.name if record.kept else "",
        }
        _Suspend(folder, make, made).run(order)
    return made


class _Suspend:
    """A suspend at the guest's own socket."""

    def __init__(
        self,
        folder: GuestFolder,
        make: Callable[[dict[str, Any]], None],
        made: Mapping[str, Any],
    ) -> None:
        """Connect to nothing yet.

        Args:
            make: makes the state of what was captured.
            made: gets the state's `name` and `version` by that.
        """
        self._folder = folder
        self._make = make
        self._made = made

    def run(self, order: Mapping[str, Any]) -> None:
        """Have the guest captured, make its state, and tell its process so."""
        try:
            with self._connect() as client:
                client.call("suspend", self._take, **order)
        except DaemonError as err:
            if isinstance(err.__cause__, OSError | EOFError) and not self._made:
                raise GuestError(
                    tr("the guest {folder} ended while it was suspended", folder=self._folder.name),
                    hint=tr("`p2pcloop logs {folder}` may tell more", folder=self._folder.name),
                ) from err
            raise

    def _take(self, event: str, fields: dict[str, Any]) -> None:
        if event != "captured":
            return
        self._make(fields)
        with self._connect() as second:
            made = self._made
            second.call("suspend_end", state=made["name"], version=made["version"])

    def _connect(self) -> ControlClient:
        try:
            return ControlClient.connect_to(self._folder.socket_path)
        except NotRunningError as err:
            raise GuestError(
                tr(
                    "the guest {folder} takes no commands: it is one of `run`, it ends, or its home"
                    " is on a file system without sockets",
                    folder=self._folder.name,
                ),
                hint="only guests of `p2pcloop boot` and `resume` do",
            ) from err


@contextmanager
def _opened(
    fields: Mapping[str, Any], image: StoredRef, newest: StoredRef | None
) -> Iterator[Suspended]:
    """What a guest's process has captured.

    Args:
        newest: the last version under the name that the state is to have.
    """
    machine = read_machine_state(Fields(fields["machine"], "a machine"))
    overlay, state = (Path(os.fsdecode(fields[key])) for key in ("overlay", "device_state"))
    with ExitStack() as stack:
        try:
            device_state = state.read_bytes()
            memory = os.open(fields["memory"], os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as err:
            raise NotHereError("the guest ended while it was suspended") from err
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=err.filename), err) from err
        stack.callback(os.close, memory)
        file = _MemoryFile(memory, machine.memory.size, is_whole=fields["whole"])
        over = _earlier(newest, image, machine) if file.is_whole else None
        yield Suspended(image, overlay, file, device_state, machine, over)


class _MemoryFile:
    """A guest's memory in a sparse file; see `Memory`."""

    def __init__(self, descriptor: int, size: int, *, is_whole: bool) -> None:
        self.size = size
        self.is_whole = is_whole
        self._descriptor = descriptor

    def extents(self) -> Sequence[tuple[int, int]]:
        """See `Memory.extents`."""
        found = []
        start = next_data(self._descriptor, 0)
        while start < self.size:
            end = next_hole(self._descriptor, start)
            found.append((start, end - start))
            start = next_data(self._descriptor, end)
        return found

    def read(self, offset: int, length: int) -> bytes:
        """See `Memory.read`."""
        return os.pread(self._descriptor, length, offset)


def _earlier(newest: StoredRef | None, image: StoredRef, machine: MachineState) -> StoredRef | None:
    """The last state under a name, if it is one of a guest of the same image: most of the memory of
    two such guests is the same. Not one of very many layers: those of a guest that is booted and
    suspended again and again come to an end."""
    if newest is None:
        return None
    manifest, below = newest.signed.manifest, image.signed.manifest
    is_state = manifest.machine is not None and manifest.machine.memory == machine.memory
    fits = is_state and len(manifest.layers) < MANY_LAYERS
    return newest if fits and manifest.layers[: len(below.layers)] == below.layers else None
