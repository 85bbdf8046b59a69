"""Start programs, wait until they are ready, and end them by process id."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from bench.harness import Bench, BenchError

Argument = str | Path


@contextmanager
def server(
    argv: Sequence[Argument], socket: Path, log: Path, *, limit: float = 30
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the context is left; enter it once its `socket` is there."""
    socket.unlink(missing_ok=True)
    with serving(argv, socket.exists, log, limit=limit) as process:
        yield process


@contextmanager
def serving(
    argv: Sequence[Argument], ready: Callable[[], bool], log: Path, *, limit: float = 30
) -> Iterator[subprocess.Popen[bytes]]:
    """Run a server until the context is left; enter it once it is `ready`.

    Raises:
        BenchError: it ended before, or was not ready in time.
    """
    with log.open("wb") as output:
        process = subprocess.Popen(
            argv, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT
        )
    try:
        deadline = time.monotonic() + limit
        while not _is(ready):
            if process.poll() is not None:
                raise BenchError(f"{argv[0]} ended with {process.returncode}: {tail(log)}")
            if time.monotonic() > deadline:
                raise BenchError(f"{argv[0]} was not ready within {limit:.0f} s: {tail(log)}")
            time.sleep(0.01)
        yield process
    finally:
        process.terminate()
        try:
            process.wait(10)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _is(ready: Callable[[], bool]) -> bool:
    """Whether a server is ready. A file system whose server died answers with an error."""
    try:
        return ready()
    except OSError:
        return False


def run(argv: Sequence[Argument], *, limit: float = 600) -> str:
    """Run a program to its end; returns its output.

    Raises:
        BenchError: it failed, or did not end in time.
    """
    shown = " ".join(map(str, argv[:4]))
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit,
            check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as err:
        raise BenchError(f"{shown} ... took more than {limit:.0f} s") from err
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()[-600:]
        raise BenchError(f"{shown} ... ended with {done.returncode}: {said}")
    return done.stdout


def run_json(argv: Sequence[Argument], *, limit: float = 600) -> Any:  # noqa: ANN401  any JSON
    """Run a program that prints JSON; returns the value."""
    output = run(argv, limit=limit)
    try:
        return json.loads(output[output.index("{") :])  # fio's NBD engine prints a line before
    except ValueError as err:
        raise BenchError(f"{argv[0]} printed no JSON: {output[:200]!r}") from err


def tail(log: Path) -> str:
    """The end of a log."""
    text = log.read_text(errors="replace").strip() if log.exists() else ""
    return text[-1500:]


def storage_daemon_argv(image: Path, socket: Path, *, writable: bool = True) -> list[Argument]:
    """qemu-storage-daemon serving a raw file as vhost-user-blk."""
    mode = "on" if writable else "off"
    read_only = "off" if writable else "on"
    return [
        "qemu-storage-daemon",
        "--blockdev",
        f"driver=file,node-name=disk,filename={image},read-only={read_only}",
        "--export",
        f"type=vhost-user-blk,id=export,node-name=disk,addr.type=unix,addr.path={socket},writable={mode}",
    ]


@contextmanager
def node(bench: Bench, home: Path) -> Iterator[Path]:
    """A node's home; its daemon, if one was started, is stopped at the end."""
    home.mkdir(mode=0o700)
    try:
        yield home
    finally:
        subprocess.run(
            [bench.p2pcloop, "daemon", "stop", "--home", home],
            stdin=subprocess.DEVNULL, capture_output=True, timeout=60, check=False,
        )  # fmt: skip


@contextmanager
def fresh_node(bench: Bench, name: str) -> Iterator[Path]:
    """The same in the bench's own directory; the home is deleted at the end."""
    home = bench.work / name
    try:
        with node(bench, home):
            yield home
    finally:
        shutil.rmtree(home, ignore_errors=True)


@contextmanager
def seeding(bench: Bench) -> Iterator[str]:
    """A node that seeds the cloop while the context lasts; the link to it."""
    with node(bench, bench.work / "seeder") as home:
        argv: list[Argument] = [bench.p2pcloop, "seed", bench.cloop, "--name", "bench"]
        told = run_json([*argv, "--json", "--home", home])
        if not isinstance(told, dict) or not isinstance(told.get("link"), str):
            raise BenchError("p2pcloop seed --json printed no link")
        yield told["link"]


def daemon_pid(home: Path) -> int:
    """The process id of the p2pcloopd that holds a home, from its lock file."""
    try:
        return int((home / "lock").read_text())
    except (OSError, ValueError) as err:
        raise BenchError(f"{home}/lock has no process id: {err}") from err


def processor_seconds(pid: int) -> float:
    """Processor time that a process has used, its threads' together (proc(5))."""
    fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def fresh_copy(image: Path, copy: Path) -> None:
    """Copy an image and write it to the disk: a guest's first flush must not do that."""
    run(["cp", "--sparse=always", image, copy])
    os.sync()


def export_cloop(bench: Bench, cloop: Path, *options: str) -> Path:
    """Write the image as another cloop, by `p2pcloop export` with `options`."""
    run([bench.p2pcloop, "export", bench.image, cloop, "--force", *options])
    return cloop
