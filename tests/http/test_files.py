"""What each kind of `Files` does alike (http/mirrors.py): a URL, a web seed, a directory."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from p2pcloop.errors import FormatError, NotHereError, UnreachableError
from p2pcloop.formats.mirror import (
    DispatchPath,
    LayerFilePath,
    ManifestPath,
    MetainfoPath,
    MirrorPath,
)
from p2pcloopd.http.client import HttpClient, Span
from p2pcloopd.http.mirrors import DirectoryFiles, Files, SeedFiles, UrlFiles
from tests.support.ports import free_port
from tests.support.static_server import busybox_httpd, nginx

CONTENT = random.Random(1).randbytes((2 << 20) + 4321)
PACK = LayerFilePath("l" * 32, "pack")
EMPTY = LayerFilePath("l" * 32, "index")
ABSENT = LayerFilePath("m" * 32, "pack")
DISPATCH = DispatchPath(bytes(20), (1, 2))


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    """A mirror of one layer; no file of metadata lies in it."""
    for path, data in ((PACK, CONTENT), (EMPTY, b"")):
        (tmp_path / str(path)).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / str(path)).write_bytes(data)
    return tmp_path


@pytest.fixture(params=["nginx", "busybox", "web seed", "directory"])
async def files(
    request: pytest.FixtureRequest, directory: Path, client: HttpClient
) -> AsyncIterator[Files]:
    match request.param:
        case "nginx":
            with nginx(directory) as web:
                yield UrlFiles(client, web.url)
        case "busybox":
            with busybox_httpd(directory) as url:
                yield UrlFiles(client, url)
        case "web seed":
            with nginx(directory) as web:
                yield SeedFiles(client, f"{web.url}data/")
        case _:
            yield DirectoryFiles(f"{directory}/")


async def test_a_whole_file(files: Files) -> None:
    assert await files.get(PACK, len(CONTENT)) == CONTENT
    assert await files.get(PACK, len(CONTENT) + 1) == CONTENT
    assert await files.get(EMPTY, 10) == b""


async def test_a_file_over_the_limit(files: Files) -> None:
    for limit in (0, 1, len(CONTENT) - 1):
        with pytest.raises(FormatError):
            await files.get(PACK, limit)


@pytest.mark.parametrize(
    ("offset", "length"),  # no (0, 1): busybox answers `bytes=0-0` with all of the file
    [(0, 2), (1000, 5000), (len(CONTENT) - 1, 1), (0, len(CONTENT)), (1 << 20, 1 << 20)],
)
async def test_exactly_these_bytes(files: Files, offset: int, length: int) -> None:
    assert await files.get_span(PACK, Span(offset, length)) == CONTENT[offset : offset + length]


@pytest.mark.parametrize(
    ("offset", "length"), [(0, len(CONTENT) + 1), (len(CONTENT) - 1, 2), (len(CONTENT), 1)]
)
async def test_bytes_behind_the_end(files: Files, offset: int, length: int) -> None:
    with pytest.raises(FormatError):
        await files.get_span(PACK, Span(offset, length))


async def test_a_whole_file_as_it_comes(files: Files) -> None:
    parts: list[bytes] = []

    async def take(data: bytes) -> None:
        parts.append(data)

    await files.get_parts(PACK, len(CONTENT), take)
    assert b"".join(parts) == CONTENT
    assert len(parts) > 1
    await files.get_parts(EMPTY, 0, take)
    assert b"".join(parts) == CONTENT


@pytest.mark.parametrize("size", [0, 4096, 1 << 20, len(CONTENT) - 1, len(CONTENT) + 1])
async def test_a_whole_file_of_another_size(files: Files, size: int) -> None:
    async def take(_data: bytes) -> None:
        pass

    with pytest.raises(FormatError):
        await files.get_parts(PACK, size, take)


@pytest.mark.parametrize("path", [ABSENT, ManifestPath(bytes(32)), MetainfoPath(bytes(20))])
async def test_what_is_not_there(files: Files, path: MirrorPath) -> None:
    async def take(_data: bytes) -> None:
        raise AssertionError

    with pytest.raises(NotHereError):
        await files.get(path, 100)
    with pytest.raises(NotHereError):
        await files.get_span(path, Span(0, 1))
    for size in (0, 1):
        with pytest.raises(NotHereError):
            await files.get_parts(path, size, take)


async def test_files_hand_out_nothing(files: Files) -> None:
    with pytest.raises(NotHereError):
        await files.post(DISPATCH, 100)


async def test_what_is_gone_as_a_whole(client: HttpClient, tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/"
    for files in (UrlFiles(client, url), SeedFiles(client, url)):
        with pytest.raises(UnreachableError):
            await files.get(PACK, 100)
    with pytest.raises(NotHereError):
        await DirectoryFiles(f"{tmp_path}/away/").get(PACK, 100)


async def test_a_web_seed_is_asked_for_content_alone(client: HttpClient, directory: Path) -> None:
    with nginx(directory) as web:
        seed = SeedFiles(client, f"{web.url}data")  # BEP 19: the slash may lack
        assert await seed.get_span(PACK, Span(0, 10)) == CONTENT[:10]
        for path in (ManifestPath(bytes(32)), MetainfoPath(bytes(20))):
            with pytest.raises(NotHereError):
                await seed.get(path, 100)
        with pytest.raises(NotHereError):
            await seed.post(DISPATCH, 100)
        assert [(each.method, each.path) for each in web.requests()] == [("GET", f"/{PACK}")]


async def test_the_rate_of_a_server_is_known_once_it_gave_something(files: Files) -> None:
    assert files.rate() is None
    await files.get(PACK, len(CONTENT))
    rate = files.rate()
    assert (rate is None) if isinstance(files, DirectoryFiles) else (rate is not None and rate > 0)
