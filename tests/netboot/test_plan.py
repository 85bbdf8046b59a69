"""What machines are told."""

from __future__ import annotations

from dataclasses import replace
from ipaddress import IPv4Interface
from pathlib import Path

import pytest

from p2pcloop.errors import NeedsPackageError, UsageError
from p2pcloopd.netboot.interface import Interface, parse_range
from p2pcloopd.netboot.plan import NetbootPlan, check_words, ipxe_programs

INTERFACE = Interface("eth1", b"\x02\x00\x00\x00\x00\x01", IPv4Interface("192.168.77.1/24"))
PLAN = NetbootPlan(INTERFACE, "p2pcloop: @key/debian", 10809, ("quiet",))


def test_beside_another_server_no_address_is_given() -> None:
    lines = PLAN.server_settings().splitlines()
    assert [line for line in lines if line.startswith("dhcp-range")] == [
        "dhcp-range=192.168.77.0,proxy"
    ]
    assert "interface=eth1" in lines and "bind-interfaces" in lines and "port=0" in lines
    assert "pxe-service=tag:!ipxe,x86PC,p2pcloop,undionly.kpxe" in lines
    assert "pxe-service=tag:!ipxe,BC_EFI,p2pcloop,snponly.efi" in lines
    assert "dhcp-boot=tag:ipxe,http://192.168.77.1:10810/boot.ipxe,,192.168.77.1" in lines


def test_a_server_of_its_own_gives_addresses_and_neither_router_nor_name_server() -> None:
    given = parse_range("192.168.77.100,192.168.77.199", INTERFACE)
    lines = replace(PLAN, range=given).server_settings().splitlines()
    assert "dhcp-range=192.168.77.100,192.168.77.199,255.255.255.0,1h" in lines
    assert "dhcp-option=option:router" in lines
    assert "dhcp-boot=tag:!ipxe,tag:efi,snponly.efi" in lines
    assert not any("proxy" in line or "pxe-service" in line for line in lines)


def test_the_script_names_the_node_the_image_and_the_card() -> None:
    script = PLAN.script("0123abcd")
    assert script.startswith("#!ipxe\n")
    [kernel] = [line for line in script.splitlines() if line.startswith("kernel ")]
    assert kernel == (
        "kernel http://192.168.77.1:10810/vmlinuz initrd=initramfs"
        " p2pcloop.node=192.168.77.1:10809 p2pcloop.image=0123abcd p2pcloop.mac=${netX/mac} quiet"
        " || goto failed"
    )


def test_no_title_is_a_command() -> None:
    script = replace(PLAN, title="a\nshell || ${x}").script("0")
    assert "echo a_shell __ __x_\n" in script


@pytest.mark.parametrize("word", ["a#b", "x||y", "${net0/ip}", "a b", "a\nshell", "\x1b[2J"])
def test_words_that_ipxe_would_take_apart_are_refused(word: str) -> None:
    with pytest.raises(UsageError, match="cannot be passed on"):
        check_words(["quiet", word])


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "no range"),
        ("192.168.77.9", "no range"),
        ("192.168.77.9,192.168.77.8", "ends before"),
        ("192.168.78.1,192.168.78.9", "outside"),
        ("192.168.77.250,192.168.77.255", "outside"),
        ("192.168.77.0,192.168.77.9", "outside"),
        ("192.168.77.1,192.168.77.9", "address of eth1"),
    ],
)
def test_a_range_that_cannot_be_given_away_is_refused(text: str, why: str) -> None:
    with pytest.raises(UsageError, match=why) as caught:
        parse_range(text, INTERFACE)
    assert "192.168.77.0/24" in str(caught.value.hint)


def test_without_ipxe_the_package_is_named(tmp_path: Path) -> None:
    with pytest.raises(NeedsPackageError, match="undionly") as caught:
        ipxe_programs(tmp_path)
    assert caught.value.hint == "apt-get install ipxe"
