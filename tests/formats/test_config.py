"""config.toml: what may be set, and errors that name the key. Ports that are kept."""

from __future__ import annotations

import contextlib
import os
import re
import socket
from dataclasses import asdict
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from p2pcloop.errors import StorageError, UsageError
from p2pcloop.formats.config import Config, Discovery, Metrics, load_config
from p2pcloop.formats.packing import pack_canonical
from p2pcloopd.node.node import reachable
from p2pcloopd.node.ports import choose_ports

LOOPBACK = [("127.0.0.1", 0)]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "config.toml"


def test_nothing_needs_to_be_set(path: Path) -> None:
    assert load_config(path) == Config()
    path.write_text("# nothing\n")
    config = load_config(path)
    assert config == Config()
    assert config.listen == (("127.0.0.1", 0),)
    assert not any(asdict(config.discovery).values())


EVERYTHING = """
listen = ["0.0.0.0:6881", "[::]:6881"]
upload_limit = 1000000
download_limit = 2000000
waiting_after = 2.5
quota = "20G"
log_level = "debug"
log_format = "json"
[metrics]
listen = ["[::1]:9190"]
[discovery]
dht = true
dht_nodes = ["router.example.org:6881", "[::1]:7"]
lsd = true
lan = true
upnp = true
natpmp = true
trackers = true
announce_trackers = ["udp://tracker.example.org:80/announce"]
mirrors = ["https://example.org/images/"]
"""


def test_everything_can_be_set(path: Path) -> None:
    path.write_text(EVERYTHING)
    assert load_config(path) == Config(
        (("0.0.0.0", 6881), ("::", 6881)),
        1_000_000,
        2_000_000,
        2.5,
        20 << 30,
        "debug",
        "json",
        metrics=Metrics((("::1", 9190),)),
        discovery=Discovery(
            dht=True,
            dht_nodes=(("router.example.org", 6881), ("::1", 7)),
            lsd=True,
            lan=True,
            upnp=True,
            natpmp=True,
            trackers=True,
            announce_trackers=("udp://tracker.example.org:80/announce",),
            mirrors=("https://example.org/images/",),
        ),
    )


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("upload_limt = 1", "`upload_limt`"),
        ("[discovery]\ndth = true", r"`discovery\.dth`"),
        ("[discovery]\ndht = 1", r"`discovery\.dht`"),
        ("discovery = true", "`discovery`"),
        ('[discovery]\ndht_nodes = "h:1"', r"`discovery\.dht_nodes`"),
        ('[discovery]\ndht_nodes = ["h"]', r"`discovery\.dht_nodes`"),
        ("[discovery]\ndht_nodes = [1]", r"`discovery\.dht_nodes`"),
        ('[discovery]\nannounce_trackers = ["file:///x"]', r"`discovery\.announce_trackers`"),
        ('[discovery]\nmirrors = ["https://h/no-slash"]', r"`discovery\.mirrors`"),
        ('metrics.listen = ["0.0.0.0:9190"]', r"`metrics\.listen` .*this machine alone"),
        ('metrics.listen = ["[::]:9190"]', r"`metrics\.listen`"),
        ('metrics.listen = ["127.0.0.1:0"]', r"`metrics\.listen` needs a port"),
        ('log_level = "loud"', "`log_level` must be one of debug, info, warning, error"),
        ("log_format = 1", "`log_format` must be one of lines, json"),
        ("upload_limit = -1", "`upload_limit`"),
        ("upload_limit = true", "`upload_limit`"),
        ("download_limit = 9999999999", "`download_limit`"),
        ("waiting_after = 0", "`waiting_after`"),
        ("waiting_after = nan", "`waiting_after`"),
        ("quota = 1.5", "`quota`"),
        ("quota = true", "`quota`"),
        ("quota = -1", "`quota`"),
        ('quota = "20X"', "`quota`"),
        ('quota = "99999999T"', "`quota`"),
        ('listen = "0.0.0.0:1"', "`listen`"),
        ("listen = []", "`listen`"),
        ('listen = ["example.org:1"]', "`listen`"),
        ('listen = ["127.0.0.1"]', "`listen`"),
        ('listen = ["127.0.0.1:65536"]', "`listen`"),
        ('listen = ["::1:80"]', "`listen`"),
        ('listen = ["[127.0.0.1]:80"]', "`listen`"),
        ("listen = [6881]", "`listen`"),
        ("listen = ", "end of document"),
        ("\x00", "line 1"),
    ],
)
def test_an_error_names_file_and_key(path: Path, text: str, named: str) -> None:
    path.write_text(text)
    with pytest.raises(UsageError, match=rf"config\.toml: .*{named}"):
        load_config(path)


def test_a_pipe_is_no_config_and_a_device_may_be(path: Path) -> None:
    os.mkfifo(path)
    with pytest.raises(UsageError, match="is a pipe"):
        load_config(path)
    path.unlink()
    path.symlink_to("/dev/null")
    assert load_config(path) == Config()


def test_a_directory_in_its_place_is_named_and_not_left_open(path: Path) -> None:
    path.mkdir()
    with pytest.raises(StorageError, match=re.escape(f"cannot read {path}")):
        load_config(path)
    assert str(path) not in map(
        os.readlink, filter(os.path.islink, Path("/proc/self/fd").iterdir())
    )


def test_any_bytes_are_a_config_or_an_error(path: Path) -> None:
    @settings(deadline=None)
    @given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
    def load(data: bytes) -> None:
        path.write_bytes(data)
        with contextlib.suppress(UsageError):
            assert isinstance(load_config(path), Config)

    load()


def test_a_port_is_chosen_once(tmp_path: Path) -> None:
    path = tmp_path / "ports"
    first, _ = choose_ports(path, LOOPBACK, ())
    assert first[0][0] == "127.0.0.1"
    assert choose_ports(path, LOOPBACK, ()) == (first, [])
    both, _ = choose_ports(path, [*LOOPBACK, ("::1", 0), ("127.0.0.1", 6881)], ())
    assert (both[0], both[2]) == (first[0], ("127.0.0.1", 6881))
    assert choose_ports(path, [("::1", 0)], ()) == ([both[1]], [])


def test_http_has_ports_of_its_own(tmp_path: Path) -> None:
    path = tmp_path / "ports"
    listen, http = choose_ports(path, LOOPBACK, None)
    assert [host for host, _ in http] == ["127.0.0.1"]
    assert http != listen
    assert choose_ports(path, LOOPBACK, None) == (listen, http)
    assert choose_ports(path, LOOPBACK, [("127.0.0.1", 8080)]) == (listen, [("127.0.0.1", 8080)])
    assert choose_ports(path, LOOPBACK, LOOPBACK) == (listen, http)


def test_ports_of_a_node_from_before_http_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "ports"
    path.write_bytes(pack_canonical({"ports": [{"host": "127.0.0.1", "port": 24001}]}))
    listen, http = choose_ports(path, LOOPBACK, None)
    assert listen == [("127.0.0.1", 24001)]
    assert choose_ports(path, LOOPBACK, None) == (listen, http)


def test_a_port_that_is_taken_gives_way(tmp_path: Path) -> None:
    path = tmp_path / "ports"
    [taken], _ = choose_ports(path, LOOPBACK, ())
    with socket.create_server(taken):
        [other], _ = choose_ports(path, LOOPBACK, ())
    assert other != taken
    assert choose_ports(path, LOOPBACK, ()) == ([other], [])


@pytest.mark.parametrize("data", [b"", b"\x80", b"\xff" * 9000])
def test_damaged_ports_are_chosen_anew(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "ports"
    path.write_bytes(data)
    chosen = choose_ports(path, LOOPBACK, None)
    assert choose_ports(path, LOOPBACK, None) == chosen


@pytest.mark.parametrize(
    ("listening", "named"),
    [
        ([("127.0.0.1", 1)], [("127.0.0.1", 1)]),
        ([("127.0.0.1", 1), ("192.0.2.7", 1)], [("192.0.2.7", 1)]),
        ([("::1", 2), ("2001:db8::7", 2), ("fe80::1%eth0", 2)], [("2001:db8::7", 2)]),
        ([("127.0.0.1", 1), ("169.254.0.9", 1)], [("127.0.0.1", 1)]),
        ([], []),
    ],
)
def test_links_name_addresses_that_others_reach(
    listening: list[tuple[str, int]], named: list[tuple[str, int]]
) -> None:
    assert reachable(listening) == named


def test_the_home_goes_before_the_machine(path: Path, tmp_path: Path) -> None:
    machine = tmp_path / "machine.toml"
    assert load_config(path, machine) == Config()
    machine.write_text("quota = '1G'\nupload_limit = 7\n[discovery]\nlan = true\ndht = true\n")
    path.write_text("quota = '2G'\n[discovery]\ndht = false\n[http]\nlisten = []\n")
    both = load_config(path, machine)
    assert (both.quota, both.upload_limit) == (2 << 30, 7)
    assert both.discovery == Discovery(lan=True)
    assert both.http.listen == ()


def test_lists_are_not_joined(path: Path, tmp_path: Path) -> None:
    machine = tmp_path / "machine.toml"
    machine.write_text("listen = ['0.0.0.0:6881', '[::]:6881']\n")
    path.write_text("listen = ['127.0.0.1:0']\n")
    assert load_config(path, machine).listen == (("127.0.0.1", 0),)


@pytest.mark.parametrize("wrong", ["machine", "home"])
def test_an_error_names_the_file_that_it_is_in(path: Path, tmp_path: Path, wrong: str) -> None:
    files = {"home": path, "machine": tmp_path / "machine.toml"}
    for name, file in files.items():
        file.write_text("[discovery]\n" + ("dht = 1\n" if name == wrong else "dht = true\n"))
    with pytest.raises(UsageError, match=re.escape(f"{files[wrong]}: `discovery.dht` must be")):
        load_config(path, files["machine"])
