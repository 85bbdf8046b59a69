"""The quickstart: seed an image on one node, boot it on another, keep the guest's changes.

Two nodes on this machine and nothing but the loopback network. Run through `tools/quickstart`.
"""

from __future__ import annotations

import argparse
import json
import secrets
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from rich.console import Console as Terminal
from rich.markup import escape

from p2pcloop.units import format_size
from tools.boot_report import BootReport, ReportError, read_report
from tools.console import Console, ConsoleError

CHECKOUT = Path(__file__).resolve().parent.parent
P2PCLOOP = CHECKOUT / ".venv/bin/p2pcloop"
PROMPT = r"(?:root@p2pcloop:~|tiny)# "
BOOT_LIMIT = 180.0
GUEST_FILE = "/root/hello"


class DemoError(Exception):
    """A step failed; `logs` are the files with the details."""

    def __init__(self, message: str, *logs: Path) -> None:
        super().__init__(message)
        self.logs = logs


class Teller:
    """Prints the progress: a line a step, and on a terminal the progress within it."""

    def __init__(self) -> None:
        self._terminal = Terminal(highlight=False)
        self._start = time.monotonic()

    def say(self, text: str = "") -> None:
        self._terminal.print(text, markup=False, soft_wrap=True)

    @contextmanager
    def step(self, text: str) -> Iterator[Callable[[str], None]]:
        """Announce a step; the yielded function shows a passing line while the step goes on."""
        elapsed = time.monotonic() - self._start
        self.say(f"[{elapsed:5.1f} s] {text}")
        with self._terminal.status("") as status:
            yield lambda line: status.update(f"[dim]{escape(line[:110])}[/dim]")


@dataclass(frozen=True, slots=True)
class Seeded:
    """The JSON of `p2pcloop seed`, and the file that it is about."""

    name: str
    link: str
    source: list[int]


class Demo:
    """The files of one demonstration and the steps it is made of."""

    def __init__(self, work: Path, image: Path, label: str, teller: Teller) -> None:
        self.work = work
        self.image = image
        self.label = label
        self.teller = teller
        self.seeder = work / "seeder"
        self.reader = work / "reader"
        self.overlay = work / "mine.delta"

    def seed(self) -> Seeded:
        """Have the first node offer the image; one that it offers already is not read again."""
        source = self._source()
        saved = self.work / "seed.json"
        with self.teller.step(f"first node: offering {shown(self.image)}"):
            known = read_seed(saved) if saved.exists() else None
            if known is not None and known.source == source:
                self._p2pcloop("daemon", "start", home=self.seeder)
                return known
            output = self._p2pcloop(
                "seed", str(self.image), "--name", self.label, "--json", home=self.seeder
            )
            try:
                told = json.loads(output)
            except ValueError as err:
                raise DemoError(f"p2pcloop seed --json printed no JSON: {output[:200]!r}") from err
            saved.write_text(json.dumps(told | {"source": source}))
            return read_seed(saved)

    def boot(self, number: int, link: str, command: str) -> tuple[BootReport, str]:
        """Boot on the second node, run `command` in the guest, power it off.

        Returns:
            The boot's report and the output of the command.
        """
        report = self.work / f"boot-{number}.json"
        log, errors = self.work / f"console-{number}.log", self.work / f"boot-{number}.log"
        report.unlink(missing_ok=True)
        argv: list[str | Path] = [P2PCLOOP, "boot", link, "--home", self.reader]
        argv += ["--overlay", self.overlay, "--report", report, "--net", "none"]
        ordinal = ("first", "second")[number - 1]
        try:
            with self.teller.step(f"second node: {ordinal} boot") as show:
                console = Console([str(a) for a in argv], log=log, errors=errors, on_line=show)
                with console:
                    console.expect(PROMPT, BOOT_LIMIT)
                    output = console.run(command, 60)
                    self.teller.say(f"          guest# {command}")
                    for line in output.splitlines():
                        self.teller.say(f"          {line}")
                    self.teller.say("          guest# poweroff")
                    console.send_line("poweroff")
                    code = console.wait(60)
            if code != 0:
                raise DemoError(f"p2pcloop boot ended with exit code {code}", errors, log)
            return read_report(report), output
        except (ConsoleError, ReportError) as err:
            raise DemoError(f"the {ordinal} boot: {err}", errors, log) from err

    def stop(self) -> None:
        """Stop both nodes' daemons; one that does not run is no error."""
        for home in (self.seeder, self.reader):
            if home.exists():
                run = subprocess.run(
                    [P2PCLOOP, "daemon", "stop", "--home", home],
                    capture_output=True,
                    text=True,
                    timeout=60,
                    check=False,
                )
                if run.returncode != 0 and (home / "control.sock").exists():
                    self.teller.say(f"p2pcloop daemon stop --home {home} failed: {run.stderr}")

    def forget_reader(self) -> None:
        """Let the second node begin with an empty store: it holds nothing that is not elsewhere."""
        shutil.rmtree(self.reader, ignore_errors=True)

    def keep_foreign_overlay(self) -> None:
        """Put aside an overlay of an image that was replaced since; it may hold a user's work."""
        marker = self.work / "mine.delta.image"
        source = json.dumps(self._source())
        if self.overlay.exists() and (not marker.exists() or marker.read_text() != source):
            aside = self.overlay.with_name(f"mine-{time.strftime('%Y%m%d-%H%M%S')}.delta")
            self.overlay.rename(aside)
            self.teller.say(f"the image is a new one: the overlay of the old is now {shown(aside)}")
        marker.write_text(source)

    def _source(self) -> list[int]:
        stat = self.image.stat()
        return [stat.st_size, stat.st_mtime_ns]

    def _p2pcloop(self, *args: str, home: Path) -> str:
        log = self.work / f"{args[0]}.log"
        with log.open("w") as errors:
            run = subprocess.run(
                [P2PCLOOP, *args, "--home", home],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                timeout=300,
                check=False,
            )
        if run.returncode != 0:
            message = f"p2pcloop {args[0]} ended with exit code {run.returncode}"
            raise DemoError(message, log, home / "daemon.log")
        return run.stdout


def read_seed(path: Path) -> Seeded:
    """The JSON of an earlier seed, from the file in which the demonstration keeps it."""
    facts = json.loads(path.read_text())
    try:
        return Seeded(str(facts["name"]), str(facts["link"]), list(facts["source"]))
    except (KeyError, TypeError) as err:
        raise DemoError(f"the output of p2pcloop seed --json lacks {err}", path) from err


def shown(path: Path) -> str:
    """A path as a user in the checkout would type it."""
    return str(path.relative_to(CHECKOUT) if path.is_relative_to(CHECKOUT) else path)


def tell_measures(teller: Teller, first: BootReport, second: BootReport) -> None:
    """Print the figures of the two boots."""
    share = 100 * first.bytes_received / first.image_stored if first.image_stored else 0.0
    teller.say()
    teller.say("The figures:")
    teller.say(f"  first boot, from an empty store: {first.boot_text}")
    teller.say(
        f"    {format_size(first.bytes_received)} crossed, {share:.1f} % of the image's "
        f"{format_size(first.image_stored)} ({format_size(first.image_size)} unpacked)"
    )
    for peer, count in sorted(first.sources.items()):
        teller.say(f"    {format_size(count)} from {peer}")
    teller.say(f"  second boot, same store and overlay: {second.boot_text}")
    teller.say(f"    {format_size(second.bytes_received)} crossed")


def tell_next(teller: Teller, demo: Demo, seeded: Seeded) -> None:
    """Print the commands that a user would type next."""
    p2pcloop, reader = shown(P2PCLOOP), shown(demo.reader)
    overlay = shown(demo.overlay)
    teller.say()
    teller.say("Both nodes are stopped. Commands to try next:")
    teller.say(f"  {p2pcloop} daemon start --home {shown(demo.seeder)}")
    teller.say(f"  {p2pcloop} boot {seeded.name} --overlay {overlay} --home {reader}")
    teller.say(f"  {p2pcloop} info {overlay}")


def demonstrate(demo: Demo) -> None:
    """All steps, from the seed to the figures."""
    teller = demo.teller
    demo.stop()
    demo.forget_reader()
    demo.keep_foreign_overlay()
    try:
        seeded = demo.seed()
        teller.say(f"          {seeded.link}")
        token = secrets.token_hex(8)
        first, _ = demo.boot(1, seeded.link, f"echo {token} > {GUEST_FILE} && sync")
        second, output = demo.boot(2, seeded.link, f"cat {GUEST_FILE}")
        if output.strip() != token:
            raise DemoError(
                f"{GUEST_FILE} held {output.strip()!r} after the second boot, not {token!r}",
                demo.work / "console-1.log",
                demo.work / "console-2.log",
            )
        teller.say("          the file is still there: it is in the overlay")
    finally:
        with teller.step("stopping both nodes"):
            demo.stop()
    tell_measures(teller, first, second)
    tell_next(teller, demo, seeded)


def build_image(tiny: bool) -> Path:
    """The path of the image to show, built if it is not there yet."""
    command = [str(CHECKOUT / "tools/build-image")]
    if tiny:
        command.append("--tiny")
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=False)
    if run.returncode != 0:
        raise DemoError("tools/build-image failed; its messages are above")
    return CHECKOUT / run.stdout.strip()


def main(args: Sequence[str] | None = None) -> int:
    """Run the quickstart; the exit code."""
    parser = argparse.ArgumentParser(
        prog="tools/quickstart",
        description="Seed a Debian image on one node and boot it in User-Mode Linux on another that"
        " has only the link; write a file in the guest, boot again, show the file. Everything is"
        " kept under build/ and used again; all traffic stays on loopback.",
    )
    parser.add_argument("--tiny", action="store_true", help="a small busybox image, not Debian")
    parser.add_argument(
        "--work",
        type=Path,
        default=CHECKOUT / "build/quickstart",
        metavar="DIR",
        help="where the nodes and the overlay are (default build/quickstart)",
    )
    options = parser.parse_args(args)
    teller = Teller()
    label = "tiny-demo" if options.tiny else "debian-demo"
    work = options.work.absolute() / label
    work.mkdir(parents=True, exist_ok=True)
    try:
        with teller.step("image"):
            image = build_image(options.tiny)
        demonstrate(Demo(work, image, label, teller))
    except DemoError as err:
        teller.say(f"quickstart: {err}")
        for log in err.logs:
            tell_log(teller, log)
        return 1
    except KeyboardInterrupt:
        teller.say("quickstart: stopped")
        return 130
    return 0


def tell_log(teller: Teller, log: Path) -> None:
    """Show a log's end and where it is."""
    if not log.exists():
        return
    lines = log.read_text(errors="replace").splitlines()[-12:]
    teller.say(f"  the end of {shown(log)}:")
    for line in lines:
        teller.say(f"    {line}")


if __name__ == "__main__":
    sys.exit(main())
