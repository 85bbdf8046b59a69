"""`p2pcloop netboot`: bare machines boot an image over the network."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import click

from p2pcloop.cli.options import (
    REF,
    DirectoryPath,
    FilePath,
    at_option,
    file_options,
    home_option,
    json_option,
)
from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import UsageError
from p2pcloop.making.image_file import ImageFile
from p2pcloop.store.home import Home
from p2pcloop.text import printable, to_json
from p2pcloop.words import tr
from p2pcloopd.block.server import serve_until_signal
from p2pcloopd.commands.served_image import served_image
from p2pcloopd.entry import run
from p2pcloopd.guest.disk import choose_files, file_system_of, layer_places
from p2pcloopd.guest.network.choice import LAN_PROGRAMS
from p2pcloopd.guest.spec import split_append
from p2pcloopd.guest.system.files_root import WHOLE
from p2pcloopd.guest.system.kernel import Kernel, find_busybox
from p2pcloopd.guest.system.stock_kernel import find_stock_kernel
from p2pcloopd.netboot.interface import check_root, find_interface, parse_range
from p2pcloopd.netboot.kept import check_folder
from p2pcloopd.netboot.machine_root import build_machine_root
from p2pcloopd.netboot.plan import NetbootPlan, check_words, ipxe_programs
from p2pcloopd.netboot.serving import Netboot, serve_machines
from p2pcloopd.netboot.telling import Teller, TellingHandler
from p2pcloopd.programs import find_program

DEFAULT_PORT = 10809

_EPILOG = """
\b
Examples:
  p2pcloop netboot @key/debian --lan eth0
  p2pcloop netboot debian.cloop --lan eth1 --dhcp server --range 192.168.77.100,192.168.77.199
  p2pcloop netboot @key/debian --lan eth0 --keep changes       # a file for each machine

\b
Machines must be set to boot from the network (PXE, UEFI without Secure Boot). Each one gets a
kernel and a first root from here, and then reads the image as it needs it. What it changes is in
its own memory, and gone when it is switched off. It waits while this does not run, and goes on.
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=REF)
@click.option(
    "--lan",
    required=True,
    metavar="INTERFACE",
    help="This machine's network card at which the others are. All of that network is served.",
)
@click.option(
    "--dhcp",
    type=click.Choice(["proxy", "server"]),
    default="proxy",
    show_default=True,
    help="proxy: another server gives addresses, this one tells only how to boot."
    " server: there is no other one, and this one gives addresses of --range.",
)
@click.option(
    "--range",
    "addresses",
    metavar="FIRST,LAST",
    help="The addresses that `--dhcp server` gives away.",
)
@click.option(
    "--port",
    type=click.IntRange(1, 65534),
    default=DEFAULT_PORT,
    show_default=True,
    help="Where the disk is served (NBD over TCP); kernel and first root are at the port behind it"
    " (HTTP).",
)
@click.option(
    "--kernel",
    type=FilePath(),
    metavar="FILE",
    help="The machines' kernel.  [default: one of tools/get-stock-kernel, or this system's newest]",
)
@click.option(
    "--keep",
    type=DirectoryPath(),
    metavar="DIR",
    help="Keep what each machine changes, in an overlay of its own in DIR, by the address of its"
    " network card. Without it, changes are in the machine's memory.",
)
@click.option("--append", default="", metavar="WORDS", help="More words for the machines' kernel.")
@at_option
@file_options
@home_option
@json_option
def command(
    ref: str,
    lan: str,
    dhcp: str,
    addresses: str | None,
    port: int,
    kernel: Path | None,
    keep: Path | None,
    append: str,
    at: int,
    home: Home,
    *,
    as_json: bool,
) -> None:
    """Let bare machines on a LAN boot the image REF, until Ctrl-C; needs root.

    Every machine that starts from the network at INTERFACE gets it, and every machine there can
    read it.
    """
    check_root()
    _check_dhcp(dhcp, addresses)
    words = check_words(split_append(append))
    interface = find_interface(lan)
    given = None if addresses is None else parse_range(addresses, interface)
    tftp = find_programs()
    if keep is not None:
        check_folder(keep)
    machine_kernel = find_stock_kernel(kernel)
    with _telling() as tell:
        home.create()
        target = resolve_ref(ref, home, at=at)
        title = f"p2pcloop: {printable(str(target.name))} from {interface.address}"
        netboot = Netboot(
            NetbootPlan(interface, title, port, (*_image_words(target), *words), given),
            served_image(target, home, "netboot", prefetch=True),
            tftp,
            machine_kernel.path.read_bytes(),
            _first_root(target, machine_kernel, home, keep),
            tell,
            keep,
        )
        tell(_reach(netboot.plan, printable(str(target.name))))
        report = run(partial(serve_until_signal, partial(serve_machines, netboot)))
    if as_json:
        click.echo(to_json(report))


@contextmanager
def _telling() -> Iterator[Callable[[str], None]]:
    """Gives what tells the user a line, also each line of the log, and waits for nothing."""
    teller = Teller()
    logging.basicConfig(level=logging.WARNING, handlers=[TellingHandler(teller)])
    try:
        yield teller.tell
    finally:
        teller.close()


def _reach(plan: NetbootPlan, name: str) -> str:
    """Who can read the image, and where."""
    interface = plan.interface
    return tr(
        "every machine at {interface} ({network}) can read {name} from {address}, ports"
        " {port} (NBD) and {http_port} (HTTP); nothing is encrypted",
        interface=interface.name,
        network=interface.network,
        name=name,
        address=interface.address,
        port=plan.port,
        http_port=plan.http_port,
    )


def _check_dhcp(dhcp: str, addresses: str | None) -> None:
    if dhcp == "server" and addresses is None:
        raise UsageError(
            "--dhcp server has no addresses to give",
            hint="add --range FIRST,LAST, such as 192.168.77.100,192.168.77.199",
        )
    if dhcp == "proxy" and addresses is not None:
        raise UsageError(
            "--range is for --dhcp server: beside another DHCP server no address is given here",
            hint="leave out --range, or add --dhcp server",
        )


def find_programs() -> dict[str, Path]:
    """Find what is served by TFTP, and refuse to go on without the programs that are needed."""
    find_program("dnsmasq", LAN_PROGRAMS["dnsmasq"])
    find_program("bwrap", "bubblewrap")
    find_busybox()
    return ipxe_programs()


def _image_words(target: ImageFile | StoredRef) -> tuple[str, ...]:
    if not isinstance(target, StoredRef):
        return ()
    return publisher_words(str(target.name), target.signed.manifest.boot.append)


def publisher_words(name: str, append: str) -> tuple[str, ...]:
    """The words for the kernel that the publisher of an image gave it.

    Raises:
        UsageError: machines cannot start with them.
    """
    try:
        return check_words(split_append(append))
    except UsageError as err:
        raise UsageError(
            tr(
                "the publisher of {name} gave it words for the kernel with which no machine can"
                " start: {err}",
                name=printable(name),
                err=err,
            ),
            hint="the publisher can publish it with others (--append)",
        ) from err


def _first_root(
    target: ImageFile | StoredRef, kernel: Kernel, home: Home, keep: Path | None
) -> bytes:
    choose_files(target, None, "files", None, home)  # it refuses an image that holds no root
    if keep is not None:
        try:
            choose_files(target, None, "block", None, home)
        except UsageError as err:
            raise UsageError(
                tr(
                    "{target} holds a file system that cannot be written: no blocks of it change,"
                    " which could be kept",
                    target=target.name,
                ),
                hint="leave out --keep: changes are in the machines' memory then",
            ) from err
    places = layer_places(target)
    only = file_system_of(target, home) if places == WHOLE else None
    return build_machine_root(kernel, places, file_system=only, keeps=keep is not None)
