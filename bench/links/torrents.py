"""Torrents for foreign clients, and a tracker that names their peers."""

from __future__ import annotations

import socket
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path

from bench.links.network import Host
from bench.links.rig import listening
from bench.processes import Argument
from p2pcloop.store.home import replace_file
from p2pcloopd.engine.disk.content import Content, hash_pieces, scan
from p2pcloopd.engine.disk.metainfo import bencode, info_dictionary

_PIECE = 64 << 10
_INTERVAL = 1800
_PORTS = count(8000)  # one for each server: a host may run several


@dataclass(frozen=True, slots=True)
class Torrent:
    """A .torrent file without a tracker.

    Attributes:
        metainfo: its content: a bencoded dictionary.
        files: the directory in which the top of its content lies.
    """

    metainfo: bytes
    files: Path

    def write(self, path: Path, tracker: str) -> Path:
        """Write it, with the URL of a tracker to ask; returns `path`."""
        url = tracker.encode()
        path.write_bytes(b"d8:announce%d:%s%s" % (len(url), url, self.metainfo[1:]))
        return path


def of_node(home: Path, info_hash: str) -> Torrent:
    """The torrent that a node seeds."""
    directory = home / "torrents" / info_hash
    return Torrent((directory / "torrent").read_bytes(), directory / "data")


def of_file(path: Path, directory: Path) -> Torrent:
    """A torrent of one file, in pieces of 64 KiB; `directory`, a new one, gets a link to it.

    Larger pieces are usual for a file of some 600 MB. But a random read waits for a whole piece.
    """
    directory.mkdir()
    (directory / path.name).symlink_to(path.resolve())
    layout = replace(scan(directory), piece_length=_PIECE)
    content = Content(directory, layout)
    content.hold(content.find())
    hashes = hash_pieces(content, layout, lambda _done, _all: None)
    return Torrent(bencode({b"info": info_dictionary(layout, hashes)}), directory)


@contextmanager
def tracker(host: Host, peers: Iterable[tuple[Host, int]], place: Path) -> Iterator[str]:
    """A tracker on a host that names the same peers to each client, for any torrent; its URL.

    All requests have the same answer (BEP 3, BEP 23), so a web server gives it from a file.

    Args:
        peers: where they listen.
        place: a directory for its files.
    """
    root = place / "tracker"
    root.mkdir()
    tell_tracker(place, peers)
    with web_server(host, root, place) as url:
        yield f"{url}announce"


def tell_tracker(place: Path, peers: Iterable[tuple[Host, int]]) -> None:
    """Have the tracker with its files at `place` name these peers from now on."""
    told = b"".join(
        socket.inet_aton(each.address) + port.to_bytes(2, "big") for each, port in peers
    )
    answer = bencode({b"interval": _INTERVAL, b"peers": told})
    replace_file(place / "tracker" / "announce", answer)


@contextmanager
def web_server(host: Host, root: Path, place: Path) -> Iterator[str]:
    """nginx on a host, serving a directory; its URL, which ends in "/".

    Args:
        place: a directory for its own files.
    """
    port = next(_PORTS)
    kinds = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")
    temporary = " ".join(f"{kind}_temp_path {place}/nginx;" for kind in kinds)
    configuration = place / "nginx.conf"
    configuration.write_text(
        f"daemon off; master_process off; pid {place}/nginx.pid; error_log {place}/nginx.log;"
        f" events {{}} http {{ access_log off; sendfile on; {temporary}"
        f" server {{ listen {host.address}:{port}; root {root}; }} }}"
    )
    argv: list[Argument] = ["nginx", "-c", configuration, "-e", place / "nginx.log"]
    with listening(host, argv, port, place / "nginx.out"):
        yield f"http://{host.address}:{port}/"
