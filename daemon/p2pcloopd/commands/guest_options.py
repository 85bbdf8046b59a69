"""The options of commands that run a guest."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import click

from p2pcloop.cli.options import FILL, SIZE, FilePath, as_one, at_option, file_options, home_option
from p2pcloop.client.invocation import WHOLE_DISK
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home
from p2pcloopd.guest.network.choice import Network, parse_network
from p2pcloopd.guest.network.forwarding import ForwardedPort, parse_port
from p2pcloopd.guest.network.opened import OpenedPort, parse_opened
from p2pcloopd.guest.vm import Firmware, Vm


def _to_ports(
    _context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[ForwardedPort, ...]:
    return tuple(map(parse_port, value))


def _to_opened(
    _context: click.Context, _parameter: click.Parameter, value: tuple[str, ...]
) -> tuple[OpenedPort, ...]:
    return tuple(map(parse_opened, value))


def _to_network(_context: click.Context, _parameter: click.Parameter, value: str) -> Network:
    return parse_network(value)


def _keep_whole(
    context: click.Context, _parameter: click.Parameter, value: str | None
) -> str | None:
    """What boots by firmware is a whole disk."""
    if value is not None:
        context.meta[WHOLE_DISK] = True
    return value


_NAME = click.option(
    "--name",
    metavar="NAME",
    help="What `ps`, `attach`, `logs` and `stop` call the guest; with `boot` also its host"
    " name, and its log and end are kept until `rm --guest NAME`.  [default: g1, g2, …]",
)
_NET = click.option(
    "--net",
    default="none",
    show_default=True,
    callback=_to_network,
    metavar="none|user|lan[:NAME]|bridge:IF",
    help="`user` lets the guest open connections outside, but not to the host's loopback; `lan`"
    " does, too, and joins the guests of one LAN, which find each other by name (g1.lan);"
    " `bridge` puts the guest on this machine's bridge IF (root only).",
)
_PORT = click.option(
    "--port",
    "ports",
    multiple=True,
    callback=_to_ports,
    metavar="[ADDR:]PORT:GUESTPORT[/udp]",
    help="With `--net user` or `lan`: PORT of this machine leads to GUESTPORT of the guest, as"
    " 2222:22; may be given more than once.  [default ADDR: 127.0.0.1, for this machine alone]",
)
_OPEN = click.option(
    "--open",
    "opened",
    multiple=True,
    callback=_to_opened,
    metavar="[ADDR:]PORT",
    help="With `--net user`: the guest can connect to the TCP port PORT of this machine, which is"
    " closed to it otherwise; may be given more than once. It finds ports of 127.0.0.1 at 10.0.2.2."
    "  [default ADDR: 127.0.0.1]",
)
_CPU = click.option(
    "--cpu",
    type=int,
    metavar="N",
    help="The CPU the guest runs on (it is one CPU's worth of work); -1: any.  [last allowed;"
    " with `--vm qemu` any]",
)
_REPORT = click.option(
    "--report",
    type=FilePath(),
    metavar="FILE.json",
    help="Write what was measured to this file.",
)
_FILL = click.option(
    "--fill",
    type=FILL,
    default="off",
    show_default=True,
    metavar="off|RATE|full",
    help="Bring the rest of the image when there is time: RATE bytes a second (500K), or all.",
)

_OPTIONS = (
    _NAME,
    click.option(
        "--overlay",
        type=FilePath(),
        metavar="FILE",
        help="Keep changes in FILE, which is made where it does not exist; without, they are lost.",
    ),
    click.option(
        "--overlay-mode",
        type=click.Choice(["block", "files"]),
        help="Keep changed blocks, or changed files beside the image.  [default: files where the"
        " image cannot be written (iso9660, squashfs, erofs), else block]",
    ),
    click.option(
        "--overlay-size",
        type=SIZE,
        help="What a new files overlay may hold; it takes room only for what is written."
        "  [default: 8G]",
    ),
    click.option("--mem", type=SIZE, default="512M", show_default=True, help="The guest's memory."),
    _NET,
    _PORT,
    _OPEN,
    click.option(
        "--vm",
        type=click.Choice(get_args(Vm)),
        default="uml",
        show_default=True,
        help="The machine: User-Mode Linux, or QEMU with a kernel as PCs have it, by KVM where that"
        " runs a guest.",
    ),
    click.option(
        "--firmware",
        type=click.Choice(get_args(Firmware)),
        callback=_keep_whole,
        help="With `--vm qemu`: boot a whole disk by its own boot loader.  [default: for an image"
        " with a partition table, what its boot loader is for]",
    ),
    click.option(
        "--kernel",
        type=FilePath(),
        metavar="PATH",
        help="A User-Mode Linux kernel; `system` is this system's.  [env: P2PCLOOP_KERNEL]"
        "  [default: what tools/get-uml-kernel unpacked, or else this system's]  With `--vm qemu` a"
        " bzImage.  [env: P2PCLOOP_STOCK_KERNEL]  [default: what tools/get-stock-kernel unpacked,"
        " or else this system's]",
    ),
    click.option(
        "--append",
        default="",
        metavar="ARGS",
        help="Words for the kernel's command line. KNOPPIX's cheatcodes toram, lang=, keyboard=,"
        " tz= and hostname= are understood; p2pcloop.raid6, p2pcloop.legacy_ptys and"
        " p2pcloop.serial_lines give back what guests leave out to boot sooner.",
    ),
    _CPU,
    _REPORT,
    _FILL,
    at_option,
    file_options,
    home_option,
)


@dataclass(frozen=True, slots=True)
class GuestOptions:
    """The values of the options of `guest_options`; `--help` explains them."""

    name: str | None
    overlay: Path | None
    overlay_mode: str | None
    overlay_size: int | None
    mem: int
    net: Network
    ports: tuple[ForwardedPort, ...]
    opened: tuple[OpenedPort, ...]
    vm: Vm
    firmware: Firmware | None
    kernel: Path | None
    append: str
    cpu: int | None
    report: Path | None
    fill: int
    at: int
    home: Home


guest_options = as_one(GuestOptions, _OPTIONS)
"""Give a command these options, and its function a `GuestOptions` as `options`."""


@dataclass(frozen=True, slots=True)
class ResumeOptions:
    """The values of the options of `resume_options`; `--help` explains them."""

    name: str | None
    overlay: Path | None
    net: Network
    ports: tuple[ForwardedPort, ...]
    opened: tuple[OpenedPort, ...]
    cpu: int | None
    report: Path | None
    fill: int
    at: int
    home: Home

    def of_guest(self, memory: int) -> GuestOptions:
        """The options of a guest in QEMU, which has so many bytes of memory."""
        return GuestOptions(
            name=self.name,
            overlay=self.overlay,
            overlay_mode=None,
            overlay_size=None,
            mem=memory,
            net=self.net,
            ports=self.ports,
            opened=self.opened,
            vm="qemu",
            firmware=None,
            kernel=None,
            append="",
            cpu=self.cpu,
            report=self.report,
            fill=self.fill,
            at=self.at,
            home=self.home,
        )


_NEW_OVERLAY = click.option(
    "--overlay",
    type=FilePath(),
    metavar="FILE",
    help="Keep changes in FILE, which must be new; without, they are lost, unless the guest is"
    " suspended again.",
)

resume_options = as_one(
    ResumeOptions,
    (_NAME, _NEW_OVERLAY, _NET, _PORT, _OPEN, _CPU, _REPORT, _FILL, at_option, home_option),
)
"""Give a command these options, and its function a `ResumeOptions` as `options`."""
