"""Runs a guest to its end: boots the kernel, again after each reboot, and attends to its user.

machine/ has what the kernel runs on; running.py has what an owner does with the guest meanwhile.
"""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace

import trio

from p2pcloop.client import guests
from p2pcloop.errors import GuestError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.entry import plain_errors
from p2pcloopd.guest.console import console
from p2pcloopd.guest.console.escape import HELP, NOT_LEFT, Command
from p2pcloopd.guest.console.keyboard import Keyboard
from p2pcloopd.guest.console.messages import report, say
from p2pcloopd.guest.console.prompts import PromptWatch
from p2pcloopd.guest.console.signals import counted_signals
from p2pcloopd.guest.events import Events
from p2pcloopd.guest.machine.choice import choose_machine
from p2pcloopd.guest.machine.machine import Boot, Console, Machine
from p2pcloopd.guest.quiet_end import QuietEnd
from p2pcloopd.guest.quiet_start import QuietStart
from p2pcloopd.guest.result import GuestResult, Reason, StateName
from p2pcloopd.guest.running import Interrupt, RunningGuest
from p2pcloopd.guest.sandbox.native_output import NativeOutput
from p2pcloopd.guest.silence import Silence
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.transcript import Transcript

SHUTDOWN_SECONDS = float(guests.SHUTDOWN_SECONDS)
"""A guest that was asked to shut down and hangs is ended after this. It may wait for data of peers
that are gone, and its user may have left."""

_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGWINCH, signal.SIGCONT)

_SHOW_SECONDS = 1.0
"""How long a terminal may take to show what was held back, before the guest is asked to end."""

_STDIN = 0

_SOME_PROMPT = b"# "


Attend = Callable[[trio.Nursery, RunningGuest], Awaitable[None]]
"""Attends to a guest that runs; what it starts in the nursery ends with the guest."""


async def run_attended(
    spec: GuestSpec,
    attend: Attend,
    events: Events = Events(),  # noqa: B008  it is frozen
    *,
    interrupt: Interrupt | None = None,
) -> GuestResult:
    """Run a guest as `run_guest` does, and attend to it meanwhile."""
    results: list[GuestResult] = []

    async def live(*, task_status: trio.TaskStatus[RunningGuest]) -> None:
        result = await run_guest(spec, events, interrupt=interrupt, task_status=task_status)
        results.append(result)
        nursery.cancel_scope.cancel()

    async with trio.open_nursery() as nursery:
        await attend(nursery, await nursery.start(live))
    return results[0]


async def run_guest(
    spec: GuestSpec,
    events: Events = Events(),  # noqa: B008  it is frozen
    *,
    interrupt: Interrupt | None = None,
    task_status: trio.TaskStatus[RunningGuest] = trio.TASK_STATUS_IGNORED,
) -> GuestResult:
    """Boot a guest and return when it has ended.

    While it runs this owns SIGINT and SIGTERM (the first shuts the guest down in order, the second
    ends it), SIGHUP (shuts it down) and, with console `stdio`, the terminal. A guest that goes on
    for `SHUTDOWN_SECONDS` after it was asked to shut down is ended. This must be called from the
    main thread. Cancellation kills the guest; at the end no process of the guest is left.

    Args:
        interrupt: asks the guest to end, instead of Ctrl-Alt-Del.
        task_status: gets the `RunningGuest` once it runs.

    Raises:
        UsageError: the guest cannot be as the spec says.
        NeedsPackageError: a program or file of the system is missing.
        GuestError: the kernel does not start, or finds no root on the disk.
        StorageError: the console's file cannot be written.
    """
    started = trio.current_time()
    spec.check()
    machine = await trio.to_thread.run_sync(choose_machine, spec)
    if machine.remark and interrupt is None:  # the standard error of a command is its own
        say(machine.remark)
    with plain_errors(), ExitStack() as stack:
        # Given back last: no signal may end this process while the terminal is the guest's.
        signals = stack.enter_context(counted_signals(*_SIGNALS))
        async with trio.open_nursery() as nursery:
            attended = _Attended(spec, events, interrupt, stack, nursery)
            nursery.start_soon(attended.obey_signals, signals)
            if spec.progress is not None:
                nursery.start_soon(spec.progress.line.carry)
            if spec.card is not None:
                nursery.start_soon(spec.card.follow, say)
            if attended.keyboard is not None:
                nursery.start_soon(attended.keyboard.read)
            ends = await attended.boot_until_end(machine, task_status)
            nursery.cancel_scope.cancel()
    return GuestResult(
        exit_code=ends[-1].exit_code,
        reason=ends[-1].reason,
        kernel=machine.kernel,
        seconds=trio.current_time() - started,
        boot_seconds=next((end.prompt - started for end in ends if end.prompt is not None), None),
        reboots=len(ends) - 1,
        machine=machine.name,
        state=attended.state,
    )


@dataclass(frozen=True, slots=True)
class _End:
    """How one boot of a guest ended.

    Attributes:
        prompt: trio's time of the first login prompt, or None.
    """

    exit_code: int
    reason: Reason
    prompt: float | None


class _Attended:
    """A guest, connected to this process's signals, to its terminal or pipe for input, and to the
    sink of its output.

    Attributes:
        keyboard: reads the input; None if the guest gets none.
    """

    def __init__(
        self,
        spec: GuestSpec,
        events: Events,
        interrupt: Interrupt | None,
        stack: ExitStack,
        nursery: trio.Nursery,
    ) -> None:
        self.keyboard: Keyboard | None = None
        self._spec = spec
        self._nursery = nursery
        self._events = events
        self._interrupt = interrupt
        self._guest = RunningGuest(interrupt)
        self._quiet: QuietStart | None = None
        self._set_up_terminal: Callable[[], None] = lambda: None
        if spec.console == "stdio":
            ours = console.is_our_terminal(_STDIN)
            if ours:
                self._set_up_terminal = stack.enter_context(console.guest_keys(_STDIN))
            self.keyboard = Keyboard(_STDIN, on_command=self._take_command if ours else None)
        self._sink = console.Sink(spec.console)
        stack.callback(self._sink.close)

    @property
    def state(self) -> StateName | None:
        """The state that the guest was suspended as last."""
        return self._guest.state

    @property
    def _is_ending(self) -> bool:
        """Whether the guest was asked to end."""
        return self._guest.shutdown_asked or self._guest.killed

    async def boot_until_end(
        self, machine: Machine, task_status: trio.TaskStatus[RunningGuest]
    ) -> list[_End]:
        """Boot, and boot again as long as the guest reboots.

        Returns:
            The end of each boot, at least one.
        """
        ends: list[_End] = []
        while True:
            self._events.boot()
            ends.append(await self._boot(machine, task_status if not ends else None))
            self._spec = replace(self._spec, waking=None)  # when it reboots, it boots
            if not self._spec.reboot or ends[-1].reason != "reboot" or self._is_ending:
                return ends

    async def _boot(
        self, machine: Machine, task_status: trio.TaskStatus[RunningGuest] | None
    ) -> _End:
        """Run the guest's kernel once, to its end."""
        transcript = self._transcript()
        watch, silence = self._watches(transcript, by_firmware=self._spec.firmware is not None)
        native = NativeOutput()

        def on_output(data: bytes) -> None:
            if transcript.take(data):
                self._events.prompt()
            boot.heard(transcript)
            watch.take(data)
            silence.heard()
            self._guest.heard()
            self._events.console(data)

        async with AsyncExitStack() as stack:
            stack.callback(native.close)
            quiet_end = self._hold_back(transcript, stack)
            boot = await self._start(machine, native, stack)
            if task_status is not None:
                task_status.started(self._guest)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(native.collect)
                nursery.start_soon(boot.attend)
                self._attend(nursery, boot.console, watch, silence)
                nursery.start_soon(quiet_end.run)
                await console.pump(boot.console, self._quiet or self._sink, on_output)
                exit_code = await boot.process.wait()
                await boot.settle()
                nursery.cancel_scope.cancel()
            code, reason = boot.ending(transcript, exit_code)
            if self._ended_early(transcript):
                code, reason = 0, "poweroff"
            quiet_end.is_good = reason in ("poweroff", "reboot")
        if self._guest.killed:
            return _End(exit_code, "killed", transcript.prompt_time)
        if code or not self._may_be_silent(transcript, reason):
            _check_started(transcript, native, exit_code)
        return _End(code, reason, transcript.prompt_time)

    def _may_be_silent(self, transcript: Transcript, reason: str) -> bool:
        """Whether a guest that ended well may have printed nothing."""
        # Others may print elsewhere, or nothing; one that was suspended early, nothing yet.
        by_firmware = self._spec.firmware is not None
        silent = by_firmware or self._spec.resume is not None or reason == "suspended"
        return silent or self._ended_early(transcript)

    def _ended_early(self, transcript: Transcript) -> bool:
        """Whether it was asked to shut down and ended before it handed over to its init.

        A kernel that is asked while it sets itself up may end with any status and without a word.
        Its disk was not used yet, so this is as good as a power-off.
        """
        return (
            self._guest.shutdown_asked
            and (self._interrupt, self._spec.firmware, self._spec.waking) == (None, None, None)
            and not transcript.started
            and transcript.initramfs_failure() is None
        )

    def _transcript(self) -> Transcript:
        """Of one boot. Without an initramfs of ours all that is printed comes from the image."""
        if (self._spec.firmware, self._spec.waking) != (None, None):
            return Transcript(trio.current_time)
        return Transcript(trio.current_time, self._events.address)

    def _watches(self, transcript: Transcript, *, by_firmware: bool) -> tuple[PromptWatch, Silence]:
        """What watches for prompts, and for silence, in one boot."""
        resumed = self._spec.waking is not None
        watch = PromptWatch()
        if resumed:
            # What stands at its console is not known here. It does not lose what is typed.
            watch.take(_SOME_PROMPT)
        waiting = self._spec.waiting
        return watch, Silence(transcript, waiting, by_firmware=by_firmware, resumed=resumed)

    def _hold_back(self, transcript: Transcript, stack: AsyncExitStack) -> QuietEnd:
        """Keep from a terminal what says nothing to a user; `stack` shows it where it matters."""
        quiet_end = QuietEnd(self._sink)
        if self._spec.progress is not None:
            stack.push_async_callback(quiet_end.end)
            self._quiet = QuietStart(quiet_end, self._spec.progress, transcript)
            stack.push_async_callback(self._quiet.end)
        return quiet_end

    async def _start(self, machine: Machine, native: NativeOutput, stack: AsyncExitStack) -> Boot:
        """Start the guest's kernel; `stack` ends it."""
        boot = await machine.start(self._spec, native, stack)
        native.close_write_end()
        self._guest.runs_as(boot)
        stack.callback(self._guest.rests)
        return boot

    def _attend(
        self, nursery: trio.Nursery, typed: Console, watch: PromptWatch, silence: Silence
    ) -> None:
        """Attend to the user during one boot, until the nursery ends."""
        nursery.start_soon(self._press_again, watch)
        if self.keyboard is not None:
            nursery.start_soon(self._watch_silence, silence)
            nursery.start_soon(self._type, self.keyboard, typed, watch)
        if self._quiet is not None:
            nursery.start_soon(self._quiet.run, watch)

    async def _press_again(self, watch: PromptWatch) -> None:
        """An init may lose Ctrl-Alt-Del until it has set itself up; at its prompt it has."""
        await watch.wait()
        if self._guest.shutdown_asked and self._interrupt is None:
            await self._guest.press_keys()

    async def _watch_silence(self, silence: Silence) -> None:
        while (silent := await silence.watch()) is not None:
            if self._quiet is not None and not silent.waits:
                await self._quiet.show_all()
            say(silent.said)
            if not silent.waits:
                return

    async def _type(self, keyboard: Keyboard, typed: Console, watch: PromptWatch) -> None:
        await keyboard.type_on(typed, watch, held=self._spec.waking is None)
        if not self._is_ending:
            say("has read all of its input")
            await self._shut_down()

    def _take_command(self, command: Command) -> None:
        if command == "shutdown":
            self._nursery.start_soon(self._shut_down)
        elif command == "kill":
            self._guest.kill()
            say("is ended")
        else:
            report(NOT_LEFT if command == "leave" else HELP)

    async def obey_signals(self, signals: AsyncIterator[int]) -> None:
        """Do what signals ask for, until cancelled."""
        async for number in signals:
            if number in (signal.SIGWINCH, signal.SIGCONT):
                if number == signal.SIGCONT and console.is_our_terminal(_STDIN):
                    self._set_up_terminal()
                self._guest.copy_window_size()
            # A shell whose terminal closes may send SIGHUP besides the system: it counts once.
            elif number != signal.SIGHUP or not self._is_ending:
                # The next signal is heard while the guest's answer is waited for.
                self._nursery.start_soon(self._shut_down, number)

    async def _shut_down(self, number: int = signal.SIGTERM) -> None:
        """Shut the guest down in order, or end it if that was asked for before."""
        if self._guest.killed:
            return
        if not self._guest.shutdown_asked:
            self._nursery.start_soon(self._end_late)
        if self._quiet is not None:
            await self._show_start(self._quiet)
        if not await self._guest.shutdown(number):
            say("is ended")
        elif self._interrupt is None:
            say(
                tr(
                    "shuts down (again: end it; it is ended after {shutdown_seconds:g} s)",
                    shutdown_seconds=SHUTDOWN_SECONDS,
                )
            )

    async def _show_start(self, quiet: QuietStart) -> None:
        """Show what was held back; a terminal that takes nothing is not waited for."""
        shown = trio.Event()

        async def show() -> None:
            await quiet.show_all()
            shown.set()

        self._nursery.start_soon(show)
        with trio.move_on_after(_SHOW_SECONDS):
            await shown.wait()

    async def _end_late(self) -> None:
        """End a guest that does not shut down; its own end cancels this."""
        await trio.sleep(SHUTDOWN_SECONDS)
        if not self._guest.killed:
            self._guest.kill()
            say(
                tr(
                    "did not shut down within {shutdown_seconds:g} s and is ended",
                    shutdown_seconds=SHUTDOWN_SECONDS,
                )
            )


def _check_started(transcript: Transcript, native: NativeOutput, code: int) -> None:
    """Refuse an end that none of a guest's was.

    Raises:
        GuestError: its machine or its first root gave up.
    """
    if (failure := transcript.initramfs_failure()) is not None:
        raise GuestError(tr("the guest cannot boot: {failure}", failure=failure))
    if not transcript.tail:
        raise GuestError(
            tr(
                "the kernel did not start (exit status {code}): {last_words}",
                code=code,
                last_words=native.last_words,
            ),
            hint="is there room for the guest's memory?",
        )
