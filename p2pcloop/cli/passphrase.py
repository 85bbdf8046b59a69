"""The passphrase of a key: from the environment for scripts, else from the terminal."""

from __future__ import annotations

import os
import sys

import click

from p2pcloop.errors import UsageError

VARIABLE = "P2PCLOOP_PASSPHRASE"


def ask_passphrase(what: str) -> str:
    """The passphrase of a key that is protected.

    Args:
        what: the key, for the question.

    Raises:
        UsageError: there is nobody to ask.
    """
    given = os.environ.get(VARIABLE)
    if given is not None:
        return given
    _check_terminal(f"{what} is protected by a passphrase")
    return str(click.prompt(f"passphrase of {what}", hide_input=True, err=True))


def choose_passphrase(what: str) -> str:
    """A new passphrase, typed twice where it is typed.

    Raises:
        UsageError: it is empty, or there is nobody to ask.
    """
    given = os.environ.get(VARIABLE)
    if given is None:
        _check_terminal("a passphrase is wanted")
        question = f"new passphrase of {what}"
        given = str(
            click.prompt(
                question,
                default="",  # so that an empty one comes here, and is refused with a reason
                show_default=False,
                hide_input=True,
                confirmation_prompt=True,
                err=True,
            )
        )
    if not given:
        raise UsageError("an empty passphrase protects nothing", hint="leave out --passphrase")
    return given


def _check_terminal(why: str) -> None:
    if not sys.stdin.isatty():
        raise UsageError(
            f"{why}, and there is no terminal to ask at", hint=f"set {VARIABLE} for this command"
        )
