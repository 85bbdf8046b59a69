"""What machines are told, as plain text: the settings of dnsmasq, and the script that iPXE runs.

A machine's firmware asks for an address and a program (PXE). It gets iPXE by TFTP, which asks once
more, tells that it is iPXE, and gets the script by HTTP: kernel and first root, and where the disk
is. A machine whose card has iPXE built in asks as iPXE at once.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from p2pcloop.errors import NeedsPackageError, UsageError
from p2pcloop.words import tr
from p2pcloopd.netboot.interface import Interface, Range

IPXE_FOLDER = Path("/usr/lib/ipxe")
BIOS_PROGRAM, EFI_PROGRAM = "undionly.kpxe", "snponly.efi"
"""iPXE of Debian's package, as it drives any card by the driver of its ROM or of the firmware."""

SCRIPT, KERNEL, INITRAMFS = "boot.ipxe", "vmlinuz", "initramfs"
"""Names of what is served over HTTP."""

TFTP_FOLDER = "/tftp"

_TAKEN_APART = re.compile(r"\$\{|&&|\|\||#|\s")
"""What has a meaning in a script of iPXE's."""

_EFI_ARCHITECTURES = {"BC_EFI": 7, "X86-64_EFI": 9}
"""Names in dnsmasq, and numbers, of 64-bit UEFI for PCs (RFC 4578 and its errata)."""


@dataclass(frozen=True, slots=True)
class NetbootPlan:
    """How machines of a LAN start.

    Attributes:
        interface: where they are.
        title: what machines show of it.
        port: of the disk's server; HTTP has the one behind it.
        words: for the kernel.
        range: the addresses that they get; None where another DHCP server gives them theirs.
    """

    interface: Interface
    title: str
    port: int
    words: tuple[str, ...] = ()
    range: Range | None = None

    @property
    def http_port(self) -> int:
        """Where kernel and first root are served."""
        return self.port + 1

    def url(self, name: str) -> str:
        """Of a file that is served over HTTP."""
        return f"http://{self.interface.address}:{self.http_port}/{name}"

    def server_settings(self) -> str:
        """The settings of dnsmasq: no DNS, DHCP at one interface, and TFTP."""
        name = self.interface.name
        lines = [
            *("port=0", f"interface={name}", "bind-interfaces", "except-interface=lo"),
            *("log-facility=-", "user=", "no-hosts", "no-resolv", "dhcp-leasefile=/run/leases"),
            *("enable-tftp", f"tftp-root={TFTP_FOLDER}", "tftp-no-blocksize"),
            # iPXE tells of itself by this option. From a proxy it takes a file only together with
            # a server's address (src/net/udp/dhcp.c, dhcp_has_pxeopts).
            "dhcp-match=set:ipxe,175",
            f"dhcp-boot=tag:ipxe,{self.url(SCRIPT)},,{self.interface.address}",
            *(self._proxy_lines() if self.range is None else self._server_lines(self.range)),
        ]
        return "".join(f"{line}\n" for line in lines)

    def _proxy_lines(self) -> Iterable[str]:
        """Tell programs alone, to machines that get their addresses elsewhere."""
        yield f"dhcp-range={self.interface.network.network_address},proxy"
        programs = {"x86PC": BIOS_PROGRAM, **dict.fromkeys(_EFI_ARCHITECTURES, EFI_PROGRAM)}
        for architecture, program in programs.items():
            yield f"pxe-service=tag:!ipxe,{architecture},p2pcloop,{program}"

    def _server_lines(self, given: Range) -> Iterable[str]:
        yield f"dhcp-range={given.first},{given.last},{self.interface.network.netmask},1h"
        yield "dhcp-authoritative"
        # This machine is no router and no name server of theirs: without a value, none is told.
        yield "dhcp-option=option:router"
        yield "dhcp-option=option:dns-server"
        for number in _EFI_ARCHITECTURES.values():
            yield f"dhcp-match=set:efi,option:client-arch,{number}"
        yield f"dhcp-boot=tag:!ipxe,tag:!efi,{BIOS_PROGRAM}"
        yield f"dhcp-boot=tag:!ipxe,tag:efi,{EFI_PROGRAM}"

    def script(self, image: str) -> str:
        """What iPXE runs (https://ipxe.org/scripting). Begins anew where something fails: a node
        may be about to start.

        Args:
            image: the name of the disk; see `Machines`.
        """
        node = f"{self.interface.address}:{self.port}"
        words = [
            *("initrd=initramfs", f"p2pcloop.node={node}", f"p2pcloop.image={image}"),
            # `netX` is the card by which the machine started.
            *("p2pcloop.mac=${netX/mac}", *self.words),
        ]
        return _SCRIPT.format(
            title=re.sub(r"[^\w .:/@-]", "_", self.title, flags=re.ASCII),
            kernel=self.url(KERNEL),
            initramfs=self.url(INITRAMFS),
            script=self.url(SCRIPT),
            words=" ".join(words),
        )


_SCRIPT = """\
#!ipxe
echo {title}
kernel {kernel} {words} || goto failed
initrd --name initramfs {initramfs} || goto failed
boot || goto failed
:failed
echo The node does not give all of it; once more in 5 seconds
sleep 5
chain --replace --autofree {script} || goto failed
"""


def check_words(words: Iterable[str]) -> tuple[str, ...]:
    """Refuse words for the kernel that iPXE would take apart.

    Raises:
        UsageError: a word has `$`, `&&`, `||`, `#` or a blank.
    """
    checked = tuple(words)
    for word in checked:
        if _TAKEN_APART.search(word) or not word.isprintable():
            raise UsageError(
                tr("the kernel's word {word!r} cannot be passed on by iPXE", word=word),
                hint="leave out `${`, `&&`, `||`, `#` and blanks",
            )
    return checked


def ipxe_programs(folder: Path = IPXE_FOLDER) -> dict[str, Path]:
    """Return the programs that are served by TFTP, by their names.

    Raises:
        NeedsPackageError: they are not installed.
    """
    programs = {name: folder / name for name in (BIOS_PROGRAM, EFI_PROGRAM)}
    for path in programs.values():
        if not path.is_file():
            raise NeedsPackageError(
                tr("{path} is not there, by which machines start", path=path),
                hint="apt-get install ipxe",
            )
    return programs
