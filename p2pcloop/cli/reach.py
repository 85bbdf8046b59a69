"""Tells whether other machines reach the node, which they do not with the default settings."""

from __future__ import annotations

import ipaddress

from p2pcloop.store.home import Home
from p2pcloop.words import tr


def is_only_here(hosts: list[str]) -> bool:
    """Whether all of these addresses of the node are this machine's loopback."""
    return all(map(_is_loopback, hosts))


def describe_only_here(home: Home) -> str:
    """Text for a user whose node no other machine reaches."""
    return tr(
        "only this machine reaches the node: to serve others,"
        " `p2pcloop config set listen 0.0.0.0:6881 {home}`, restart it and publish again"
        " (docs/daemon.md)",
        home=home.option,
    )


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"
