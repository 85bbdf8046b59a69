"""Whether another user's state may run here: the user is asked, unless it is known."""

from __future__ import annotations

import sys
from collections.abc import Collection

from p2pcloop.client.terminal import ask_trust
from p2pcloop.errors import UsageError
from p2pcloop.formats.name import Name, format_key
from p2pcloop.store.home import Home
from p2pcloop.store.keys import our_keys
from p2pcloop.store.trust import TrustedKeys
from p2pcloop.words import tr


def check_trust(name: Name, home: Home, given: Collection[bytes] = ()) -> None:
    """Return if a state may run here: it is the user's own, or its key is trusted. Else ask.

    Args:
        name: of the state, whose signature was checked.
        given: keys that are trusted this time.

    Raises:
        UsageError: it may not.
        P2pcloopError: keys of this home cannot be read.
    """
    if name.key in given or name.key in our_keys(home.keys) or name.key in TrustedKeys(home).all():
        return
    key = f"@{format_key(name.key)}"
    if not sys.stdin.isatty() or not sys.stderr.isatty():
        raise UsageError(
            tr("{name} is a state of another user: it runs only if you trust its key", name=name),
            hint=tr(
                "`--trust {key}` this time, or `p2pcloop key trust {key}` from now on", key=key
            ),
        )
    match ask_trust(tr("{name} is a state of another user", name=name)):
        case "no":
            raise UsageError(tr("{name} was not resumed: its key is not trusted", name=name))
        case "always":
            TrustedKeys(home).add(name.key)
