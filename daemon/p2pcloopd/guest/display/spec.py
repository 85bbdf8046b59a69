"""What display a guest is to have."""

from __future__ import annotations

import socket
from collections.abc import Mapping
from dataclasses import field
from typing import Any

from p2pcloop.frozen import dataclass
from p2pcloopd.guest.display.access import new_cookie, new_password
from p2pcloopd.guest.display.host_display import HostDisplay
from p2pcloopd.guest.display.web import link, new_token


@dataclass(frozen=True, slots=True)
class Display:
    """An X server for one guest.

    Attributes:
        width: of the screen, in pixels.
        height: of the screen, in pixels.
        listener: listens for VNC's viewers; None for a window.
        host: the user's display, on which the window is; None for VNC.
        web: listens for browsers, or None.
        token: of the link for these.
        variables: of the environment of programs on it.
        title: what is shown above it.
        cookie: the guest shows it.
        password: viewers show it.
    """

    width: int
    height: int
    listener: socket.socket | None = None
    host: HostDisplay | None = None
    web: socket.socket | None = None
    token: str = field(default_factory=new_token, repr=False)
    variables: Mapping[str, str] = field(default_factory=dict)
    title: str = "p2pcloop"
    cookie: bytes = field(default_factory=new_cookie, repr=False)
    password: str = field(default_factory=new_password, repr=False)

    @property
    def geometry(self) -> str:
        """The size, as X programs take it."""
        return f"{self.width}x{self.height}"

    @property
    def address(self) -> str:
        """Where viewers connect, or the user's display."""
        if self.listener is None:
            assert self.host is not None
            return self.host.name
        address, port = self.listener.getsockname()
        return f"{address}:{port}"

    def facts(self) -> dict[str, Any]:
        """Return what a guest's record tells of it: the record is for its user alone."""
        if self.host is not None:
            return {"kind": "window", "address": self.address, "password": None}
        facts = {"kind": "vnc", "address": self.address, "password": self.password}
        return facts | ({} if self.web is None else {"kind": "web", "link": self.link})

    @property
    def link(self) -> str:
        """The link that opens it in a browser."""
        assert self.web is not None
        return link(self.web.getsockname(), self.token, self.password)
