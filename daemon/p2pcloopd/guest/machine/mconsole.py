"""Talks to a running UML over its management console (p2pcloop.protocol.mconsole).

UML's socket lies where native code of the guest may write, so its path is not trusted: a symbolic
link there could lead to a socket of the host, since this process resolves an absolute link from its
own root.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import trio

from p2pcloop.errors import GuestError
from p2pcloop.protocol import mconsole
from p2pcloop.words import tr

REPLY_TIMEOUT = 5.0
_MAX_REPLIES = 64
_NOT_THERE = (errno.ENOENT, errno.ECONNREFUSED)


class NotThereError(GuestError):
    """UML does not listen, or not yet: its kernel has just begun."""


async def send_command(root: Path, socket_path: Path, reply_path: Path, command: str) -> str:
    """Send one command and return the text of the answer.

    Args:
        root: UML's root directory, as this process sees it.
        socket_path: UML's socket, as UML sees it; absolute.
        reply_path: where to take the answer; UML must see this socket under the same name, in a
            directory that others cannot enter. Made here and removed.
        command: `cad`, `version`, ...

    Raises:
        NotThereError: UML does not listen, or not yet.
        GuestError: it does not answer in time, or refuses the command.
    """
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock:
        try:
            await sock.bind(str(reply_path))
            reply_path.chmod(0o666)  # noqa: ASYNC240  UML may run as another user
            with _opened(root, socket_path) as console:
                await sock.sendto(mconsole.encode_request(command), console)
            with trio.fail_after(REPLY_TIMEOUT):
                return await _read_answer(sock, command)
        except OSError as err:
            kind = NotThereError if err.errno in _NOT_THERE else GuestError
            raise kind(
                tr("the guest's management console is not there: {why}", why=err.strerror or err)
            ) from err
        except trio.TooSlowError as err:
            raise GuestError(
                tr(
                    "the guest's management console did not answer {command!r} within"
                    " {reply_timeout:.0f} s",
                    command=command,
                    reply_timeout=REPLY_TIMEOUT,
                )
            ) from err
        finally:
            reply_path.unlink(missing_ok=True)  # noqa: ASYNC240  one name in a directory


def is_there(root: Path, socket_path: Path) -> bool:
    """Whether UML's socket is there, as far as this can be told. UML makes it when it starts; to
    remove it is the first thing that it does at its end.

    Args:
        root, socket_path: as for `send_command`.
    """
    try:
        with _opened(root, socket_path):
            return True
    except FileNotFoundError:
        return not root.exists()  # else the whole sandbox has ended
    except OSError:  # native code has put something else there
        return True


@contextmanager
def _opened(root: Path, path: Path) -> Iterator[str]:
    """Yield a name for the socket at `path` below `root`, reached without a symbolic link.

    Raises:
        OSError: something on the way is no directory, or what is there no socket.
    """
    here = os.open(root, os.O_PATH | os.O_DIRECTORY)
    try:
        *directories, name = path.relative_to("/").parts
        steps = [(part, os.O_DIRECTORY) for part in directories] + [(name, 0)]
        for part, kind in steps:
            there = os.open(part, os.O_PATH | os.O_NOFOLLOW | kind, dir_fd=here)
            os.close(here)
            here = there
        if not stat.S_ISSOCK(os.fstat(here).st_mode):
            raise OSError(tr("{path} is no socket", path=path))
        yield f"/proc/self/fd/{here}"
    finally:
        os.close(here)


async def _read_answer(sock: trio.socket.SocketType, command: str) -> str:
    text = ""
    for _ in range(_MAX_REPLIES):
        reply = mconsole.decode_reply(await sock.recv(mconsole.MAX_PACKET + 1))
        text += reply.text
        if reply.failed:
            raise GuestError(
                tr("the guest refused {command!r}: {text}", command=command, text=text)
            )
        if not reply.more:
            break
    return text
