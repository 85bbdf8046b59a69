"""What a LAN consists of, and how it fills."""

from __future__ import annotations

import os
import shutil
import subprocess
from ipaddress import IPv4Network
from pathlib import Path

import pytest
import trio

from p2pcloop.errors import BusyError, GuestError, NeedsPackageError, UsageError
from p2pcloopd.guest.network import choice, lan_owner, taps
from p2pcloopd.guest.network.choice import Network, parse_network
from p2pcloopd.guest.network.lan_plan import SLOTS, choose_network
from p2pcloopd.guest.network.namespace_taps import TapMaker
from p2pcloopd.guest.sandbox.bubblewrap import SandboxedProcess
from p2pcloopd.guest.sandbox.native_output import NativeOutput


@pytest.mark.parametrize(
    ("text", "network"),
    [
        ("none", Network("none")),
        ("user", Network("user")),
        ("lan", Network("lan", "lan")),
        ("lan:class-7", Network("lan", "class-7")),
        ("bridge:br0", Network("bridge", "br0")),
        ("bridge:virbr-1.5", Network("bridge", "virbr-1.5")),
    ],
)
def test_networks(text: str, network: Network) -> None:
    assert parse_network(text) == network
    assert str(network) == text


@pytest.mark.parametrize(
    "text",
    [
        *("", "ether", "none:", "user:x", "lan:", "lan:-x", "lan:Class", "lan:a/b", "bridge"),
        *("bridge:", "bridge:..", "bridge:a b", "bridge:a/b", "bridge:sixteen-letters-"),
    ],
)
def test_what_is_no_network(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_network(text)
    assert caught.value.hint


def test_a_program_that_a_lan_lacks_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def only(missing: str) -> None:
        def which(name: str, **_: str) -> str | None:
            return None if name == missing else f"/usr/bin/{name}"

        monkeypatch.setattr(shutil, "which", which)

    for program, package in choice.LAN_PROGRAMS.items():
        only(program)
        with pytest.raises(NeedsPackageError, match=program) as caught:
            Network("lan", "lan").check()
        assert caught.value.hint == f"apt-get install {package}"


def test_only_root_may_use_a_bridge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(UsageError, match="only root") as caught:
        Network("bridge", "br0").check()
    assert "--net lan" in str(caught.value.hint)


def test_a_machine_without_taps(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(taps, "_DEVICE", str(tmp_path / "tun"))
    with pytest.raises(GuestError, match="tun, from which network cards are made") as caught:
        Network("lan", "lan").check()
    assert "modprobe tun" in str(caught.value.hint)


def test_the_network_hides_none_that_has_a_route() -> None:
    assert choose_network([]).gateway == "10.88.0.1"
    assert choose_network([IPv4Network("10.88.0.128/25")]).gateway == "172.29.88.1"
    everything = [IPv4Network("0.0.0.0/1"), IPv4Network("128.0.0.0/1")]
    assert choose_network(everything).gateway == "10.88.0.1"
    vpn = [IPv4Network("10.0.0.0/8"), IPv4Network("172.16.0.0/12")]
    assert choose_network(vpn).gateway == "192.168.188.1"
    with pytest.raises(GuestError, match=r"10\.88\.0\.0/24 \(10\.0\.0\.0/8\)") as caught:
        choose_network([*vpn, IPv4Network("192.168.0.0/16")])
    assert "--net user" in str(caught.value.hint)


def test_each_place_has_a_card_of_its_own() -> None:
    plan = choose_network([])
    slots = [plan.slot(number) for number in SLOTS]
    for values in zip(*[(s.interface, s.mac, s.address) for s in slots], strict=True):
        assert len({*values}) == len(SLOTS)
    addresses = plan.addresses(slots[0])
    assert (addresses.guest, addresses.gateway) == ("10.88.0.2", "10.88.0.1")
    assert plan.hosts({"g2": slots[1], "g1": slots[0]}) == [
        "10.88.0.2 g1.lan g1",
        "10.88.0.3 g2.lan g2",
    ]


@pytest.mark.interop
@pytest.mark.skipif(shutil.which("nft") is None, reason="needs the package nftables")
def test_nft_takes_the_rules() -> None:
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    subprocess.run(
        ["unshare", "--net", *user, "nft", "-f", "-"],
        input=choose_network([]).rules(), text=True, timeout=120, check=True,
    )  # fmt: skip


class _Maker(TapMaker):
    """Makes descriptors of nothing; some cards are still held by guests that were killed."""

    def __init__(self, held: set[str]) -> None:
        self._held = held

    def card(self, interface: str) -> int:
        if interface in self._held:
            raise BusyError("there is such a network card already")
        return os.open(os.devnull, os.O_RDONLY)


async def test_a_full_lan_says_so_and_a_place_that_is_let_go_is_free() -> None:
    ours, theirs = trio.socket.socketpair()
    native = NativeOutput()
    try:
        with ours, theirs:
            process = SandboxedProcess.__new__(SandboxedProcess)
            stream = trio.SocketStream(ours)
            maker = _Maker({"p2", "p9"})
            lan = lan_owner._Lan(choose_network([]), maker, stream, process, native)
            taken = [lan._take_place() for _ in range(len(SLOTS) - 2)]
            assert {number for number, _ in taken} == {*SLOTS} - {2, 9}
            with pytest.raises(UsageError, match="each of the LAN's 252 addresses") as caught:
                lan._take_place()
            assert "--net lan:NAME" in str(caught.value.hint)
            maker._held.remove("p9")
            number, tap = lan._take_place()
            assert number == 9
            for _, fd in [*taken, (number, tap)]:
                os.close(fd)
    finally:
        native.close()
