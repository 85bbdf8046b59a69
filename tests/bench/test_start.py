"""Processor time of a command and of what it started (bench/start.py)."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bench.start import children, command_times

NO_KERNEL = Path("/none")

BUSY = "import time\nwhile time.process_time() < 0.1: pass\n"

COMMAND = f"""
import subprocess, sys
subprocess.run([sys.executable, "-c", {BUSY!r}])
print("ready", flush=True)
sys.stdin.read()
"""

FORKS = f"""
import os, subprocess, sys
with subprocess.Popen(["sleep", "60"], stdin=subprocess.DEVNULL) as sleeps:
    if os.fork() == 0:
        {BUSY.splitlines()[0]}
        {BUSY.splitlines()[1]}
        print("ready", flush=True)
        sys.stdin.read()
        os._exit(0)
    os.wait()
    sleeps.kill()
"""


@contextmanager
def running(program: str) -> Iterator[int]:
    """A Python process, once it has printed `ready`; its standard input is closed at the end."""
    argv = [sys.executable, "-c", program]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        yield process.pid
        process.communicate()


def test_programs_that_have_ended_count_as_the_commands() -> None:
    with running(COMMAND) as pid:
        times = command_times(pid, NO_KERNEL, None)
    assert times["command"] >= 0.09  # counted in hundredths
    assert (times["block"], times["sandbox"], times["daemon"]) == (0, 0, 0)


def test_a_fork_is_the_block_server_and_other_programs_are_the_sandbox() -> None:
    with running(FORKS) as pid:
        programs = {Path(f"/proc/{each}/exe").resolve().name: each for each in children(pid)}
        sleeping = programs.pop("sleep")
        (forked,) = programs.values()
        times = command_times(pid, NO_KERNEL, None)
        with_daemon = command_times(pid, NO_KERNEL, forked)
        with_kernel = command_times(pid, Path(f"/proc/{sleeping}/exe").resolve(), None)
    assert times["block"] >= 0.1
    assert times["sandbox"] > 0
    assert times["daemon"] == 0
    assert with_daemon["daemon"] >= 0.1
    assert with_daemon["block"] == 0
    assert with_kernel["sandbox"] == 0
