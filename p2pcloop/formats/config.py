"""config.toml: what may be set for a node. Nothing in it is needed.

The home's file goes before the machine's, /etc/p2pcloop/config.toml, setting by setting.

listen = ["0.0.0.0:6881"]     # where peers reach this node; default 127.0.0.1, a port kept
upload_limit = 0              # bytes a second to all peers together; 0: no limit
download_limit = 0
waiting_after = 3             # seconds without data until a reader is told who was tried
quota = "20G"                 # of the disk; what was booted least recently goes; default: no limit
log_level = "info"            # debug, info, warning or error
log_format = "lines"          # or json

[http]
listen = ["0.0.0.0:8080"]     # where it serves over HTTP: default the above, another port; []: not

[metrics]
listen = ["127.0.0.1:9190"]   # where Prometheus asks for /metrics; default: nowhere

[discovery]                   # whom the node may talk to besides the peers of links
dht = false
dht_nodes = []                # where the DHT is joined: "host:port"
lsd = false
lan = false                   # other nodes on the local network, by mDNS
upnp = false
natpmp = false
trackers = false              # those that links name
announce_trackers = []        # URLs of those that public torrents are announced to
mirrors = []                  # URLs at which names are looked up
"""

from __future__ import annotations

import ipaddress
import os
import stat
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import field
from functools import partial
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

from p2pcloop.errors import FormatError, UsageError, storage_error
from p2pcloop.formats.link import parse_mirror, parse_peer, parse_tracker
from p2pcloop.frozen import dataclass
from p2pcloop.units import parse_size
from p2pcloop.words import tr

MACHINE_CONFIG = Path("/etc/p2pcloop/config.toml")

_HINT = tr("`p2pcloop config show` lists what may be set")

MAX_RATE = (1 << 31) - 1
MAX_LISTEN = 16
MAX_QUOTA = 1 << 50
LogFormat = Literal["lines", "json"]
LOG_LEVELS = ("debug", "info", "warning", "error")

MAX_PLACES = 32
"""Nodes of the DHT, trackers, mirrors: of each kind."""


@dataclass(frozen=True, slots=True)
class Discovery:
    """The programs that the node may contact besides peers of links: none, by default.

    Attributes:
        dht: join the DHT, to find names and peers and to announce what is public.
        dht_nodes: (host, port) of nodes by which it is joined.
        lsd: hear of public torrents on the local network, and announce them there (BEP 14).
        lan: find other nodes on the local network, and be found, by mDNS.
        upnp, natpmp: have the router forward our port.
        trackers: ask the trackers that links name; they then know this node as a peer.
        announce_trackers: URLs of trackers to which what is public is announced.
        mirrors: base URLs where names are looked up; each ends in "/".
    """

    dht: bool = False
    dht_nodes: tuple[tuple[str, int], ...] = ()
    lsd: bool = False
    lan: bool = False
    upnp: bool = False
    natpmp: bool = False
    trackers: bool = False
    announce_trackers: tuple[str, ...] = ()
    mirrors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Http:
    """Serving over HTTP.

    Attributes:
        listen: as of `Config`; None stands for the same addresses with ports that are kept.
    """

    listen: tuple[tuple[str, int], ...] | None = None


@dataclass(frozen=True, slots=True)
class Metrics:
    """Serving metrics to Prometheus.

    Attributes:
        listen: (loopback address, port); () for nowhere.
    """

    listen: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True, slots=True)
class Config:
    """A node's settings.

    Attributes:
        listen: (address, port); port 0 stands for one that is chosen once and kept.
        upload_limit: bytes a second, 0 for no limit.
        download_limit: bytes a second, 0 for no limit.
        waiting_after: seconds.
        quota: bytes on the disk that torrents may take, or None for no limit.
        log_level: one of `LOG_LEVELS`.
        log_format: lines for people, or JSON for programs.
    """

    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 0),)
    upload_limit: int = 0
    download_limit: int = 0
    waiting_after: float = 3.0
    quota: int | None = None
    log_level: str = "info"
    log_format: LogFormat = "lines"
    discovery: Discovery = field(default_factory=Discovery)
    http: Http = field(default_factory=Http)
    metrics: Metrics = field(default_factory=Metrics)


def hint_of_listen(key: str, home: str) -> str:
    """What to do where a node cannot listen as the setting `key` says; `home` is `Home.option`."""
    return tr(
        "`p2pcloop config set {key} ADDRESS:PORT {home}` with another address or port",
        key=key,
        home=home,
    )


def differing(one: Config, other: Config) -> list[str]:
    """The keys of the settings in which two configurations differ."""
    return [key for key in SETTINGS if value_of(one, key) != value_of(other, key)]


def value_of(config: Config, key: str) -> object:
    """The value of a setting."""
    table, _, name = key.rpartition(".")
    return getattr(getattr(config, table) if table else config, name)


def load_config(path: Path, machine: Path = MACHINE_CONFIG) -> Config:
    """Read the settings of a node; a file that is not there sets nothing.

    Args:
        path: config.toml of the home.
        machine: what holds for all nodes of this machine unless `path` sets it.

    Raises:
        UsageError: it is not TOML, or a key is unknown or has a value that it cannot have; the
            message names the file and the key.
        StorageError: the system refused.
    """
    values: dict[str, Any] = {}
    for key, (value, _) in read_settings(path, machine).items():
        table, _, name = key.rpartition(".")
        (values.setdefault(table, {}) if table else values)[name] = value
    return _read_table(values, "", _KEYS, Config)


def read_settings(path: Path, machine: Path = MACHINE_CONFIG) -> dict[str, tuple[Any, Path]]:
    """What the files set: key → value as it is written, and the file whose value counts.

    Errors as of `load_config`.
    """
    found: dict[str, tuple[Any, Path]] = {}
    for file in (machine, path):
        found |= {key: (value, file) for key, value in check_config(read_text(file), file).items()}
    return found


def _open_at_once(file: str, flags: int) -> int:
    """Open a file; a FIFO of that name must not block."""
    return os.open(file, flags | os.O_NONBLOCK)


def read_text(file: Path) -> str:
    """The text of one file; "" where there is none. Errors as of `load_config`."""
    try:
        with open(file, "rb", opener=_open_at_once) as opened:
            if stat.S_ISFIFO(os.fstat(opened.fileno()).st_mode):
                raise UsageError(tr("{path} is a pipe, and no file", path=file))
            return opened.read().decode()
    except FileNotFoundError:
        return ""
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=file), err) from err
    except UnicodeDecodeError as err:
        raise UsageError(tr("{file}: {err}", file=file, err=err), hint="it must be UTF-8") from err


def check_config(text: str, file: Path) -> dict[str, Any]:
    """Check the text of one file; return what it sets, by key.

    Raises:
        UsageError: as of `load_config`.
    """
    try:
        values = tomllib.loads(text)
        _read_table(values, "", _KEYS, Config)
    except (tomllib.TOMLDecodeError, _BadValueError) as err:
        raise UsageError(tr("{file}: {err}", file=file, err=err), hint=_HINT) from err
    return dict(_flat(values))


def _flat(values: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from ((f"{key}.{name}", each) for name, each in value.items())
        else:
            yield key, value


class _BadValueError(Exception):
    pass


_Table = TypeVar("_Table")


def _read_table(
    values: dict[str, Any],
    prefix: str,
    keys: Mapping[str, Callable[[object], object]],
    kind: Callable[..., _Table],
) -> _Table:
    settings = {}
    for key, value in values.items():
        if key not in keys:
            raise _BadValueError(tr("there is no setting `{prefix}{key}`", prefix=prefix, key=key))
        try:
            settings[key] = keys[key](value)
        except ValueError as err:
            raise _BadValueError(
                tr("`{prefix}{key}` {err}", prefix=prefix, key=key, err=err)
            ) from err
    return kind(**settings)


def _read_switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError(tr("must be true or false"))
    return value


def _read_rate(value: object) -> int:
    rate = parse_size(value) if isinstance(value, str) else value
    if type(rate) is not int or not 0 <= rate <= MAX_RATE:
        raise ValueError(
            tr('must be bytes a second, 0 to {max_rate}, or a size like "1M"', max_rate=MAX_RATE)
        )
    return rate


def _read_seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.01 <= value <= 3600:
        raise ValueError(tr("must be seconds, 0.01 to 3600"))
    return float(value)


def _read_quota(value: object) -> int:
    size = parse_size(value) if isinstance(value, str) else value
    if type(size) is not int or not 0 <= size <= MAX_QUOTA:
        raise ValueError(tr('must be a size like "20G"'))
    return size


def _read_word(words: Sequence[str], value: object) -> str:
    if value not in words:
        raise ValueError(tr("must be one of {words}", words=", ".join(words)))
    return str(value)


def _read_listen(value: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_LISTEN:
        raise ValueError(tr("must be a list of 1 to {max_listen} addresses", max_listen=MAX_LISTEN))
    return tuple(_read_endpoint(item) for item in value)


def _read_endpoint(value: object) -> tuple[str, int]:
    host, _, port = value.rpartition(":") if isinstance(value, str) else ("", "", "")
    try:
        address = ipaddress.ip_address(host.strip("[]"))
        if (address.version == 6) != host.startswith("["):
            raise ValueError
        if not port.isascii() or not port.isdigit() or int(port) > 65535:
            raise ValueError
    except ValueError as err:
        raise ValueError(
            tr(
                'has {what!r}, which is not of the form "127.0.0.1:6881" or "[::1]:6881"',
                what=value,
            )
        ) from err
    return str(address), int(port)


def _read_http_listen(value: object) -> tuple[tuple[str, int], ...]:
    return () if value == [] else _read_listen(value)


def _read_metrics_listen(value: object) -> tuple[tuple[str, int], ...]:
    places = _read_http_listen(value)
    for host, port in places:
        if not ipaddress.ip_address(host).is_loopback:
            raise ValueError(
                tr(
                    "has {host}, and metrics are served to this machine alone: give 127.0.0.1 or"
                    " ::1",
                    host=host,
                )
            )
        if not port:
            raise ValueError(tr("needs a port: Prometheus has to know it"))
    return places


def _read_section(table: str, kind: Callable[..., object], value: object) -> object:
    if not isinstance(value, dict):
        raise ValueError(tr("must be a table: [{table}]", table=table))
    return _read_table(value, f"{table}.", _keys_of(table), kind)


def _read_places(parse: Callable[[str], object], value: object) -> tuple[object, ...]:
    if not isinstance(value, list) or len(value) > MAX_PLACES:
        raise ValueError(tr("must be a list of at most {max_places}", max_places=MAX_PLACES))
    if not all(isinstance(item, str) for item in value):
        raise ValueError(tr("must be a list of texts"))
    try:
        return tuple(parse(item) for item in value)
    except FormatError as err:
        raise ValueError(tr("cannot be used: {err}", err=err)) from err


@dataclass(frozen=True, slots=True)
class Setting:
    """One of the things that may be set.

    Attributes:
        key: "quota", or with its table: "discovery.dht".
        about: for people, in a line.
        read: takes the value of the file; raises ValueError.
        live: a p2pcloopd that runs takes over a new value.
        many: it is a list.
    """

    key: str
    about: str
    read: Callable[[object], object]
    live: bool = False
    many: bool = False


SETTINGS = {
    setting.key: setting
    for setting in (
        Setting("listen", tr("addresses where peers reach this node"), _read_listen, many=True),
        Setting(
            "upload_limit",
            tr("bytes a second to all peers together; 0: no limit"),
            _read_rate,
            live=True,
        ),
        Setting(
            "download_limit",
            tr("bytes a second from all peers; 0: no limit"),
            _read_rate,
            live=True,
        ),
        Setting(
            "waiting_after",
            tr("seconds without data until a reader is told"),
            _read_seconds,
            live=True,
        ),
        Setting("quota", tr("room on disk for images; not set: no limit"), _read_quota, live=True),
        Setting(
            "log_level",
            tr("how much p2pcloopd writes to its log: debug, info, warning, error"),
            partial(_read_word, LOG_LEVELS),
            live=True,
        ),
        Setting(
            "log_format",
            tr("of its log: lines, or json for programs"),
            partial(_read_word, get_args(LogFormat)),
            live=True,
        ),
        Setting(
            "http.listen",
            tr("addresses where it serves over HTTP; []: nowhere"),
            _read_http_listen,
            many=True,
        ),
        Setting(
            "metrics.listen",
            tr("loopback addresses where it serves /metrics for Prometheus; not set: nowhere"),
            _read_metrics_listen,
            many=True,
        ),
        Setting("discovery.dht", tr("names and peers by the BitTorrent DHT"), _read_switch),
        Setting(
            "discovery.dht_nodes",
            tr("where the DHT is joined"),
            partial(_read_places, parse_peer),
            many=True,
        ),
        Setting("discovery.lsd", tr("public torrents on the local network (BEP 14)"), _read_switch),
        Setting("discovery.lan", tr("other nodes on the local network, by mDNS"), _read_switch),
        Setting("discovery.upnp", tr("have the router forward the port (UPnP)"), _read_switch),
        Setting("discovery.natpmp", tr("the same by NAT-PMP"), _read_switch),
        Setting("discovery.trackers", tr("ask the trackers that links name"), _read_switch),
        Setting(
            "discovery.announce_trackers",
            tr("trackers that are told of what is public"),
            partial(_read_places, parse_tracker),
            many=True,
        ),
        Setting(
            "discovery.mirrors",
            tr("mirrors where names are looked up"),
            partial(_read_places, parse_mirror),
            live=True,
            many=True,
        ),
    )
}
"""All that may be set, by key."""


def _keys_of(table: str) -> dict[str, Callable[[object], object]]:
    """The settings of a table of the file, "" for those outside of all, by their own names."""
    found = (setting.key.rpartition(".") for setting in SETTINGS.values())
    return {name: SETTINGS[f"{at}{dot}{name}"].read for at, dot, name in found if at == table}


_KEYS: dict[str, Callable[[object], object]] = {
    **_keys_of(""),
    "http": partial(_read_section, "http", Http),
    "metrics": partial(_read_section, "metrics", Metrics),
    "discovery": partial(_read_section, "discovery", Discovery),
}
