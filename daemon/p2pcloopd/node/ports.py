"""The ports that a node listens on: chosen once and kept, since links name them."""

from __future__ import annotations

import logging
import secrets
import socket
from collections.abc import Callable, Container, Sequence
from pathlib import Path

from p2pcloop.errors import BusyError, FormatError, storage_error
from p2pcloop.formats.config import MAX_LISTEN, hint_of_listen
from p2pcloop.formats.named import read_file
from p2pcloop.formats.packing import Fields, pack_canonical, unpack_canonical
from p2pcloop.store.home import replace_file
from p2pcloop.words import tr

_FIRST, _LAST = 20000, 32000
"""Below the range from which systems take the ports of outgoing connections (ip(7))."""

_TRIES = 100
_MAX_FILE = 4096

_log = logging.getLogger(__name__)

Address = tuple[str, int]


def choose_ports(
    path: Path,
    listen: Sequence[Address],
    http: Sequence[Address] | None,
    warn: Callable[[str], None] = _log.warning,
    home: str = "",
) -> tuple[list[Address], list[Address]]:
    """Put a port in place of each 0: the one kept in `path`, or a free one, which is kept.

    Args:
        listen: for BitTorrent.
        http: for HTTP; None stands for the same addresses with ports of their own.
        warn: told of a kept port that another program has.
        home: `Home.option`, for a hint.

    Returns:
        Both, with ports.

    Raises:
        BusyError: no free port was found.
        StorageError: the system refused.
    """
    kept = _load(path)
    wanted = {"ports": listen, "http": [(host, 0) for host, _ in listen] if http is None else http}
    settings = {"ports": "listen", "http": "listen" if http is None else "http.listen"}
    hints = {kind: hint_of_listen(setting, home) for kind, setting in settings.items()}
    taken = {port for ports in wanted.values() for _, port in ports}
    chosen: dict[str, list[Address]] = {}
    new: dict[str, dict[str, int]] = {}
    for kind, addresses in wanted.items():
        chosen[kind] = []
        new[kind] = dict(kept[kind])
        for host, asked in addresses:
            port = asked or _port(hints[kind], host, kept[kind].get(host), taken, warn)
            taken.add(port)
            chosen[kind].append((host, port))
            if not asked:
                new[kind][host] = port
    if new != kept:
        rows = {
            kind: [{"host": host, "port": port} for host, port in ports.items()][-MAX_LISTEN:]
            for kind, ports in new.items()
        }
        replace_file(path, pack_canonical(rows))
    return chosen["ports"], chosen["http"]


def _port(
    hint: str,
    host: str,
    kept: int | None,
    taken: Container[int],
    warn: Callable[[str], None],
) -> int:
    if kept is not None:
        if kept not in taken and _is_free(host, kept):
            return kept
        warn(
            tr(
                "another program has port {kept} of {host}, so this node takes a new one: links"
                " that were printed before lead nowhere; print them anew with `p2pcloop seed`"
                " or `publish`",
                kept=kept,
                host=host,
            )
        )
    for _ in range(_TRIES):
        port = _FIRST + secrets.randbelow(_LAST - _FIRST)
        if port not in taken and _is_free(host, port):
            return port
    raise BusyError(tr("no port of {host} is free", host=host), hint=hint)


def _is_free(host: str, port: int) -> bool:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as libtorrent binds
        try:
            probe.bind((host, port))
        except OSError:
            return False
    return True


def _load(path: Path) -> dict[str, dict[str, int]]:
    """The ports that were kept, by kind and address; a file of before HTTP has but one kind."""
    nothing: dict[str, dict[str, int]] = {"ports": {}, "http": {}}
    try:
        values = unpack_canonical(read_file(path), path.name, _MAX_FILE)
        fields = Fields(values, path.name)
        return {kind: _read_rows(fields, kind, path) for kind in nothing}
    except FileNotFoundError:
        return nothing
    except FormatError as err:
        _log.warning("%s is not used: %s", path, err)
        return nothing
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=path), err) from err


def _read_rows(fields: Fields, kind: str, path: Path) -> dict[str, int]:
    if kind not in fields:
        return {}
    rows = [Fields(row, path.name) for row in fields.items(kind, MAX_LISTEN)]
    return {row.text("host", 64): row.integer("port", 1, 65535) for row in rows}
