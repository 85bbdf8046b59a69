"""Frozen dataclasses of ours are as those of the standard library."""

from __future__ import annotations

import copy
import dataclasses
import pickle
from collections.abc import Callable
from dataclasses import FrozenInstanceError, field
from functools import cache
from typing import Any, ClassVar

import pytest

from p2pcloop.frozen import dataclass


@dataclass(frozen=True, slots=True)
class Point:
    """A point."""

    x: int
    y: int = 2
    names: list[str] = field(default_factory=list, compare=False)
    secret: bytes = field(default=b"s", repr=False)
    count: ClassVar[int] = 5


@dataclass(frozen=True, slots=True)
class Checked:
    size: int

    def __post_init__(self) -> None:
        if self.size < 0:
            raise ValueError("too small")


@dataclass(frozen=True, slots=True)
class Child(Point):
    z: int = 3


@dataclass(frozen=True, slots=True)
class Empty:
    """Has no field."""


@dataclass(frozen=True, slots=True)
class Own:
    value: int

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Own)

    def __hash__(self) -> int:
        return 7

    def __repr__(self) -> str:
        return "own"


@cache
def standard(cls: type) -> type:
    """The same class, as the standard library makes it."""
    names = {name: getattr(cls, name) for name in ("__doc__", "__module__", "__qualname__")}
    own = {n: vars(cls)[n] for n in ("__post_init__",) if n in vars(cls)}
    defaults = {
        each.name: field(
            default=each.default,
            default_factory=each.default_factory,
            compare=each.compare,
            repr=each.repr,
        )
        for each in dataclasses.fields(cls)
    }
    annotations = {each.name: each.type for each in dataclasses.fields(cls)}
    made = type(cls.__name__, (), {**names, **own, **defaults, "__annotations__": annotations})
    return dataclasses.dataclass(frozen=True, slots=True)(made)


MAKE: list[Callable[[Any], Any]] = [
    lambda cls: cls(1),
    lambda cls: cls(1, 2, ["a"]),
    lambda cls: cls(y=3, x=1),
    lambda cls: cls(1, 2, [], b"t"),
    lambda cls: dataclasses.replace(cls(1), y=9),
]


@pytest.mark.parametrize("cls", [Point, Child])
@pytest.mark.parametrize("make", MAKE)
def test_instances_are_alike(cls: Any, make: Callable[[Any], Any]) -> None:
    ours, theirs = make(cls), make(standard(cls))
    assert repr(ours) == repr(theirs)
    assert hash(ours) == hash(theirs)
    assert dataclasses.asdict(ours) == dataclasses.asdict(theirs)
    for other in MAKE:
        assert (ours == other(cls)) == (theirs == other(standard(cls)))
    assert ours != theirs
    for again in (copy.copy(ours), copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert again == ours
        assert again.names == ours.names
    assert cls.__match_args__ == theirs.__match_args__
    assert cls.__slots__ in (("x", "y", "names", "secret"), ("z",))


def test_nothing_can_be_changed() -> None:
    point: Any = Point(1)
    for name in ("x", "other"):
        with pytest.raises(FrozenInstanceError, match=name):
            setattr(point, name, 5)
    with pytest.raises(FrozenInstanceError):
        del point.x
    assert point == Point(1)
    assert not hasattr(point, "__dict__")
    assert Point.count == 5


def test_arguments_are_checked() -> None:
    make: Any = Point
    with pytest.raises(TypeError, match=r"Point.__init__\(\) missing 1 required .* 'x'"):
        make()
    with pytest.raises(TypeError, match="unexpected keyword"):
        make(1, w=5)
    with pytest.raises(ValueError, match="too small"):
        Checked(-1)
    assert Point(1).names is not Point(1).names


def test_what_a_class_defines_itself_stays() -> None:
    assert Own(1) == Own(2)
    assert (hash(Own(1)), repr(Own(1))) == (7, "own")
    assert (Empty(), hash(Empty()), repr(Empty())) == (Empty(), hash(()), "Empty()")
    other: object = Checked(1)
    assert other != Empty()


def test_a_match_names_fields() -> None:
    match Point(1, 5):
        case Point(1, y):
            assert y == 5
        case _:
            pytest.fail("it is a point")


def test_other_options_are_the_standard_librarys() -> None:
    @dataclass(slots=True)
    class Changing:
        x: int

    one = Changing(1)
    one.x = 2
    assert one == Changing(2)
