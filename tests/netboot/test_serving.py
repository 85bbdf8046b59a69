"""What the user is told of other DHCP servers."""

from __future__ import annotations

import errno
from ipaddress import IPv4Address, IPv4Interface

import pytest

from p2pcloopd.netboot import serving
from p2pcloopd.netboot.interface import Interface
from p2pcloopd.netboot.serving import warn_without_server

INTERFACE = Interface("eth1", b"\x02\x00\x00\x00\x00\x01", IPv4Interface("192.168.77.1/24"))


@pytest.mark.parametrize(
    ("answer", "told"),
    [
        (None, "no DHCP server has answered at eth1"),
        (IPv4Address("192.168.77.254"), ""),
        (OSError(errno.ENETDOWN, "Network is down"), "not known whether a DHCP server answers"),
    ],
)
async def test_a_lan_without_a_server_is_told(
    monkeypatch: pytest.MonkeyPatch, answer: IPv4Address | OSError | None, told: str
) -> None:
    async def find_server(interface: Interface) -> IPv4Address | None:
        assert interface is INTERFACE
        if isinstance(answer, OSError):
            raise answer
        return answer

    monkeypatch.setattr(serving, "find_server", find_server)
    said: list[str] = []
    await warn_without_server(INTERFACE, said.append)
    assert [line for line in said if told and told in line] == said
    assert bool(said) == bool(told)
