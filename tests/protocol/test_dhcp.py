"""DHCP's DISCOVER and OFFER as frames."""

from __future__ import annotations

from ipaddress import IPv4Address

from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.protocol.dhcp import discover_frame, parse_offer

MAC = bytes.fromhex("525400770001")
TRANSACTION = 0x12345678

# As RFC 2131 lays it out: Ethernet, IPv4, UDP, BOOTP, and the options of a lease.
OFFER = bytes.fromhex(
    "ffffffffffff0a0000000002080045c0014800000000401117560a4d0002ffffffff00430044013400000201060012"
    "34567800008000000000000a4d00110a4d000200000000525400770001"
    + "00"
    * 202
    + "6382536335010236040a4d0002330400000e103a04000007083b0400000c4e0104ffffff001c040a4d00ff"
    "03040a4d0002ff"
)


def test_a_discover_is_a_broadcast_with_a_checksum_that_fits() -> None:
    frame = discover_frame(MAC, TRANSACTION)
    assert frame[:14] == b"\xff" * 6 + MAC + b"\x08\x00"
    header = frame[14:34]
    total = sum(int.from_bytes(header[at : at + 2], "big") for at in range(0, 20, 2))
    assert (total & 0xFFFF) + (total >> 16) == 0xFFFF
    assert int.from_bytes(header[2:4], "big") == len(frame) - 14
    assert frame[34:38] == bytes([0, 68, 0, 67])
    bootp = frame[42:]
    assert bootp[4:8] == TRANSACTION.to_bytes(4, "big")
    assert bootp[28:34] == MAC
    assert bootp[236:243] == bytes([99, 130, 83, 99, 53, 1, 1])
    assert len(bootp) >= 300  # servers drop shorter ones (RFC 1542, 2.1)


def test_an_offer_names_its_server() -> None:
    assert parse_offer(OFFER, TRANSACTION) == IPv4Address("10.77.0.2")


def test_what_is_no_offer_to_this_client_is_none() -> None:
    assert parse_offer(OFFER, TRANSACTION + 1) is None
    assert parse_offer(discover_frame(MAC, TRANSACTION), TRANSACTION) is None
    acknowledged = bytearray(OFFER)
    acknowledged[OFFER.index(bytes([53, 1, 2])) + 2] = 5
    assert parse_offer(bytes(acknowledged), TRANSACTION) is None


@given(st.integers(0, len(OFFER) - 1), st.integers(0, 255), st.integers(0, len(OFFER)))
def test_no_bytes_are_too_odd(at: int, value: int, end: int) -> None:
    frame = bytearray(OFFER)
    frame[at] = value
    parse_offer(bytes(frame[:end]), TRANSACTION)


@given(st.binary(max_size=400))
def test_neither_are_any(frame: bytes) -> None:
    parse_offer(frame, TRANSACTION)
