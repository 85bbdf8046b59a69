"""The display of a command's guest, and what its user is told of it."""

from __future__ import annotations

import os
from pathlib import Path

from p2pcloop.client.guests import describe_display
from p2pcloop.client.terminal import notify
from p2pcloop.errors import storage_error
from p2pcloop.store.guests import OwnGuest
from p2pcloop.words import tr
from p2pcloopd.commands.display_options import DisplayOptions
from p2pcloopd.guest.channel.display_session import Session
from p2pcloopd.guest.display import wire
from p2pcloopd.guest.display.access import password_file
from p2pcloopd.guest.display.choice import Listeners
from p2pcloopd.guest.display.host_display import find_host_display
from p2pcloopd.guest.display.spec import Display

_USUAL_SIZE = (1280, 800)


def make_display(ref: str, screen: DisplayOptions, listeners: Listeners) -> Display | None:
    """Return the display of a guest that boots `ref`, or None.

    Args:
        ref: the image.
        screen: as the user wants it.
        listeners: viewers and browsers connect there.

    Raises:
        NeedsPackageError: a program of the display is not installed.
        GuestError: the window needs the user's display, which cannot be used.
    """
    title = title_of(ref)
    if screen.display.kind == "none":
        return None
    variables = screen.settings.variables()
    vnc, web = listeners.vnc, listeners.web
    if vnc is not None:
        width, height = screen.geometry or _USUAL_SIZE
        display = Display(width, height, vnc, web=web, variables=variables, title=title)
    else:
        host = find_host_display()
        most = (host.width * 9 // 10, host.height * 9 // 10)
        width, height = screen.geometry or most
        display = Display(width, height, host=host, variables=variables, title=title)
    wire.check_programs(display)
    return display


def title_of(ref: str) -> str:
    """What stands above the display of a guest that boots `ref`. All users of this machine can see
    it among the words of the server: it has no secret of a link, which stands behind its `#`."""
    return tr("p2pcloop: {name}", name=Path(ref.partition("#")[0]).name[:64])


def make_session(screen: DisplayOptions) -> Session | None:
    """Return what is to run on a guest's display, or None."""
    return None if screen.session is None else Session(screen.session, screen.session_user)


def report_display(own: OwnGuest, display: Display) -> None:
    """Tell the user how to open the display, and write the file that gives a viewer its password.

    Raises:
        StorageError: the system refused.
    """
    if display.listener is None:
        notify(
            tr(
                "p2pcloop: display: a window of {size} on {address}",
                size=display.geometry,
                address=display.address,
            )
        )
        return
    if display.web is None:
        _write_password(own.folder.vnc_password_path, display.password)
        if not display.address.startswith("127."):
            notify(
                tr(
                    "p2pcloop: warning: other machines can connect to the display at {address}",
                    address=display.address,
                )
            )
    for line in describe_display(own.folder, display.facts()):
        notify(tr("p2pcloop: {line}", line=line))


def _write_password(path: Path, password: str) -> None:
    try:
        # The guest's directory is for its user alone, and so is this file.
        fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW, 0o600)
        with open(fd, "wb") as file:
            file.write(password_file(password))
    except OSError as err:
        raise storage_error(tr("cannot write {path}", path=path), err) from err
