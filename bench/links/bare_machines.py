"""Bare machines, by QEMU (TCG): computers without a disk on a LAN, which start from the network.

    host "one": br0 ── taps ── machines          host "two": eth0, a DHCP server of others
                 └── eth0 ─────────veth──────────────────┘

p2pcloop runs in the first namespace, and br0 is its network card to the LAN. Nothing of it is
QEMU's but the machine itself: its firmware asks, and gets what any computer would get.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from bench.harness import BenchError
from bench.links import network
from bench.links.network import Host
from bench.processes import run
from tools.console import Console

Firmware = Literal["bios", "uefi"]

BRIDGE = "br0"
LEASES = "10.77.0.10,10.77.0.60"

_PROGRAMS = {"qemu-system-x86_64": "qemu-system-x86", "dnsmasq": "dnsmasq-base"}
_OVMF = Path("/usr/share/OVMF")
_ROMS = Path("/usr/lib/ipxe/qemu")
_CODE, _VARIABLES = "OVMF_CODE_4M.fd", "OVMF_VARS_4M.fd"


def why_not(firmware: Firmware = "bios") -> str | None:
    """Why there can be no bare machines here; None if there can be."""
    missing = [package for name, package in _PROGRAMS.items() if not shutil.which(name)]
    missing += [] if (_ROMS / "efi-virtio.rom").exists() else ["ipxe-qemu"]
    if firmware == "uefi" and not (_OVMF / _CODE).exists():
        missing.append("ovmf")
    if missing:
        return f"packages are missing: {', '.join(missing)}: run tools/setup"
    return network.why_not()


def _ip(host: Host, *commands: str) -> None:
    for command in commands:
        run([*host.inside, "ip", *command.split()])


def have_ipv6(host: Host, interface: str) -> None:
    """Have an interface speak IPv6, as most do; those of `network` do not."""
    setting = f"/proc/sys/net/ipv6/conf/{interface}/disable_ipv6"
    run([*host.inside, "sh", "-ec", f"echo 0 >{setting}"])


@contextmanager
def lan() -> Iterator[tuple[Host, Host]]:
    """The LAN: where p2pcloop runs, and where other servers may run.

    Raises:
        BenchError: something refused.
    """
    with network.fast_pair() as (here, other):
        _ip(
            here,
            f"link add {BRIDGE} type bridge mcast_snooping 0",
            "addr flush dev eth0",
            f"link set eth0 master {BRIDGE}",
            f"addr add {here.address}/24 dev {BRIDGE}",
            f"link set {BRIDGE} up",
        )
        have_ipv6(here, BRIDGE)
        yield here, other


@contextmanager
def dhcp_server(host: Host, work: Path) -> Iterator[None]:
    """A DHCP server that knows nothing of us, while the context lasts."""
    argv = [*host.inside, "dnsmasq", "-k", "-C", "/dev/null", "--port=0", "--interface=eth0"]
    argv += [f"--dhcp-range={LEASES},1h", f"--dhcp-leasefile={work / 'leases'}", "--user=root"]
    argv += ["--log-facility=-", "--pid-file", "--bind-interfaces", "--dhcp-authoritative"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE) as process:
        assert process.stderr is not None
        try:
            if b"started" not in process.stderr.readline():
                raise BenchError("the DHCP server did not start")
            yield
        finally:
            process.kill()


@dataclass(frozen=True, slots=True)
class Machine:
    """A computer.

    Attributes:
        number: below 200: its address at the LAN follows.
        card: its network card, as QEMU calls it.
        memory: MiB.
    """

    number: int = 1
    firmware: Firmware = "bios"
    card: str = "virtio-net-pci"
    memory: int = 512

    @property
    def mac(self) -> str:
        """The address of its network card."""
        return f"52:54:00:77:00:{self.number:02x}"

    @property
    def tap(self) -> str:
        """The bridge's port that it is connected to."""
        return f"tap{self.number}"


@contextmanager
def switched_on(
    machine: Machine, host: Host, work: Path, more: Sequence[str | Path] = ()
) -> Iterator[Console]:
    """A machine that has just been switched on, with its serial line; the power fails at the end.

    Args:
        work: for its files.
        more: further words for QEMU, such as another kernel or a disk.
    """
    _ip(
        host,
        f"tuntap add dev {machine.tap} mode tap",
        f"link set {machine.tap} master {BRIDGE} up",
    )
    log = work / f"machine-{machine.number}.log"
    try:
        argv = [*host.inside, *_command(machine, work), *map(str, more)]
        with Console(argv, log=log, errors=log.with_suffix(".err"), patience=0) as console:
            yield console
    finally:
        _ip(host, f"link delete {machine.tap}")


def _command(machine: Machine, work: Path) -> list[str]:
    words = ["setpriv", "--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", "tcg,thread=single"]
    words += ["-M", "q35", "-cpu", "qemu64,+rdrand", "-m", str(machine.memory), "-nodefaults"]
    words += ["-display", "none", "-vga", "std", "-serial", "stdio"]
    words += ["-netdev", f"tap,id=lan,ifname={machine.tap},script=no,downscript=no"]
    words += ["-device", f"{machine.card},netdev=lan,mac={machine.mac},bootindex=1", "-no-reboot"]
    if machine.firmware == "uefi":
        variables = work / f"variables-{machine.number}.fd"
        shutil.copyfile(_OVMF / _VARIABLES, variables)
        words += ["-drive", f"if=pflash,format=raw,unit=0,readonly=on,file={_OVMF / _CODE}"]
        words += ["-drive", f"if=pflash,format=raw,unit=1,file={variables}"]
    return words
