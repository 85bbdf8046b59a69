"""Servers that run in a thread of this process."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from socketserver import BaseServer

_LOOK_SECONDS = 0.05
"""How often a server looks whether it is to end."""


@contextlib.contextmanager
def running(server: BaseServer) -> Iterator[None]:
    """Serve while the context lasts, and close the server then."""
    with server:
        thread = threading.Thread(target=server.serve_forever, args=(_LOOK_SECONDS,))
        thread.start()
        try:
            yield
        finally:
            server.shutdown()
            thread.join()
