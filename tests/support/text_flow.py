"""Where the texts of a program go: what is assigned, returned or yielded that `tr` has marked."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

from tools.json_table import CHECKOUT
from tools.translations import branches

Scope = ast.FunctionDef | ast.AsyncFunctionDef | ast.Module
Functions = set[tuple[str, str]]
"""Module and name of functions that return texts."""

_MARKS = {("p2pcloop.words", name) for name in ("tr", "tr_n", "joined", "as_text")}
_ROUNDS = 3
"""Assignments that follow each other within a function."""


class Flow:
    """The texts of one module.

    Attributes:
        functions: the names that are called in it for a text.
    """

    def __init__(self, path: Path, tree: ast.Module, known: Functions) -> None:
        self.module = ".".join(path.relative_to(CHECKOUT).with_suffix("").parts).removeprefix(
            "daemon."
        )
        self.functions = {name for module, name in known if module == self.module}
        self.functions |= {
            each.asname or each.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ImportFrom)
            for each in node.names
            if (node.module, each.name) in known
        }
        self.scopes = [node for node in ast.walk(tree) if isinstance(node, Scope)]
        self._names: dict[Scope, set[str]] = {}

    def returning(self) -> list[ast.FunctionDef | ast.AsyncFunctionDef]:
        """The functions of the module that return or yield a text."""
        return [
            scope
            for scope in self.scopes
            if not isinstance(scope, ast.Module)
            and any(self.is_text(value, self.names(scope)) for value in results(scope))
        ]

    def names(self, scope: Scope) -> set[str]:
        """The variables of a function that hold a text, or a list with one."""
        if scope in self._names:
            return self._names[scope]
        names = self._names[scope] = set()
        assignments = list(assigned(scope))
        for _ in range(_ROUNDS):
            for target, value in assignments:
                if self.is_text(value, names):
                    parts = target.elts if isinstance(target, ast.Tuple) else [target]
                    names |= {part.id for part in parts if isinstance(part, ast.Name)}
        return names

    def is_text(self, value: ast.expr, names: set[str]) -> bool:
        """Whether an expression is a text, or a list with one. A table is neither."""
        return not isinstance(value, ast.Dict) and any(
            self._is_text(part, names) for part in branches(value)
        )

    def _is_text(self, part: ast.expr, names: set[str]) -> bool:
        match part:
            case ast.Call(func=ast.Name(id=name)):
                return name in self.functions
            case ast.Call(func=ast.Attribute(value=ast.Name(id="self"), attr=name)):
                return name in self.functions
            case ast.Name(id=name):
                return name in names
            case ast.BinOp(op=ast.Add(), left=left, right=right):
                return self.is_text(left, names) or self.is_text(right, names)
            case ast.List(elts=parts) | ast.Tuple(elts=parts):
                return any(self.is_text(each, names) for each in parts)
            case ast.Starred(value=inner) | ast.NamedExpr(value=inner):
                return self.is_text(inner, names)
            case ast.ListComp(elt=inner) | ast.GeneratorExp(elt=inner):
                return self.is_text(inner, names)
        return False


def flows(modules: Mapping[Path, ast.Module]) -> dict[Path, Flow]:
    """The texts of all modules."""
    known = set(_MARKS)
    while True:
        found = {path: Flow(path, tree, known) for path, tree in modules.items()}
        new = {
            (flow.module, scope.name) for flow in found.values() for scope in flow.returning()
        } - known
        if not new:
            return found
        known |= new


def own(scope: Scope) -> Iterator[ast.AST]:
    """What stands in a function, without those within it."""
    left = list(ast.iter_child_nodes(scope))
    while left:
        node = left.pop()
        yield node
        if not isinstance(node, Scope):
            left += ast.iter_child_nodes(node)


def results(scope: Scope) -> Iterator[ast.expr]:
    """What a function returns or yields."""
    for node in own(scope):
        if isinstance(node, ast.Return | ast.Yield) and node.value is not None:
            yield node.value


def assigned(scope: Scope) -> Iterator[tuple[ast.expr, ast.expr]]:
    """Variables, and what is assigned or appended to them."""
    for node in own(scope):
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Tuple(elts=values)):
                yield from zip(targets, values, strict=False)
            case ast.Assign(targets=targets, value=value):
                yield from ((target, value) for target in targets)
            case (
                ast.AugAssign(target=target, value=value)
                | ast.AnnAssign(target=target, value=ast.expr() as value)
                | ast.NamedExpr(target=target, value=value)
            ):
                yield target, value
            case ast.Call(
                func=ast.Attribute(value=ast.Name() as target, attr="append" | "extend"),
                args=[value],
            ):
                yield target, value
