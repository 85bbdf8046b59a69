"""Everything by which machines of a LAN start, in one process: none of it outlives that."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from contextlib import AsyncExitStack
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import trio

from p2pcloop.errors import BusyError
from p2pcloop.words import tr
from p2pcloopd.block.nbd_crowd import Limits
from p2pcloopd.block.nbd_server import serve_exports
from p2pcloopd.block.opening import Disk
from p2pcloopd.block.server import serve
from p2pcloopd.block.spec import BlockServerSpec
from p2pcloopd.entry import allow_many_files
from p2pcloopd.http.server import serve_http
from p2pcloopd.http.wire import Pace, Wire
from p2pcloopd.netboot.dhcp_servers import find_server
from p2pcloopd.netboot.dnsmasq import serve_dnsmasq
from p2pcloopd.netboot.interface import Interface, check_no_own_server, is_port_taken
from p2pcloopd.netboot.kept import KeptChanges
from p2pcloopd.netboot.lan_listener import is_behind, lan_listener
from p2pcloopd.netboot.machines import Machines, disk_name
from p2pcloopd.netboot.plan import INITRAMFS, KERNEL, SCRIPT, NetbootPlan
from p2pcloopd.netboot.site import NetbootSite
from p2pcloopd.netboot.solicitations import answer_solicitations

LIMITS = Limits(served=256, waiting=0, negotiating=128, of_address=4)
"""Of the disks' server. A machine has one connection, and two where it has lost one. After a
restart all machines come at once."""

_IMAGE_DIGITS = 16
"""Of an image's id: they tell it from other versions."""


@dataclass(frozen=True, slots=True)
class Netboot:
    """What is served.

    Attributes:
        plan: how machines start.
        spec: the image, as the block server takes it, without a place where it listens.
        tftp: files for TFTP, by name.
        kernel, initramfs: what machines start with.
        told: gets lines for the user.
        keep: where each machine's changes are kept; None: in its memory.
    """

    plan: NetbootPlan
    spec: BlockServerSpec
    tftp: Mapping[str, Path]
    kernel: bytes
    initramfs: bytes
    told: Callable[[str], None]
    keep: Path | None = None


async def serve_machines(
    netboot: Netboot, stopped: Callable[[], Awaitable[None]]
) -> dict[str, Any]:
    """Serve until `stopped` returns; the report of the block server.

    Raises:
        BusyError: a port is taken, or another DHCP server answers and this was to be one.
        NeedsPackageError, GuestError: dnsmasq is missing, or does not run.
        P2pcloopError: the image cannot be opened.
    """
    plan = netboot.plan
    allow_many_files()  # each machine has a connection, and an overlay
    async with AsyncExitStack() as stack:
        # Before anything is sent: a port that is taken is a reason to do nothing.
        disks = await stack.enter_async_context(lan_listener(plan.interface, plan.port))
        http = await stack.enter_async_context(lan_listener(plan.interface, plan.http_port))
        if plan.range is not None:
            await _refuse_second_server(plan.interface)

        async def more(disk: Disk) -> None:
            await _serve_disk(netboot, disk, disks, http)

        return await serve(netboot.spec, lambda: None, stopped, more=more)


async def _serve_disk(
    netboot: Netboot, disk: Disk, disks: trio.SocketListener, http: trio.SocketListener
) -> None:
    """Serve a disk that is open, and all that machines need before they read it."""
    plan = netboot.plan
    image = disk.image.device.image.image_id.hex()[:_IMAGE_DIGITS]
    image = disk_name(image, keeps=netboot.keep is not None)
    files = {
        SCRIPT: plan.script(image).encode(),
        KERNEL: netboot.kernel,
        INITRAMFS: netboot.initramfs,
    }
    kept = None if netboot.keep is None else KeptChanges(netboot.keep, netboot.spec, disk)
    machines = Machines(image, disk.image, netboot.told, kept)
    try:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(machines.close_left)
            nursery.start_soon(answer_solicitations, plan.interface)
            admits = partial(is_behind, plan.interface)
            site = NetbootSite(files)
            nursery.start_soon(partial(serve_http, [http], site, Wire(), Pace(0), admits=admits))
            limits = replace(LIMITS, admits=admits)
            nursery.start_soon(partial(serve_exports, machines, [disks], limits=limits))
            # Before our own dnsmasq has the port.
            warns = plan.range is None and not is_port_taken(plan.interface)
            await nursery.start(serve_dnsmasq, plan.server_settings(), netboot.tftp, netboot.told)
            netboot.told(tr("machines that start at the network get the image; Ctrl-C ends it"))
            if warns:
                nursery.start_soon(warn_without_server, plan.interface, netboot.told)
            await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await machines.close_all()


async def _refuse_second_server(interface: Interface) -> None:
    check_no_own_server(interface)
    other = await find_server(interface)
    if other is not None:
        raise BusyError(
            tr(
                "the DHCP server {other} answers at {interface}: machines would get addresses"
                " from either",
                other=other,
                interface=interface.name,
            ),
            hint="`--dhcp proxy` works beside it",
        )


async def warn_without_server(interface: Interface, told: Callable[[str], None]) -> None:
    """Tell if machines will get no address."""
    try:
        server = await find_server(interface)
    except OSError as err:  # the interface went down: nothing is known, and machines may come later
        told(
            tr(
                "it is not known whether a DHCP server answers at {interface}: {why}",
                interface=interface.name,
                why=err.strerror,
            )
        )
        return
    if server is None:
        told(
            tr(
                "no DHCP server has answered at {interface}: machines get no address there,"
                " unless one starts, or this ends and is started with --dhcp server --range"
                " FIRST,LAST",
                interface=interface.name,
            )
        )
