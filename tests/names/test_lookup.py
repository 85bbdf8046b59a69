"""Looking a name up: all sources at once, bounded in time, and a bad one hides no good one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.errors import NotHereError, UnreachableError
from p2pcloop.formats.name import Name
from p2pcloop.formats.record import Record, sign_record
from p2pcloopd.names.lookup import (
    GRACE_SECONDS,
    LOOK_SECONDS,
    FoundRecord,
    LookedUp,
    RecordSource,
    look_up,
)

KEY = Ed25519PrivateKey.from_private_bytes(bytes(range(32)))
NAME = Name(KEY.public_key().public_bytes_raw(), "debian")


def record(version: int = 1, manifest: bytes = b"m", label: str = "debian") -> bytes:
    body = Record(NAME.key, label, version, 0, manifest * 32, b"t" * 20)
    return sign_record(body, KEY)


def forged() -> bytes:
    other = Ed25519PrivateKey.from_private_bytes(b"x" * 32)
    body = Record(other.public_key().public_bytes_raw(), "debian", 99, 0, b"f" * 32, b"t" * 20)
    return sign_record(body, other).replace(body.key, NAME.key)


@dataclass
class Source:
    """A source that answers after some seconds, or fails, or never comes back."""

    name: str
    answers: Sequence[bytes] = ()
    seconds: float = 0
    error: Exception | None = None
    asked: int = 0

    async def find(self, name: Name) -> Sequence[FoundRecord]:
        assert name == NAME
        self.asked += 1
        await trio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        return [FoundRecord(data, mirrors=(f"{self.name}/",)) for data in self.answers]


HANGING = Source("hangs", [record(50)], float("inf"))


def timed_look(*sources: RecordSource, thorough: bool = True) -> tuple[LookedUp, float]:
    """Look with a clock that jumps when nothing else is to be done; also, how long it took."""

    async def work() -> tuple[LookedUp, float]:
        begun = trio.current_time()
        looked = await look_up(NAME, sources, thorough=thorough)
        return looked, trio.current_time() - begun

    return trio.run(work, clock=trio.testing.MockClock(autojump_threshold=0))


def look(*sources: RecordSource) -> LookedUp:
    return timed_look(*sources)[0]


def versions(looked: LookedUp) -> list[int]:
    return [signed.record.version for signed in looked.newest]


def test_the_newest_valid_record_wins() -> None:
    looked = look(
        Source("old", [record(1)], 0),
        Source("new", [record(3)], 5),
        Source("middle", [record(2)], 7),
    )
    assert versions(looked) == [3]
    assert looked.mirrors == ["new/"]
    assert looked.problems == []


@pytest.mark.parametrize(
    ("bad", "says"),
    [
        (Source("bad", error=UnreachableError("bad: no answer")), "bad: no answer"),
        (Source("bad", [b""]), "bad: "),
        (Source("bad", [b"<html>"]), "bad: "),
        (Source("bad", [record(9)[:-1]]), "bad: "),
        (Source("bad", [forged()]), "not signed by that key"),
        (Source("bad", [record(9, label="other")]), "bad: answered with a record of @"),
        (HANGING, "hangs: no answer in time"),
    ],
)
def test_a_bad_source_is_told_and_hides_no_good_one(bad: Source, says: str) -> None:
    for sources in ((bad, Source("good", [record(2)])), (Source("good", [record(2)]), bad)):
        looked = look(*(replace(source) for source in sources))
        assert versions(looked) == [2]
        assert looked.mirrors == ["good/"]
        [problem] = looked.problems
        assert problem.startswith(says) if says.endswith("answer") else says in problem


@pytest.mark.parametrize("error", [None, NotHereError("not there")])
def test_to_have_no_record_is_no_problem(error: Exception | None) -> None:
    looked = look(Source("other", error=error), Source("good", [record(2)]))
    assert (versions(looked), looked.problems) == ([2], [])
    assert looked.without == ["other: has no record of it"]


def test_one_bad_record_of_a_source_hides_not_its_others() -> None:
    looked = look(Source("mixed", [forged(), record(2), b"nonsense", record(4)]))
    assert versions(looked) == [4]
    assert len(looked.problems) == 2


def test_it_takes_a_bounded_time() -> None:
    looked, seconds = timed_look(*(replace(HANGING) for _ in range(5)))
    assert versions(looked) == []
    assert seconds == pytest.approx(LOOK_SECONDS)


def test_any_version_is_waited_for_only_a_moment_longer() -> None:
    sources = (Source("a", [record(1)], 3), Source("b", [record(2)], 9), replace(HANGING))
    looked, seconds = timed_look(*sources, thorough=False)
    assert versions(looked) == [1]
    assert seconds == pytest.approx(3 + GRACE_SECONDS)
    assert versions(look(*sources)) == [2]


def test_all_are_asked_at_once() -> None:
    sources = [Source(f"s{number}", [record(number)], 4) for number in range(1, 20)]
    looked, seconds = timed_look(*sources)
    assert versions(looked) == [19]
    assert seconds == pytest.approx(4)
    assert {source.asked for source in sources} == {1}


def test_nobody_to_ask() -> None:
    assert look().newest == []


def test_two_manifests_under_the_newest_version_are_both_told() -> None:
    looked = look(
        Source("a", [record(2, b"a")]),
        Source("b", [record(2, b"b")]),
        Source("c", [record(2, b"a")]),
    )
    assert {signed.record.manifest_id for signed in looked.newest} == {b"a" * 32, b"b" * 32}
    assert versions(looked) == [2, 2]


@given(st.permutations([(1, b"a"), (2, b"b"), (2, b"b"), (3, b"c"), (3, b"d"), (1, b"e")]))
def test_the_order_of_answers_does_not_matter(answers: list[tuple[int, bytes]]) -> None:
    sources = [
        Source(f"s{number}", [record(version, manifest)], number)
        for number, (version, manifest) in enumerate(answers)
    ]
    looked = look(*sources)
    assert {signed.record.manifest_id for signed in looked.newest} == {b"c" * 32, b"d" * 32}
    assert set(versions(looked)) == {3}
