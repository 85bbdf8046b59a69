"""`p2pcloop doctor`: whether this machine has what p2pcloop needs, and what to install."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import click

from p2pcloop.cli.options import home_option, json_option
from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.progress import waiting_for
from p2pcloop.client.terminal import say
from p2pcloop.errors import GuestError, NeedsPackageError, P2pcloopError, StorageError
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloop.text import printable, to_json
from p2pcloop.units import format_size
from p2pcloop.words import as_text, joined, tr
from p2pcloopd.entry import run
from p2pcloopd.programs import find_program

_EPILOG = """
\b
Examples:
  p2pcloop doctor
  p2pcloop doctor --json | jq -r '.checks[] | select(.result == "missing").hint'
"""

_RELEASED = 1_764_000_000
"""Seconds since 1970 of a day before this program was written: no right clock is behind it."""

_LITTLE_ROOM = 1 << 30
_MANY = 80
_SANDBOX_MEMORY = 64 << 20
_SANDBOX_SECONDS = 10

Result = Literal["ok", "missing", "absent"]
"""`missing` is needed by most commands, `absent` only by some."""


@dataclass(frozen=True, slots=True)
class Check:
    """Something that p2pcloop needs of a machine.

    Attributes:
        what: what is looked at.
        purpose: what needs it.
        look: returns what was found; raises a `P2pcloopError` where it is not as it must be.
        needed: by most commands.
    """

    what: str
    purpose: str
    look: Callable[[], str]
    needed: bool = False


@click.command(epilog=_EPILOG)
@home_option
@json_option
def command(home: Home, *, as_json: bool) -> None:
    """Look whether this machine has what p2pcloop needs, and name the package to install.

    It runs a program in the sandbox of guests, and a loop in KVM. It starts no p2pcloopd, and talks
    to no other machine. The exit code is 1 if something is missing that most commands need.
    """
    found = []
    for check in checks(home):
        facts = _try(check)
        found.append(facts)
        if not as_json:
            say(joined("\n", _text(facts)))
    if as_json:
        click.echo(to_json({"checks": found}))
    if any(facts["result"] == "missing" for facts in found):
        raise click.exceptions.Exit(1)


def checks(home: Home) -> Iterator[Check]:
    """All that is looked at, the most important first."""
    yield Check(tr("the guest's kernel"), "boot, run", _uml_kernel, needed=True)
    yield Check("busybox", tr("the guest's first root"), _busybox, needed=True)
    yield Check(tr("the sandbox"), "boot, run, exec, cp", _sandbox, needed=True)
    yield Check(
        tr("room on the disk"), tr("all that is fetched"), partial(_room, home), needed=True
    )
    yield Check(tr("the clock"), tr("signatures and versions"), partial(_clock, home), needed=True)
    yield Check("p2pcloopd", tr("fetching and seeding"), partial(_node, home))
    yield Check("mke2fs", tr("overlays of read-only images"), _program("mke2fs", "e2fsprogs"))
    yield Check(tr("user network"), "--net user", _program("libslirp-helper", "libslirp-helper"))
    yield Check(tr("networks of guests"), "--net lan", _lan)
    yield Check(tr("a display"), "--display vnc, web", _display)
    yield Check("FUSE", "mount", _fuse)
    yield Check("QEMU", "--vm qemu", _qemu)
    yield Check("KVM", tr("guests of QEMU at full speed"), _kvm)
    yield Check("qemu-img", tr("disks of virtual machines"), _program("qemu-img", "qemu-utils"))
    yield Check("xorriso", "export --iso", _program("xorriso", "xorriso"))
    yield Check("netboot", tr("bare machines"), _netboot)


def _try(check: Check) -> dict[str, Any]:
    facts: dict[str, Any] = {"what": check.what, "for": check.purpose, "needed": check.needed}
    try:
        with waiting_for(check.what):
            said = check.look()
        return facts | {"result": "ok", "said": said, "hint": None}
    except P2pcloopError as err:
        result: Result = "missing" if check.needed else "absent"
        return facts | {"result": result, "said": err.message, "hint": err.hint}


def _text(facts: dict[str, Any]) -> Iterator[str]:
    """The lines of one check."""
    mark = {"ok": "ok", "missing": "MISSING", "absent": "-"}[facts["result"]]
    said = as_text(printable(facts["said"]))
    yield tr(
        "{mark:8} {what} (for {purpose}): {said}",
        mark=mark,
        what=facts["what"],
        purpose=facts["for"],
        said=said,
    )
    if facts["hint"]:
        yield tr("{blank:8}   hint: {hint}", blank="", hint=as_text(printable(facts["hint"])))


def _program(name: str, package: str) -> Callable[[], str]:
    return lambda: str(find_program(name, package))


def _uml_kernel() -> str:
    from p2pcloopd.guest.system import xsave  # noqa: PLC0415  loaded by this check alone
    from p2pcloopd.guest.system.kernel import find_kernel  # noqa: PLC0415  as above

    kernel = find_kernel()
    if xsave.is_needed(kernel):
        return tr(
            "User-Mode Linux {release}, with a shim: {compiled_shim}",
            release=kernel.release,
            compiled_shim=xsave.compiled_shim(),
        )
    return tr("User-Mode Linux {release}: {path}", release=kernel.release, path=kernel.path)


def _busybox() -> str:
    from p2pcloopd.guest.system.kernel import find_busybox  # noqa: PLC0415  as above

    return str(find_busybox())


def _sandbox() -> str:
    """Run a program in it."""
    import trio  # noqa: PLC0415  as above

    from p2pcloopd.guest.sandbox import bubblewrap  # noqa: PLC0415  as above
    from p2pcloopd.guest.system.kernel import find_busybox  # noqa: PLC0415  as above

    busybox = find_busybox()
    boxed = bubblewrap.prepare(
        [str(busybox), "true"], visible={}, memory=_SANDBOX_MEMORY, processes=4
    )

    async def try_it() -> None:
        with trio.move_on_after(_SANDBOX_SECONDS) as late:
            async with bubblewrap.running(boxed) as process:
                code = await process.wait()
        if late.cancelled_caught:
            raise GuestError(
                tr(
                    "a program did not end in it within {sandbox_seconds} s",
                    sandbox_seconds=_SANDBOX_SECONDS,
                )
            )
        if code:
            raise GuestError(tr("a program in it ended with status {code}", code=code))

    run(try_it)
    return tr("a program ran in it")


def _room(home: Home) -> str:
    place = next(path for path in (home.root, *home.root.parents) if path.exists())
    try:
        free = shutil.disk_usage(place).free
        with tempfile.TemporaryFile(dir=place):
            pass
    except OSError as err:
        raise StorageError(
            tr("nothing can be written in {place}: {why}", place=place, why=err.strerror),
            errno=err.errno or 0,
            hint="choose another home: --home DIR, or P2PCLOOP_HOME",
        ) from err
    if free < _LITTLE_ROOM:
        raise StorageError(
            tr("{free} are free in {place}", free=format_size(free), place=place),
            errno=errno.ENOSPC,
            hint="`p2pcloop gc` gives back room; --home DIR puts the home elsewhere",
        )
    return tr("{free} are free in {place}", free=format_size(free), place=place)


def _clock(home: Home) -> str:
    now = time.time()
    newest = max((_created(home) if home.root.exists() else []), default=0)
    if now < max(_RELEASED, newest - 86400):
        raise GuestError(
            tr(
                "it shows {time} UTC, which is past",
                time=time.strftime("%Y-%m-%d %H:%M", time.gmtime(now)),
            ),
            hint="set it, or let systemd-timesyncd or chrony do so",
        )
    return tr("it shows {time} UTC", time=time.strftime("%Y-%m-%d %H:%M", time.gmtime(now)))


def _created(home: Home) -> Iterator[int]:
    """When the newest versions of names were made, as far as their manifests are here."""
    records = Records(home)
    for record in records.names():
        ref = record.versions.get(record.version)
        if ref is None:
            continue
        try:
            yield records.manifest(ref.id).manifest.created
        except P2pcloopError:
            continue


def _node(home: Home) -> str:
    try:
        client = ControlClient.connect(home)
    except NotRunningError:
        return tr("does not run; commands start it when they need it")
    with client:
        node = client.call("status")
    where = ", ".join(node["listen"]) or tr("nowhere")
    return tr("process {pid}; peers reach it at {where}", pid=client.pid, where=where)


def _lan() -> str:
    from p2pcloopd.guest.network.choice import parse_network  # noqa: PLC0415  as above

    parse_network("lan").check()
    return tr("nftables, dnsmasq and /dev/net/tun are here")


def _display() -> str:
    server = find_program("Xtigervnc", "tigervnc-standalone-server")
    find_program("xkbcomp", "x11-xkb-utils")
    return str(server)


def _fuse() -> str:
    from p2pcloopd.fusermount import check_device  # noqa: PLC0415  as above

    check_device()
    return tr("/dev/fuse opens")


def _qemu() -> str:
    from p2pcloopd.guest.machine.qemu_command import (  # noqa: PLC0415  as above
        PROGRAM,
        PROGRAM_PACKAGE,
    )
    from p2pcloopd.guest.system.stock_kernel import find_stock_kernel  # noqa: PLC0415  as above

    program = find_program(PROGRAM, PROGRAM_PACKAGE)
    try:
        done = subprocess.run(
            [program, "--version"], capture_output=True, text=True, timeout=10, check=True
        )
    except (OSError, subprocess.SubprocessError) as err:
        raise GuestError(tr("{program} does not run: {err}", program=program, err=err)) from err
    version = done.stdout.split("\n")[0][:_MANY]
    return tr("{version}; Linux {release}", version=version, release=find_stock_kernel().release)


def _kvm() -> str:
    from p2pcloopd.guest.machine import kvm  # noqa: PLC0415  as above

    found = kvm.probe_kvm()
    if found.is_usable:
        return tr("a guest ran in it")
    hint = None
    if kvm.DEVICE.exists() and not os.access(kvm.DEVICE, os.R_OK | os.W_OK):
        hint = tr("join its group, and log in again: `adduser $USER kvm`, as root")
    raise GuestError(
        tr("{why_not}; guests of QEMU run by TCG, which takes longer", why_not=found.why_not),
        hint=hint,
    )


def _netboot() -> str:
    from p2pcloopd.commands.netboot import find_programs  # noqa: PLC0415  as above

    programs = find_programs()
    if os.geteuid():
        raise NeedsPackageError("only root may answer DHCP and TFTP", hint="use sudo")
    return tr("dnsmasq, and iPXE in {parent}", parent=next(iter(programs.values())).parent)
