"""The HTTP server and clients that others wrote: whole files, parts, resumed and conditional."""

from __future__ import annotations

import random
import re
from pathlib import Path

import trio

from tests.http.test_http_server import Part, Server, serving
from tests.support.waiting import BOUND

CONTENT = random.Random(1).randbytes(1 << 20)


def content(**rest: object) -> Part:
    return Part(CONTENT, range(len(CONTENT)), **rest)  # type: ignore[arg-type]


async def run(*command: str | Path) -> str:
    with trio.fail_after(BOUND):
        done = await trio.run_process(list(map(str, command)), capture_stdout=True)
    return done.stdout.decode()


async def curl(server: Server, *options: str | Path) -> str:
    """Run curl on the file; return the status of the answer."""
    url = f"http://127.0.0.1:{server.port}/file"
    return await run("curl", "-sS", "-m", "30", "-w", "%{http_code}", *options, url)


async def test_curl_resumes_and_compares(tmp_path: Path) -> None:
    out, tag = tmp_path / "out", tmp_path / "tag"
    async with serving(file=content()) as server:
        out.write_bytes(CONTENT[:400_000])
        assert await curl(server, "-C", "-", "-o", out) == "206"
        assert out.read_bytes() == CONTENT
        assert await curl(server, "--etag-save", tag, "-o", out) == "200"
        assert await curl(server, "--etag-compare", tag, "-o", out) == "304"
        assert await curl(server, "-z", "Sun, 06 Nov 1994 08:49:37 GMT", "-o", out) == "304"
        assert await curl(server, "-r", "5-9", "-o", out) == "206"
        assert out.read_bytes() == CONTENT[5:10]
        assert await curl(server, "-r", "0-1,5-6", "-o", out) == "200"
        assert out.read_bytes() == CONTENT


async def test_curl_as_old_and_odd_clients(tmp_path: Path) -> None:
    out = tmp_path / "out"
    async with serving(file=content()) as server:
        for options in (
            ["--http1.0"],
            ["-x", f"http://127.0.0.1:{server.port}"],  # the absolute form
            ["-X", "GET", "-d", ""],
            ["-X", "GET", "-d", "x" * 2000, "-H", "Expect: 100-continue"],
            ["-X", "GET", "-H", "Transfer-Encoding: chunked", "-d", "x"],
            ["-H", "Host:", "--http1.0"],
        ):
            assert (options, await curl(server, *options, "-o", out)) == (options, "200")
            assert out.read_bytes() == CONTENT
        assert await curl(server, "-I", "-o", out) == "200"
        assert b'ETag: "tag"' in out.read_bytes()


async def test_a_browser_resumes(tmp_path: Path) -> None:
    """Range and If-Range with the tag of the first answer: the rest, or all where it changed."""
    out = tmp_path / "out"
    resume = ["-H", "Range: bytes=1000-", "-H", 'If-Range: "tag"']
    async with serving(file=content()) as server:
        assert await curl(server, *resume, "-o", out) == "206"
        assert out.read_bytes() == CONTENT[1000:]
    async with serving(file=content(etag="another")) as server:
        assert await curl(server, *resume, "-o", out) == "200"
        assert out.read_bytes() == CONTENT


async def test_wget_resumes_and_compares_dates(tmp_path: Path) -> None:
    out = tmp_path / "file"
    out.write_bytes(CONTENT[:400_000])
    async with serving(file=content()) as server:
        url = f"http://127.0.0.1:{server.port}/file"
        await run("wget", "-q", "-T", "30", "-t", "1", "-c", "-P", tmp_path, url)
        assert out.read_bytes() == CONTENT
        assert out.stat().st_mtime == 784111777
        finds = server.site.finds
        await run("wget", "-q", "-T", "30", "-t", "1", "-N", "-P", tmp_path, url)
        assert server.site.finds == finds + 1  # not modified since: it was not sent again


async def test_wrk_on_many_connections(tmp_path: Path) -> None:
    script = tmp_path / "range.lua"
    script.write_text('wrk.headers["Range"] = "bytes=0-16383"\n')
    async with serving(file=content()) as server:
        url = f"http://127.0.0.1:{server.port}/file"
        told = await run("wrk", "-t1", "-c200", "-d1", "--timeout", "30", "-s", script, url)
    assert int(re.findall(r"(\d+) requests in", told)[0]) > 0
    assert "Socket errors" not in told
    assert "Non-2xx" not in told
