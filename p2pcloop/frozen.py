"""Frozen dataclasses that are made in a fifth of the time: a boot makes some 80 of them.

The standard library writes six functions of such a class as text, and compiles them. Here only
`__init__` is made so; the others are closures over the names of the fields. Type checkers see the
standard library's decorator, and everything else of that module (`field`, `replace`, `fields`) is
used as always.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from operator import attrgetter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dataclasses import dataclass
else:

    def dataclass(cls: type | None = None, /, **options: bool) -> object:
        """As `dataclasses.dataclass`; with other options than `frozen` and `slots` it is that."""
        if options != {"frozen": True, "slots": True}:
            return dataclasses.dataclass(cls, **options)
        return _freeze if cls is None else _freeze(cls)


__all__ = ["dataclass"]


def _freeze(cls: type) -> type:
    """Make a class as `dataclass(frozen=True, slots=True)` does.

    All its fields are arguments of `__init__`, by place or by name.
    """
    own = {name for name in ("__eq__", "__hash__", "__repr__") if vars(cls).get(name) is not None}
    # Else it is made of the arguments of __init__, by a module that takes long to load.
    cls.__doc__ = cls.__doc__ or cls.__name__
    made: type = dataclasses.dataclass(init=False, repr=False, eq=False, slots=True)(cls)
    fields = dataclasses.fields(made)
    values = _values([field.name for field in fields if field.compare])
    methods: dict[str, Callable[..., Any]] = {
        "__init__": _init(made, fields),
        "__repr__": _repr,
        "__eq__": _eq(values),
        "__hash__": _hash(values),
        "__setattr__": _refuse,
        "__delattr__": _refuse,
        "__getstate__": _get_state,
        "__setstate__": _set_state,
    }
    for name, method in methods.items():
        if name not in own:
            setattr(made, name, method)
    return made


def _init(cls: type, fields: Sequence[dataclasses.Field[Any]]) -> Callable[..., None]:
    names: dict[str, Any] = {"_set": object.__setattr__, "_lacks": dataclasses.MISSING}
    arguments, body = ["self"], []
    for field in fields:
        name = value = field.name
        assert field.init and not field.kw_only, "such a field needs other options"
        if field.default_factory is not dataclasses.MISSING:
            names[f"_make_{name}"] = field.default_factory
            arguments.append(f"{name}=_lacks")
            value = f"_make_{name}() if {name} is _lacks else {name}"
        elif field.default is not dataclasses.MISSING:
            names[f"_default_{name}"] = field.default
            arguments.append(f"{name}=_default_{name}")
        else:
            arguments.append(name)
        body.append(f"_set(self, {name!r}, {value})")
    if hasattr(cls, "__post_init__"):
        body.append("self.__post_init__()")
    text = f"def __init__({', '.join(arguments)}):\n " + "\n ".join(body or ["pass"])
    exec(text, names)  # noqa: S102  names of fields are identifiers
    made: Callable[..., None] = names["__init__"]
    made.__qualname__ = f"{cls.__qualname__}.__init__"
    return made


def _values(names: Sequence[str]) -> Callable[[object], tuple[Any, ...]]:
    """What returns the values of some attributes."""
    if len(names) > 1:
        return attrgetter(*names)
    return lambda instance: tuple(getattr(instance, name) for name in names)


def _eq(values: Callable[[object], tuple[Any, ...]]) -> Callable[[object, object], bool]:
    def __eq__(self: object, other: object) -> bool:  # noqa: N807
        if other.__class__ is not self.__class__:
            return NotImplemented
        return values(self) == values(other)

    return __eq__


def _hash(values: Callable[[object], tuple[Any, ...]]) -> Callable[[object], int]:
    def __hash__(self: object) -> int:  # noqa: N807
        return hash(values(self))

    return __hash__


def _repr(self: Any) -> str:  # noqa: ANN401  a dataclass
    shown = (f"{f.name}={getattr(self, f.name)!r}" for f in dataclasses.fields(self) if f.repr)
    return f"{type(self).__qualname__}({', '.join(shown)})"


def _refuse(_self: object, name: str, *_: object) -> None:
    raise dataclasses.FrozenInstanceError(f"the field {name!r} cannot be changed")


def _get_state(self: Any) -> list[Any]:  # noqa: ANN401  a dataclass
    return [getattr(self, field.name) for field in dataclasses.fields(self)]


def _set_state(self: Any, state: list[Any]) -> None:  # noqa: ANN401  a dataclass
    for field, value in zip(dataclasses.fields(self), state, strict=True):
        object.__setattr__(self, field.name, value)
