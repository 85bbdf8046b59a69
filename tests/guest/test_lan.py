"""A LAN of guests without guests: frames at their taps, in a network namespace of the test."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pytest

from p2pcloop.errors import GuestError
from tests.support.users import AS_ANOTHER_USER, NOBODY_ELSE, needs_another_user

pytestmark = [
    pytest.mark.interop,
    pytest.mark.skipif(
        not os.access("/dev/net/tun", os.R_OK | os.W_OK),
        reason="this user cannot use /dev/net/tun: run it as root",
    ),
]

CHECKOUT = Path(__file__).parents[2]

BEGIN = """
import json, os, socket, subprocess, sys, time
import trio
from contextlib import suppress
from pathlib import Path
from p2pcloop.errors import P2pcloopError
from p2pcloop.store.home import Home
from p2pcloopd.guest.network.lan import joined
from p2pcloopd.guest.network import frame_filter, lan, lan_owner
from tests.support.frames import ARP, EVERYBODY, IPV4, Station
from tests.support.programs import descendant, descendants
from tests.support.lans import PORT, Wire, content, ip, kind_of, own_lan, until
from tests.support.listeners import Listeners
from tests.support.waiting import BOUND, wait_until

home = Home.at(Path(sys.argv[1]))
"""


def in_a_namespace(program: str, scratch: Path, *words: str) -> Any:
    """What a program prints as JSON that runs in a network namespace of its own."""
    user = [] if os.geteuid() == 0 else ["--user", "--map-root-user"]
    done = subprocess.run(
        ["unshare", "--net", *user, sys.executable, "-c", BEGIN + program, scratch / "h", *words],
        cwd=CHECKOUT, stdout=subprocess.PIPE, timeout=120, check=True,
    )  # fmt: skip
    return json.loads(done.stdout)


TOGETHER = """
with joined(home, "lan", "g1") as first, joined(home, "lan", "g2") as second:
    one, two = Wire(first), Wire(second)
    found = {"addresses": [one.addresses.guest, two.addresses.guest]}
    request = one.station.arp_request(two.station.address)
    one.send(request)
    found["asked"] = request in two.frames()
    one.udp(two.addresses.guest, PORT, b"hello", to=two.station.mac)
    found["heard"] = next(filter(None, map(content, two.frames()))).decode()
    # dnsmasq may answer one question before it heeds the signal to read the names again.
    unknown = one.look_up("g9.lan")[0]
    found["names"] = [one.look_up("g2.lan"), two.look_up("g1.lan"), unknown]
    found["gateway"] = one.gateway().hex()
    with joined(home, "other", "g2") as third:
        three = Wire(third)
        three.send(three.station.arp_request(two.station.address))
        found["elsewhere"] = three.look_up("g1.lan")[0]
    # What the bridge took before this is there, too.
    one.send(request)
    found["then"] = sum(frame[12:14] == request[12:14] for frame in until(two, request))
print(json.dumps(found))
"""


def test_guests_of_a_lan_find_each_other_and_those_of_another_do_not(tmp_path: Path) -> None:
    here, there = "10.88.0.2", "10.88.0.3"
    assert in_a_namespace(TOGETHER, tmp_path) == {
        "addresses": [here, there],
        "asked": True,
        "heard": "hello",
        "names": [[0, there], [0, here], 3],
        "gateway": "027032700001",
        "elsewhere": 3,
        "then": 1,
    }


SPOOFED = """
with joined(home, "lan", "g1") as first, joined(home, "lan", "g2") as second:
    one, two = Wire(first), Wire(second)
    mac, address = one.station.mac, one.station.address
    senders = {
        "own": one.station,
        "address": Station(mac, two.station.address),
        "gateway": Station(mac, socket.inet_aton(one.addresses.gateway)),
        "mac": Station(two.station.mac, address),
        "outside": Station(mac, socket.inet_aton("192.0.2.1")),
    }
    for name, station in senders.items():
        one.udp(two.addresses.guest, PORT, name.encode(), to=two.station.mac, station=station)
        one.send(station.arp_request(two.station.address))
    # What a false DHCP server would say, and IPv6.
    offer = one.station.udp_datagram(67, PORT, b"offer")
    one.packet(two.addresses.guest, socket.IPPROTO_UDP, offer, to=two.station.mac)
    one.send(one.station.ethernet(EVERYBODY, 0x86DD, bytes(60)))
    end = one.station.arp_request(two.station.address)
    one.send(end)
    frames = [frame for frame in until(two, end, 2)]
    heard = [content(frame).decode() for frame in frames if content(frame)]
    asked = [frame[22:32] == mac + address for frame in frames if kind_of(frame) == ARP]
    other = [kind_of(frame) for frame in frames if kind_of(frame) not in (ARP, IPV4)]
print(json.dumps([heard, asked, other]))
"""


def test_a_guest_sends_only_as_itself(tmp_path: Path) -> None:
    assert in_a_namespace(SPOOFED, tmp_path) == [["own"], [True, True], []]


DISPLACED = """
found = []
with (
    joined(home, "lan", "g1") as first,
    joined(home, "lan", "g2") as second,
    joined(home, "lan", "g3") as third,
):
    one, two, three = Wire(first), Wire(second), Wire(third)
    thief = Station(two.station.mac, one.station.address)
    for last in range(16):
        two.send(two.station.arp_request(three.station.address))
        one.send(thief.ethernet(bytes.fromhex(f"0180c20000{last:02x}"), 0x88CC, bytes(46)))
        three.udp(two.addresses.guest, PORT, b"secret", to=two.station.mac)
        end = three.station.arp_request(bytes([10, 88, 0, 100 + last]))
        three.send(end)
        found.append([[content(frame).decode() for frame in until(wire, end) if content(frame)]
            for wire in (one, two)])
print(json.dumps(found))
"""


def test_no_guest_takes_another_ones_place_at_the_bridge(tmp_path: Path) -> None:
    """Not by a link-local frame either, which a bridge learns from before nftables sees it."""
    assert in_a_namespace(DISPLACED, tmp_path) == [[[], ["secret"]]] * 16


GATEWAY = """
with joined(home, "lan", "g1") as first:
    wire = Wire(first)
    found = [wire.gateway().hex(":")]
    with ExitStack() as stack:
        for number in range(6):
            stack.enter_context(joined(home, "lan", f"more{number}"))
    found.append(Wire(first).gateway().hex(":"))
print(json.dumps(found))
"""


def test_the_gateway_is_the_same_for_as_long_as_the_lan_lasts(tmp_path: Path) -> None:
    """The address of a bridge could be that of a tap, and change with the guests."""
    found = in_a_namespace("from contextlib import ExitStack\n" + GATEWAY, tmp_path)
    assert found == ["02:70:32:70:00:01"] * 2


OWN = """
guarded, *addresses = sys.argv[2:]
if guarded != "guarded":
    frame_filter.install_on_tap = lambda *_: None
ip("link", "set", "lo", "up")
for address in ("192.0.2.1/24", "192.0.2.2/32", "169.254.169.254/32"):
    ip("address", "add", address, "dev", "lo")
ip("route", "add", "local", "203.0.113.0/24", "dev", "lo")
ip("route", "add", "default", "dev", "lo")
own_lan(home, "lan")
with Listeners() as here, joined(home, "lan", "g1") as card:
    wire, ports = Wire(card), iter(range(PORT, 65536))

    def try_all():
        port = next(ports)
        for address in addresses:
            wire.packet(address, socket.IPPROTO_TCP, wire.station.tcp_syn(port, here.tcp))
            wire.udp(address, here.udp, address.encode())
        wire.pass_helper()
        here.look()
        return {f"{way} {address}" for way in ("tcp", "udp") for address in addresses}

    # What comes before the helper runs, the gateway keeps for three seconds, and then drops.
    wire.pass_helper()
    if guarded == "guarded":
        try_all()
    else:
        wait_until(lambda: try_all() <= here.reached)
print(json.dumps(sorted(here.reached)))
"""

HERE = ["192.0.2.1", "192.0.2.2", "203.0.113.9"]
ADDRESSES = [
    *(*HERE, "192.0.2.255", "127.0.0.1", "0.0.0.0", "169.254.169.254"),
    *("10.0.2.2", "10.0.2.3", "10.88.0.1"),
]


def test_no_frame_reaches_an_address_of_this_machine(tmp_path: Path) -> None:
    assert in_a_namespace(OWN, tmp_path, "guarded", *ADDRESSES) == []


def test_it_is_the_filter_that_keeps_them_away(tmp_path: Path) -> None:
    """Without it they are reached: the test above can fail."""
    reached = in_a_namespace(OWN, tmp_path, "open", *HERE)
    assert reached == [f"{way} {address}" for way in ("tcp", "udp") for address in HERE]


KILLED = """
def owners_processes(card):
    owner = lan.credentials(card.owner).pid
    for program in ("dnsmasq", "libslirp-helper"):
        descendant(owner, program)
    return descendants(owner)

def left():
    # Links, rules, sockets and files of this namespace and of this home.
    shown = "ip -o link; nft list ruleset; grep p2pcloop /proc/net/unix"
    told = subprocess.run(["sh", "-c", shown], stdout=subprocess.PIPE)
    return told.stdout, sorted(home.root.rglob("*"))

before, names = left(), []
with joined(home, "lan", "g1") as card:
    count = len(owners_processes(card))
for number in range(count):
    with joined(home, "lan", "g1") as card, joined(home, "lan", "g2"):
        processes = owners_processes(card)
        assert len(processes) == count, processes
        names.append(processes[number].program())
        processes[number].kill()
    for process in processes:
        process.wait()
    assert left() == before, (names, left(), before)
print(json.dumps(names))
"""


def test_nothing_is_left_whichever_process_is_killed(tmp_path: Path) -> None:
    names = in_a_namespace(KILLED, tmp_path)
    assert {"bwrap", "dnsmasq", "libslirp-helper"} < {*names}


TOLD = """
with joined(home, "lan", "g1") as card:
    owner = lan.credentials(card.owner).pid
    said = []
    async def follow():
        await card.follow(said.append)
        said.append("end")
    async def main():
        with trio.fail_after(120):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(follow)
                descendant(owner, "libslirp-helper").kill()
                while not said:
                    await trio.sleep(0.01)
                with joined(home, "lan", "g2") as other:
                    assert other.addresses.guest == "10.88.0.3"
                descendant(owner, "dnsmasq").kill()
    trio.run(main)
print(json.dumps(said))
"""


def test_guests_are_told_what_becomes_of_their_lan(tmp_path: Path) -> None:
    said = in_a_namespace(TOLD, tmp_path)
    assert said[0].startswith("has no network any more: its helper ended (exit status 137)")
    assert said[1].startswith("the services of its LAN have ended")
    assert said[2:] == ["is on its own now: the process that had its LAN has ended", "end"]


ENDED = """
path, run = home.root.with_name("code"), lan_owner.run
def told(function):
    code = "none: an error"
    try:
        code = run(function)
        return code
    finally:
        path.write_text(f"{code}\\n")
lan_owner.run = told
own_lan(home, "lan")
with joined(home, "lan", "g1"):
    pass
wait_until(lambda: path.exists() and path.read_text())
print(json.dumps(path.read_text()))
"""


def test_a_lan_ends_well_with_its_last_guest(tmp_path: Path) -> None:
    assert in_a_namespace(ENDED, tmp_path) == "0\n"


REFUSED = """
from contextlib import asynccontextmanager
from p2pcloop.errors import GuestError

@asynccontextmanager
async def refused(*_, **__):
    raise GuestError("the sandbox does not start", hint="allow user namespaces")
    yield

lan_owner.sandbox.running = refused
own_lan(home, "lan")
try:
    with joined(home, "lan", "g1"):
        told = None
except GuestError as err:
    told = str(err), err.hint
print(json.dumps(told))
"""


def test_what_keeps_a_lan_from_being_made_is_told_to_the_guest(tmp_path: Path) -> None:
    """As without user namespaces."""
    told = in_a_namespace(REFUSED, tmp_path)
    assert told == ["the sandbox does not start", "allow user namespaces"]


LATER_ON = """
def joined_later(guest):
    end = time.monotonic() + BOUND
    while True:
        try:
            with joined(home, "lan", guest) as card:
                return card.addresses.guest
        except P2pcloopError:
            assert time.monotonic() < end
"""

NO_ROOM = """
lan_owner.SLOTS = range(2, 4)
own_lan(home, "lan")
with joined(home, "lan", "g1") as first:
    with joined(home, "lan", "g2"):
        try:
            with joined(home, "lan", "g3"):
                told = None
        except P2pcloopError as err:
            told = str(err), err.hint
        names = [Wire(first).look_up(f"{name}.lan")[0] for name in ("g1", "g2", "g3")]
    # The owner may not have seen yet that the second one has left.
    print(json.dumps([told, names, joined_later("g3")]))
"""


def test_a_guest_without_a_free_address_is_told_and_changes_nothing(tmp_path: Path) -> None:
    [[said, hint], names, later] = in_a_namespace(LATER_ON + NO_ROOM, tmp_path)
    assert said == "each of the LAN's 2 addresses has a guest"
    assert hint == "end a guest, or boot this one in another LAN: `--net lan:NAME`"
    assert names == [0, 0, 3]
    assert later == "10.88.0.3"


IN_USE = """
ip("link", "set", "lo", "up")
for network in ("10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16"):
    ip("route", "add", network, "dev", "lo")
before = sorted(home.root.rglob("*"))
try:
    with joined(home, "lan", "g1"):
        told = None
except P2pcloopError as err:
    told = str(err), err.hint
assert sorted(home.root.rglob("*")) == before
ip("route", "delete", "172.16.0.0/12", "dev", "lo")
# The owner tells all who ask for a second that it has no network.
print(json.dumps([told, joined_later("g1")]))
"""


def test_a_machine_whose_networks_are_all_in_use_is_told(tmp_path: Path) -> None:
    [[said, hint], later] = in_a_namespace(LATER_ON + IN_USE, tmp_path)
    assert said.startswith("this machine has routes to each network that a LAN could have: 10.88")
    assert "--net user" in hint
    assert later == "172.29.88.2"


NO_PROCESS = """
import sys
from p2pcloopd.guest.network import lan_owner
def refuse():
    raise BlockingIOError(11, "Resource temporarily unavailable")
lan_owner.TapMaker = refuse
sys.exit(lan_owner.main())
"""


def test_an_owner_that_fails_before_it_serves_says_why(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", NO_PROCESS, f"p2pcloop-test{tmp_path}"],
        cwd=CHECKOUT, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == GuestError.exit_code
    assert done.stderr.startswith("a process for its taps is refused: Resource temporarily")


TAKEN = """
with socket.socket(socket.AF_UNIX) as taken:
    taken.bind(lan.address_of(home, "lan"))
    taken.listen()
    os.geteuid = lambda euid=os.geteuid(): euid + 1
    lan.address_of = lambda home, name, found=taken.getsockname(): found
    try:
        with joined(home, "lan", "g1"):
            told = None
    except BusyError as err:
        told = str(err), err.hint
print(json.dumps(told))
"""


def test_another_users_program_at_a_lans_place_is_not_believed(tmp_path: Path) -> None:
    said, hint = in_a_namespace("from p2pcloop.errors import BusyError\n" + TAKEN, tmp_path)
    assert said == "another user's program has the place of the LAN lan"
    assert hint == "give the LAN another name: `--net lan:NAME`"


FULL = """
with ExitStack() as stack:
    taken = stack.enter_context(socket.socket(socket.AF_UNIX))
    taken.bind(lan.address_of(home, "lan"))
    taken.listen(0)
    with suppress(BlockingIOError):
        while True:
            client = stack.enter_context(socket.socket(socket.AF_UNIX))
            client.setblocking(False)
            client.connect(taken.getsockname())
    try:
        with joined(home, "lan", "g1"):
            told = None
    except P2pcloopError as err:
        told = str(err), err.hint
print(json.dumps(told))
"""


def test_a_lans_place_that_takes_no_clients_is_not_waited_for(tmp_path: Path) -> None:
    said, hint = in_a_namespace("from contextlib import ExitStack\n" + FULL, tmp_path)
    assert said.startswith("the LAN lan cannot be reached")
    assert hint == "give the LAN another name: `--net lan:NAME`"


AHEAD = """
ahead = socket.socket(socket.AF_UNIX)
ahead.bind(lan.address_of(home, "lan"))
start = lan._start_owner
def started(address):
    start(address)
    ahead.close()
lan._start_owner = started
with joined(home, "lan", "g1") as card:
    print(json.dumps(card.addresses.guest))
"""


def test_two_guests_may_begin_a_lan_at_once(tmp_path: Path) -> None:
    """The other one's owner has the address, and does not listen yet."""
    assert in_a_namespace(AHEAD, tmp_path) == "10.88.0.2"


LATER = """
def told(card):
    said = []
    async def follow():
        with trio.CancelScope() as scope:
            def say(text):
                said.append(text)
                scope.cancel()
            await card.follow(say)
    trio.run(follow)
    return said

with joined(home, "lan", "g1") as first, joined(home, "lan", "g2") as second:
    descendant(lan.credentials(first.owner).pid, "libslirp-helper").kill()
    said = told(first)
    with joined(home, "lan", "g3") as third:
        said += told(third)
        two, three = Wire(second), Wire(third)
        # The second guest ends, and has not read what it was told.
        found = two.look_up("g2.lan")[0]
        second.owner.close()
        while three.look_up("g2.lan")[0] == 0:
            pass
print(json.dumps([found, said]))
"""


def test_what_became_of_a_lan_is_told_to_later_guests_and_kept_from_none(tmp_path: Path) -> None:
    found, said = in_a_namespace(LATER, tmp_path)
    assert found == 0
    ended = "has no network any more: its helper ended (exit status 137)"
    assert [text.startswith(ended) for text in said] == [True, True]


ORDINARY = """
mount -t tmpfs tun /dev/net && mknod -m $0 /dev/net/tun c 10 200 && "$@"
"""


def as_ordinary_user(program: str, tun_mode: str) -> Any:
    """As `in_a_namespace`, for a user without rights, and with a /dev/net/tun of a given mode."""
    home = Path(tempfile.mkdtemp(prefix="p2p-lan-"))
    os.chown(home, NOBODY_ELSE, NOBODY_ELSE)
    words = ["unshare", "--net", "--mount", "sh", "-c", ORDINARY, tun_mode, *AS_ANOTHER_USER]
    try:
        done = subprocess.run(
            [*words, sys.executable, "-c", BEGIN + program, home / "h"],
            cwd=CHECKOUT, stdout=subprocess.PIPE, timeout=120, check=True,
        )  # fmt: skip
    finally:
        shutil.rmtree(home)
    return json.loads(done.stdout)


@needs_another_user
def test_a_lan_needs_no_root() -> None:
    """Where /dev/net/tun is for all users, as in Debian."""
    assert as_ordinary_user(TOGETHER, "666")["names"][0] == [0, "10.88.0.3"]


CLOSED = """
try:
    with joined(home, "lan", "g1"):
        told = None
except P2pcloopError as err:
    told = str(err), err.hint
print(json.dumps(told))
"""


CHECKED = """
from p2pcloopd.guest.network.choice import parse_network
try:
    parse_network("lan").check()
    told = None
except P2pcloopError as err:
    told = str(err), err.hint
print(json.dumps(told))
"""


@needs_another_user
@pytest.mark.parametrize(
    ("program", "message"),
    [
        (CLOSED, "no network card can be made in the LAN's namespace: Permission denied"),
        (
            CHECKED,
            "cannot open /dev/net/tun, from which network cards are made: Permission denied",
        ),
    ],
)
def test_a_tun_that_is_closed_to_users_is_named(program: str, message: str) -> None:
    said, hint = as_ordinary_user(program, "600")
    assert said == message
    assert "chmod 666 /dev/net/tun" in hint


@needs_another_user
def test_a_tun_that_is_open_to_users_is_found() -> None:
    assert as_ordinary_user(CHECKED, "666") is None
