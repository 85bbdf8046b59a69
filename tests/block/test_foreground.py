"""A server in the foreground, and the signals that end it."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from tests.support.waiting import BOUND

PROGRAM = """
import sys, trio
from p2pcloopd.block.server import serve_until_signal

async def serving(stopped):
    print("runs", flush=True)
    await stopped()
    print("ends", flush=True)
    # All is made durable meanwhile.
    await trio.to_thread.run_sync(sys.stdin.readline)
    return {"durable": True}

print(trio.run(serve_until_signal, serving), flush=True)
"""


@pytest.mark.parametrize("number", [signal.SIGHUP, signal.SIGTERM, signal.SIGINT])
def test_it_ends_in_order_however_often_it_is_told(number: signal.Signals) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "runs\n"
            process.send_signal(number)
            assert process.stdout.readline() == "ends\n"
            # A shell's terminal that closes sends one more.
            for again in (signal.SIGHUP, signal.SIGINT, signal.SIGTERM):
                process.send_signal(again)
            told, _ = process.communicate("\n", BOUND)
        finally:
            process.kill()
    assert told == "{'durable': True}\n"
    assert process.returncode == 0


def test_nohup_keeps_it() -> None:
    with subprocess.Popen(
        ["nohup", sys.executable, "-c", PROGRAM],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    ) as process:
        assert process.stdin is not None and process.stdout is not None
        try:
            assert process.stdout.readline() == "runs\n"
            process.send_signal(signal.SIGHUP)
            process.send_signal(signal.SIGTERM)
            assert process.stdout.readline() == "ends\n"
            process.communicate("\n", BOUND)
        finally:
            process.kill()
    assert process.returncode == 0
