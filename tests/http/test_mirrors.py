"""When a mirror that failed is asked again."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock

from p2pcloop.errors import (
    FormatError,
    MismatchError,
    NotHereError,
    P2pcloopError,
    UnreachableError,
)
from p2pcloopd.http.client import OverloadedError, RangesIgnoredError, WrongRangeError
from p2pcloopd.http.mirrors import ERROR_SECONDS, FORGET_RANGES_SECONDS, MirrorReader
from tests.support.scripted_files import ScriptedFiles


@pytest.fixture
def files() -> ScriptedFiles:
    return ScriptedFiles()


@pytest.fixture
def mirror(files: ScriptedFiles) -> MirrorReader:
    return MirrorReader("http://m.example/", files)


async def fail(mirror: MirrorReader, files: ScriptedFiles, error: P2pcloopError) -> float:
    """Let a request fail; the seconds until the mirror may be asked again."""
    files.error = error
    with pytest.raises(type(error)):
        await mirror.manifest(bytes(32))
    assert mirror.fault == str(error)
    return max(0.0, mirror.not_before - trio.current_time())


@pytest.mark.parametrize(
    ("error", "seconds"),
    [
        (NotHereError("not there"), 0),
        (OverloadedError("status 503", after=7), 7),
        (OverloadedError("status 503", after=0), 0.1),
        (OverloadedError("status 503", after=86400), 30),
        (OverloadedError("status 500"), 1),
        (UnreachableError("refused"), 1),
        (WrongRangeError("another part"), 1),
        (FormatError("nonsense"), 30),
        (MismatchError("wrong bytes"), 30),
    ],
    ids=str,
)
async def test_how_long_a_mirror_that_failed_is_left_alone(
    mirror: MirrorReader,
    files: ScriptedFiles,
    error: P2pcloopError,
    seconds: float,
    mock_clock: MockClock,
) -> None:
    assert await fail(mirror, files, error) == pytest.approx(seconds)
    assert mirror.usable == (seconds == 0)
    mock_clock.jump(seconds)
    assert mirror.usable
    files.error = None
    await mirror.manifest(bytes(32))
    assert mirror.error is None


async def test_who_fails_again_and_again_is_asked_less_often(
    mirror: MirrorReader, files: ScriptedFiles, mock_clock: MockClock
) -> None:
    error = UnreachableError("refused")
    pauses = []
    for _ in range(7):
        pauses.append(await fail(mirror, files, error))
        assert await fail(mirror, files, error) == pytest.approx(pauses[-1])  # at the same time
        mock_clock.jump(pauses[-1])
    assert pauses == pytest.approx([1, 2, 4, 8, 16, 30, 30])
    files.error = None
    await mirror.manifest(bytes(32))
    assert await fail(mirror, files, error) == pytest.approx(1)


async def test_a_fault_is_told_while_it_is_one(
    mirror: MirrorReader, files: ScriptedFiles, mock_clock: MockClock
) -> None:
    def told() -> str | None:
        return mirror.error

    await fail(mirror, files, NotHereError("not there"))
    assert told() is None  # it may have a part; a reader that waits for it is told of `fault`
    await fail(mirror, files, UnreachableError("refused"))
    assert told() == "refused"
    files.error = None
    await mirror.manifest(bytes(32))  # it was asked before, and answers now
    assert told() == "refused"
    mock_clock.jump(1)
    await mirror.manifest(bytes(32))
    assert told() is None
    await fail(mirror, files, UnreachableError("refused"))
    mock_clock.jump(ERROR_SECONDS)
    assert told() is None
    await fail(mirror, files, RangesIgnoredError("ignores ranges"))
    mock_clock.jump(ERROR_SECONDS)
    assert told() == "ignores ranges"  # it does so for good
    mock_clock.jump(FORGET_RANGES_SECONDS)
    assert told() is None
