"""BitTorrent clients that others wrote, on loopback: transmission, aria2, libtorrent as it comes.

Each as its users run it, but that it talks only to those it was told of: no DHT, local discovery,
peer exchange, uTP or port mapping. "libtorrent as it comes" is what qBittorrent and Deluge run.
"""

from __future__ import annotations

import base64
import contextlib
import json
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.error import HTTPError

import libtorrent as lt

from tests.support.ports import free_port, wait_listening
from tests.support.programs import started
from tests.support.waiting import BOUND, wait_until

Address = tuple[str, int]


@dataclass(frozen=True)
class Content:
    """A torrent as any client takes it.

    Attributes:
        metainfo: what its .torrent file holds.
        files: the directory in which its top directory lies, all of it right.
    """

    info_hash: bytes
    metainfo: bytes
    files: Path

    @classmethod
    def of(cls, torrents: Path, info_hash: bytes, tracker: str = "") -> Content:
        """What a node seeds.

        Args:
            torrents: of its home.
            tracker: the URL of one that clients are to use.
        """
        directory = torrents / info_hash.hex()
        metainfo = (directory / "torrent").read_bytes()
        if tracker:
            announce = b"8:announce%d:%s" % (len(tracker), tracker.encode())
            metainfo = b"d" + announce + metainfo[1:]
        return cls(info_hash, metainfo, directory / "data")

    def read(self, directory: Path | None = None) -> dict[str, bytes]:
        """All files below a directory (default: the right ones), by their relative paths."""
        top = directory or self.files
        (name,) = (path.name for path in self.files.iterdir())
        return {
            str(path.relative_to(top)): path.read_bytes()
            for path in sorted((top / name).rglob("*"))
            if path.is_file()
        }

    def copy(self, directory: Path) -> None:
        """Put a copy of all files below a directory."""
        shutil.copytree(self.files, directory, dirs_exist_ok=True)


class Client(Protocol):
    """A running client.

    Attributes:
        address: where it listens for peers.
        directory: below it are the files of its torrents.
    """

    address: Address
    directory: Path

    def add(self, content: Content) -> None:
        """Take a torrent: check what lies in `directory`, fetch what is missing, and seed."""

    def complete(self, info_hash: bytes) -> bool:
        """Whether it has all of a torrent and seeds it."""

    def peers(self, info_hash: bytes) -> list[Address]:
        """Who is connected to it."""


def hurried(speed: int) -> tuple[str, ...]:
    """Words before a client's command that make its clock so many times as fast.

    Not `faketime` itself, which stays as a parent that does not hand on how it is ended.
    """
    [library] = Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")
    return "env", f"LD_PRELOAD={library}", f"FAKETIME=+0 x{speed}"


def seeding(client: Client, content: Content) -> Client:
    """Have a client seed a torrent from a copy of its own; return it when it does."""
    content.copy(client.directory)
    client.add(content)
    wait_until(lambda: client.complete(content.info_hash), "the client does not seed")
    return client


class Transmission:
    """transmission-daemon, driven by its RPC (Transmission, docs/rpc-spec.md)."""

    def __init__(self, rpc_port: int, address: Address, directory: Path) -> None:
        self.address = address
        self.directory = directory
        self._url = f"http://127.0.0.1:{rpc_port}/transmission/rpc"
        self._session = ""

    def add(self, content: Content) -> None:
        metainfo = base64.b64encode(content.metainfo).decode()
        self._call("torrent-add", metainfo=metainfo)

    def complete(self, info_hash: bytes) -> bool:
        torrent = self._torrent(info_hash, "status", "leftUntilDone")
        return bool(torrent["status"] == 6 and torrent["leftUntilDone"] == 0)

    def peers(self, info_hash: bytes) -> list[Address]:
        peers = self._torrent(info_hash, "peers")["peers"]
        return [(peer["address"], peer["port"]) for peer in peers]

    def _torrent(self, info_hash: bytes, *fields: str) -> Any:
        answer = self._call("torrent-get", ids=[info_hash.hex()], fields=fields)
        (torrent,) = answer["torrents"]
        return torrent

    def _call(self, method: str, **arguments: object) -> Any:
        body = json.dumps({"method": method, "arguments": arguments}).encode()
        try:
            answer = _post(self._url, body, {"X-Transmission-Session-Id": self._session})
        except HTTPError as err:
            with err:
                assert err.code == 409, err
                self._session = err.headers["X-Transmission-Session-Id"]
            return self._call(method, **arguments)
        assert answer["result"] == "success", answer
        return answer["arguments"]


@contextlib.contextmanager
def transmission(before: Sequence[str | Path] = ()) -> Iterator[Transmission]:
    """Run transmission-daemon.

    Args:
        before: words before its command; see `hurried`.
    """
    peer_port, rpc_port = free_port(), free_port()
    with _directory() as own:
        settings = _TRANSMISSION | {
            "download-dir": str(own / "files"),
            "peer-port": peer_port,
            "rpc-port": rpc_port,
        }
        (own / "settings.json").write_text(json.dumps(settings))
        command = [*before, "transmission-daemon", "--foreground", "--config-dir", own]
        with open(own / "log", "w") as log, started(command, stdout=log, stderr=log) as process:
            wait_listening(process, rpc_port)
            yield Transmission(rpc_port, ("127.0.0.1", peer_port), own / "files")


_TRANSMISSION: dict[str, object] = {
    "bind-address-ipv4": "127.0.0.1",
    "bind-address-ipv6": "::1",
    "blocklist-enabled": False,
    "dht-enabled": False,
    "lpd-enabled": False,
    "pex-enabled": False,
    "port-forwarding-enabled": False,
    "preallocation": 0,
    "rpc-authentication-required": False,
    "rpc-bind-address": "127.0.0.1",
    "utp-enabled": False,
}


class Aria2:
    """aria2c, driven by its JSON-RPC (aria2c(1), RPC INTERFACE)."""

    def __init__(self, rpc_port: int, address: Address, directory: Path) -> None:
        self.address = address
        self.directory = directory
        self._url = f"http://127.0.0.1:{rpc_port}/jsonrpc"
        self._gids: dict[bytes, str] = {}

    def add(self, content: Content) -> None:
        metainfo = base64.b64encode(content.metainfo).decode()
        self._gids[content.info_hash] = self._call("addTorrent", metainfo)

    def open(self, link: str) -> None:
        """Take a magnet link."""
        self._call("addUri", [link])

    def complete(self, info_hash: bytes) -> bool:
        for status in self._call("tellActive"):
            if status.get("infoHash") == info_hash.hex() and "files" in status:
                self._gids[info_hash] = status["gid"]
                return bool(status.get("seeder") == "true")
        return False

    def peers(self, info_hash: bytes) -> list[Address]:
        return [(p["ip"], int(p["port"])) for p in self._call("getPeers", self._gids[info_hash])]

    def _call(self, method: str, *params: object) -> Any:
        request = {"jsonrpc": "2.0", "id": "1", "method": f"aria2.{method}", "params": params}
        return _post(self._url, json.dumps(request).encode(), {})["result"]


@contextlib.contextmanager
def aria2(before: Sequence[str | Path] = ()) -> Iterator[Aria2]:
    """Run aria2c; arguments as for `transmission`."""
    peer_port, rpc_port = free_port(), free_port()
    with _directory() as own:
        command = [
            *(*before, "aria2c", "--no-conf", f"--dir={own / 'files'}", "--interface=127.0.0.1"),
            *("--enable-rpc", f"--rpc-listen-port={rpc_port}", f"--listen-port={peer_port}"),
            *("--enable-dht=false", "--enable-dht6=false", "--bt-enable-lpd=false"),
            *("--enable-peer-exchange=false", "--follow-torrent=mem", "--file-allocation=none"),
            *("--check-integrity=true", "--seed-ratio=0.0", "--bt-tracker-interval=1"),
        ]
        environment = os.environ | {"HOME": str(own)}
        with (
            open(own / "log", "w") as log,
            started(command, stdout=log, stderr=log, env=environment) as process,
        ):
            wait_listening(process, rpc_port)
            yield Aria2(rpc_port, ("127.0.0.1", peer_port), own / "files")


class Libtorrent:
    """A libtorrent session in this process, with its default settings."""

    def __init__(self, session: lt.session, directory: Path) -> None:
        self.address = ("127.0.0.1", session.listen_port())
        self.directory = directory
        self._session = session
        self._handles: dict[bytes, lt.torrent_handle] = {}

    def add(self, content: Content) -> None:
        params = lt.add_torrent_params()
        params.ti = lt.torrent_info(content.metainfo)
        params.save_path = str(self.directory)
        params.flags &= ~(lt.torrent_flags.auto_managed | lt.torrent_flags.paused)
        self._handles[content.info_hash] = self._session.add_torrent(params)

    def complete(self, info_hash: bytes) -> bool:
        return self._handles[info_hash].status().is_seeding

    def peers(self, info_hash: bytes) -> list[Address]:
        return [peer.ip for peer in self._handles[info_hash].get_peer_info()]


@contextlib.contextmanager
def libtorrent() -> Iterator[Libtorrent]:
    """Run libtorrent as it comes."""
    settings: Any = {
        "listen_interfaces": "127.0.0.1:0",
        "outgoing_interfaces": "127.0.0.1",
        "dht_bootstrap_nodes": "",
        "webtorrent_stun_server": "",
        **dict.fromkeys(("enable_dht", "enable_lsd", "enable_upnp", "enable_natpmp"), False),
    }
    with _directory() as own:
        session = lt.session(settings)
        wait_until(session.is_listening, "libtorrent does not listen")
        yield Libtorrent(session, own / "files")
        del session


def _post(url: str, body: bytes, headers: Mapping[str, str]) -> Any:
    request = urllib.request.Request(url, body, {"Content-Type": "application/json", **headers})
    with urllib.request.urlopen(request, timeout=BOUND) as answer:
        return json.load(answer)


@contextlib.contextmanager
def _directory() -> Iterator[Path]:
    own = Path(tempfile.mkdtemp(prefix="p2pf-"))
    try:
        (own / "files").mkdir()
        yield own
    finally:
        shutil.rmtree(own)
