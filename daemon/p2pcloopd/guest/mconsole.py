"""Talks to a running UML over its management console (p2pcloop.protocol.mconsole)."""

from __future__ import annotations

from pathlib import Path

import trio

from p2pcloop.errors import GuestError
from p2pcloop.protocol import mconsole

REPLY_TIMEOUT = 5.0
_MAX_REPLIES = 64


async def send_command(socket_path: Path, reply_path: Path, command: str) -> str:
    """Send one command and return the text of the answer.

    Args:
        socket_path: UML's socket, as this process sees it.
        reply_path: where to take the answer; UML must see this socket under the same name.
            Made here and removed.
        command: `cad`, `version`, ...

    Raises:
        GuestError: nobody listens (yet), nothing comes back in time, or the command is refused.
    """
    with trio.socket.socket(trio.socket.AF_UNIX, trio.socket.SOCK_DGRAM) as sock:
        try:
            await sock.bind(str(reply_path))
            await sock.sendto(mconsole.encode_request(command), str(socket_path))
            with trio.fail_after(REPLY_TIMEOUT):
                return await _read_answer(sock, command)
        except OSError as err:
            raise GuestError(
                f"the guest's management console is not there: {err.strerror or err}"
            ) from err
        except trio.TooSlowError as err:
            raise GuestError(
                f"the guest's management console did not answer {command!r} "
                f"within {REPLY_TIMEOUT:.0f} s"
            ) from err
        finally:
            reply_path.unlink(missing_ok=True)  # noqa: ASYNC240  one name in a directory


async def _read_answer(sock: trio.socket.SocketType, command: str) -> str:
    text = ""
    for _ in range(_MAX_REPLIES):
        reply = mconsole.decode_reply(await sock.recv(mconsole.MAX_PACKET + 1))
        text += reply.text
        if reply.failed:
            raise GuestError(f"the guest refused {command!r}: {text}")
        if not reply.more:
            break
    return text
