"""config.toml: what the user may set for a node. Nothing in it is needed.

listen = ["0.0.0.0:6881"]     # where peers reach this node; default 127.0.0.1, a port kept
upload_limit = 0              # bytes a second to all peers together; 0: no limit
download_limit = 0
waiting_after = 10            # seconds without data until a reader is told who was tried

[discovery]                   # whom the node may talk to besides the peers of links
dht = false
lsd = false
upnp = false
natpmp = false
trackers = false              # those that links name
"""

from __future__ import annotations

import ipaddress
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from p2pcloop.errors import UsageError, storage_error

MAX_RATE = (1 << 31) - 1
MAX_LISTEN = 16


@dataclass(frozen=True, slots=True)
class Discovery:
    """Which ways of finding peers are on; all are off unless the user turns them on."""

    dht: bool = False
    lsd: bool = False
    upnp: bool = False
    natpmp: bool = False
    trackers: bool = False


@dataclass(frozen=True, slots=True)
class Config:
    """A node's settings.

    Attributes:
        listen: (address, port); port 0 stands for one that is chosen once and kept.
        upload_limit: bytes a second, 0 for no limit.
        download_limit: bytes a second, 0 for no limit.
        waiting_after: seconds.
    """

    listen: tuple[tuple[str, int], ...] = (("127.0.0.1", 0),)
    upload_limit: int = 0
    download_limit: int = 0
    waiting_after: float = 10.0
    discovery: Discovery = field(default_factory=Discovery)


def load_config(path: Path) -> Config:
    """Read config.toml; a file that is not there sets nothing.

    Raises:
        UsageError: it is not TOML, or a key is unknown or has a value that it cannot have; the
            message names the file and the key.
        StorageError: the system refused.
    """
    try:
        values = tomllib.loads(path.read_text("utf-8"))
        return _read_table(values, "", _KEYS, Config)
    except FileNotFoundError:
        return Config()
    except OSError as err:
        raise storage_error(f"cannot read {path}", err) from err
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, _BadValueError) as err:
        raise UsageError(f"{path}: {err}", hint="docs/daemon.md lists what may be set") from err


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
            raise _BadValueError(f"there is no setting `{prefix}{key}`")
        try:
            settings[key] = keys[key](value)
        except ValueError as err:
            raise _BadValueError(f"`{prefix}{key}` {err}") from err
    return kind(**settings)


def _read_switch(value: object) -> bool:
    if not isinstance(value, bool):
        raise ValueError("must be true or false")
    return value


def _read_rate(value: object) -> int:
    if type(value) is not int or not 0 <= value <= MAX_RATE:
        raise ValueError(f"must be bytes a second, 0 to {MAX_RATE}")
    return value


def _read_seconds(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0.01 <= value <= 3600:
        raise ValueError("must be seconds, 0.01 to 3600")
    return float(value)


def _read_listen(value: object) -> tuple[tuple[str, int], ...]:
    if not isinstance(value, list) or not 0 < len(value) <= MAX_LISTEN:
        raise ValueError(f"must be a list of 1 to {MAX_LISTEN} addresses")
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
            f'has {value!r}, which is not of the form "127.0.0.1:6881" or "[::1]:6881"'
        ) from err
    return str(address), int(port)


def _read_discovery(value: object) -> Discovery:
    if not isinstance(value, dict):
        raise ValueError("must be a table: [discovery]")
    switches = {each.name: _read_switch for each in fields(Discovery)}
    return _read_table(value, "discovery.", switches, Discovery)


_KEYS: dict[str, Callable[[object], object]] = {
    "listen": _read_listen,
    "upload_limit": _read_rate,
    "download_limit": _read_rate,
    "waiting_after": _read_seconds,
    "discovery": _read_discovery,
}
