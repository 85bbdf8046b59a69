"""The display of a command's guest, and what its user is told of it."""

from __future__ import annotations

import os
import shlex
import socket
from pathlib import Path

from p2pcloop.client.terminal import notify
from p2pcloop.errors import storage_error
from p2pcloop.store.guests import OwnGuest
from p2pcloopd.commands.display_options import DisplayOptions
from p2pcloopd.guest.display import wire
from p2pcloopd.guest.display.access import password_file
from p2pcloopd.guest.display.spec import Display


def make_display(ref: str, screen: DisplayOptions, listener: socket.socket) -> Display:
    """Return the display of a guest that boots `ref`; viewers connect to `listener`.

    Raises:
        NeedsPackageError: a program of the display is not installed.
    """
    wire.check_programs()
    width, height = screen.geometry
    return Display(width, height, listener, title=f"p2pcloop: {Path(ref).name[:64]}")


def report_display(own: OwnGuest, display: Display) -> None:
    """Tell the user how to open the display, and write the file that gives a viewer its password.

    Raises:
        StorageError: the system refused.
    """
    path = own.folder.vnc_password_path
    try:
        # The guest's directory is for its user alone, and so is this file.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(password_file(display.password))
    except OSError as err:
        raise storage_error(f"cannot write {path}", err) from err
    notify(f"p2pcloop: display: vncviewer -passwd {shlex.quote(str(path))} {display.address}")
    notify(f"p2pcloop: display: its password, for other viewers: {display.password}")
