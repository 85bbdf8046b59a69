"""What a node counts, for Prometheus (docs/metrics.md).

No label holds the name of an image, a guest or a peer: a time series for each would grow for ever,
and users of a dashboard need not know them.
"""

from __future__ import annotations

import os
import resource
import time
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import trio

from p2pcloop import __version__
from p2pcloop.errors import P2pcloopError
from p2pcloop.formats.exposition import MEDIA_TYPE, Metric, Samples, write_metrics
from p2pcloop.store.guests import GuestState, list_guests
from p2pcloop.store.home import Home
from p2pcloopd.http.server import BytesFile, File
from p2pcloopd.node.node import Node
from p2pcloopd.node.status import describe

PATH = "metrics"

STALLED_SECONDS = 3.0
"""Without data for so long a torrent that is wanted counts as stalled."""

METRICS = {
    metric.name: metric
    for metric in (
        Metric("p2pcloop_info", "gauge", "1; the version of p2pcloopd", ("version",)),
        Metric("p2pcloop_start_time_seconds", "gauge", "when p2pcloopd started, in Unix time"),
        Metric(
            "p2pcloop_network_received_bytes_total",
            "counter",
            "all bytes on the wire, headers estimated, by protocol: bittorrent, http_client,"
            " http_server",
            ("protocol",),
        ),
        Metric(
            "p2pcloop_network_sent_bytes_total", "counter", "the same of bytes sent", ("protocol",)
        ),
        Metric(
            "p2pcloop_content_received_bytes_total",
            "counter",
            "bytes of images that came, by source: peer, server (a mirror or web seed)",
            ("source",),
        ),
        Metric(
            "p2pcloop_content_sent_bytes_total", "counter", "bytes of images sent by BitTorrent"
        ),
        Metric(
            "p2pcloop_content_received_again_bytes_total",
            "counter",
            "bytes of images that were here when they came",
        ),
        Metric(
            "p2pcloop_content_received_hedged_bytes_total",
            "counter",
            "the same, where a second source was asked because the first was late",
        ),
        Metric("p2pcloop_peers", "gauge", "BitTorrent peers that are connected"),
        Metric(
            "p2pcloop_mirrors", "gauge", "mirrors that are known, by state: ok, fault", ("state",)
        ),
        Metric(
            "p2pcloop_images",
            "gauge",
            "names that are known, by how much of the newest version is here: complete, partial,"
            " withdrawn",
            ("state",),
        ),
        Metric(
            "p2pcloop_torrents",
            "gauge",
            "torrents, by state: complete, partial, unknown (the metadata is not here)",
            ("state",),
        ),
        Metric("p2pcloop_torrents_wanted", "gauge", "torrents of which bytes are waited for"),
        Metric("p2pcloop_torrents_stalled", "gauge", "of these, those of which none came for 3 s"),
        Metric(
            "p2pcloop_torrents_troubled",
            "gauge",
            "torrents that are not served whole: files gone, changed or damaged",
        ),
        Metric("p2pcloop_stall_seconds", "gauge", "the longest wait for bytes that goes on"),
        Metric(
            "p2pcloop_store_bytes",
            "gauge",
            "bytes of images that are here, by state: durable, provisional",
            ("state",),
        ),
        Metric("p2pcloop_store_size_bytes", "gauge", "bytes of all that is known of, here or not"),
        Metric("p2pcloop_store_quota_bytes", "gauge", "the quota; absent where there is none"),
        Metric("p2pcloop_guests", "gauge", "guests that run"),
        Metric("p2pcloop_guests_waiting", "gauge", "guests that wait for something"),
        Metric("p2pcloop_guest_wait_seconds", "gauge", "the longest wait of a guest that goes on"),
        Metric("p2pcloop_guests_memory_bytes", "gauge", "memory that the guests were given"),
        Metric("process_cpu_seconds_total", "counter", "processor time of p2pcloopd"),
        Metric("process_resident_memory_bytes", "gauge", "memory of p2pcloopd"),
        Metric("process_open_fds", "gauge", "open files of p2pcloopd"),
        Metric("process_max_fds", "gauge", "how many it may have"),
    )
}
"""All of them, by name, in the order in which they are told."""

Found = dict[str, Samples]
"""Of metrics, by name: their samples."""


async def metrics_text(node: Node) -> str:
    """All metrics, as they are now, in the text format of Prometheus."""
    guests = await trio.to_thread.run_sync(_guests, node.home)
    # Nothing is awaited behind it: a sum and its parts are of one moment.
    status = await describe(node)
    torrents = status["torrents"]
    found: Found = {
        **_of_node(node, status),
        **_content(node, torrents),
        **_of_torrents(torrents),
        "p2pcloop_images": _states(map(_image_state, status["images"]), _IMAGE_STATES),
        **_of_guests(guests),
        **_of_process(),
    }
    return write_metrics((metric, found.get(name, {})) for name, metric in METRICS.items())


class MetricsSite:
    """What is served to Prometheus (p2pcloopd.http.server.Site)."""

    def __init__(self, node: Node) -> None:
        self._node = node

    def methods(self, path: str) -> tuple[str, ...]:
        """See `Site`."""
        return ("GET", "HEAD") if path == PATH else ()

    async def find(self, path: str) -> File | None:
        """See `Site`."""
        if path != PATH:
            return None
        text = await metrics_text(self._node)
        return BytesFile(text.encode(), None, media_type=MEDIA_TYPE)

    async def post(self, path: str) -> File | None:  # noqa: ARG002  nothing is posted here
        """See `Site`."""
        return None


def _content(node: Node, torrents: list[dict[str, Any]]) -> Found:
    """Sums over all torrents, of which some are removed again, or begin to count anew."""

    def total(what: str, value: Callable[[dict[str, Any]], int]) -> int:
        return node.sums[what].of({each["info_hash"]: value(each) for each in torrents})

    everything = total("received", lambda each: int(each["traffic"]["payload_received"]))
    by_http = total(
        "by http", lambda each: sum(server["received"] for server in each["traffic"]["servers"])
    )
    sent = total("sent", lambda each: int(each["traffic"]["payload_sent"]))
    again = total("again", lambda each: int(each["received_again"]))
    hedged = total("hedged", lambda each: int(each["received_hedged"]))
    sources: Samples = {("peer",): everything - by_http, ("server",): by_http}
    return {
        "p2pcloop_content_received_bytes_total": sources,
        "p2pcloop_content_sent_bytes_total": _one(sent),
        "p2pcloop_content_received_again_bytes_total": _one(again),
        "p2pcloop_content_received_hedged_bytes_total": _one(hedged),
    }


def _one(value: float) -> Samples:
    return {(): value}


def _states(found: Iterable[str], known: tuple[str, ...]) -> Samples:
    counts = Counter(found)
    return {(state,): counts[state] for state in known}


_IMAGE_STATES = ("complete", "partial", "withdrawn")
_TORRENT_STATES = ("complete", "partial", "unknown")


def _image_state(image: dict[str, Any]) -> str:
    if not image["torrents"]:
        return "withdrawn"
    return "complete" if image["whole"] else "partial"


def _torrent_state(torrent: dict[str, Any]) -> str:
    if torrent["size"] is None:
        return "unknown"
    return "complete" if torrent["have_bytes"] >= torrent["size"] else "partial"


def _by_protocol(everything: int, client: int, served: int) -> Samples:
    """Bytes by protocol; what is not of HTTP is of BitTorrent."""
    bittorrent = everything - client - served
    return {("bittorrent",): bittorrent, ("http_client",): client, ("http_server",): served}


def _of_node(node: Node, status: dict[str, Any]) -> Found:
    client, served = node.http_client.wire, node.http_served
    quota = node.room.quota
    faults = _states(
        ("fault" if each["error"] else "ok" for each in status["mirrors"]), ("ok", "fault")
    )
    return {
        "p2pcloop_info": {(__version__,): 1},
        "p2pcloop_start_time_seconds": _one(round(time.time() - status["uptime"], 3)),
        "p2pcloop_network_received_bytes_total": _by_protocol(
            status["received"], client.received, served.received
        ),
        "p2pcloop_network_sent_bytes_total": _by_protocol(status["sent"], client.sent, served.sent),
        "p2pcloop_mirrors": faults,
        "p2pcloop_store_quota_bytes": {} if quota is None else _one(quota),
    }


def _of_torrents(torrents: list[dict[str, Any]]) -> Found:
    peers = {
        peer["address"]
        for torrent in torrents
        for peer in torrent["traffic"]["peers"]
        if peer["connected"]
    }
    stalls = [torrent["stalled"] for torrent in torrents]
    return {
        "p2pcloop_peers": _one(len(peers)),
        "p2pcloop_torrents": _states(map(_torrent_state, torrents), _TORRENT_STATES),
        "p2pcloop_torrents_wanted": _one(sum(torrent["wanted"] for torrent in torrents)),
        "p2pcloop_torrents_stalled": _one(sum(each >= STALLED_SECONDS for each in stalls)),
        "p2pcloop_torrents_troubled": _one(sum(each["trouble"] is not None for each in torrents)),
        "p2pcloop_stall_seconds": _one(max(stalls, default=0.0)),
        "p2pcloop_store_bytes": {
            ("durable",): sum(each["have_bytes"] for each in torrents),
            ("provisional",): sum(each["provisional_bytes"] for each in torrents),
        },
        "p2pcloop_store_size_bytes": _one(sum(each["size"] or 0 for each in torrents)),
    }


def _guests(home: Home) -> list[GuestState]:
    try:
        return [guest for guest in list_guests(home) if guest.state == "running"]
    except P2pcloopError:  # what is wrong there is told by `ps`
        return []


def _of_guests(guests: list[GuestState]) -> Found:
    waits = [time.time() - guest.waiting.since for guest in guests if guest.waiting is not None]
    return {
        "p2pcloop_guests": _one(len(guests)),
        "p2pcloop_guests_waiting": _one(len(waits)),
        "p2pcloop_guest_wait_seconds": _one(round(max(waits, default=0.0), 3)),
        "p2pcloop_guests_memory_bytes": _one(sum(guest.record.memory for guest in guests)),
    }


def _of_process() -> Found:
    usage = resource.getrusage(resource.RUSAGE_SELF)
    resident = int(Path("/proc/self/statm").read_text().split()[1])
    return {
        "process_cpu_seconds_total": _one(round(usage.ru_utime + usage.ru_stime, 3)),
        "process_resident_memory_bytes": _one(resident * os.sysconf("SC_PAGE_SIZE")),
        "process_open_fds": _one(len(os.listdir("/proc/self/fd"))),  # noqa: PTH208  names alone
        "process_max_fds": _one(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    }
