"""Hints are of one form: a part of a sentence, as it stands behind `hint: `."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def hints(tree: ast.AST) -> Iterator[ast.expr]:
    """What is passed as `hint=`, and what is kept in `hint`, `_HINT` or `_HINTS` for that."""
    for node in ast.walk(tree):
        if isinstance(node, ast.keyword) and node.arg == "hint":
            yield node.value
        elif isinstance(node, ast.Assign):
            names = [target.id.lower() for target in node.targets if isinstance(target, ast.Name)]
            if any(name.strip("_") in ("hint", "hints") for name in names):
                yield node.value


def texts(value: ast.expr) -> Iterator[str]:
    """The literal texts of an expression; what a program puts in stands as `{}`."""
    match value:
        case ast.Constant(value=str(text)):
            yield text
        case ast.JoinedStr():
            parts = (
                part.value if isinstance(part, ast.Constant) else "{}" for part in value.values
            )
            yield "".join(map(str, parts))
        case ast.Dict():
            for item in value.values:
                yield from texts(item)
        case ast.BoolOp():
            for item in value.values:
                yield from texts(item)


def test_hints_begin_small_and_end_without_a_full_stop() -> None:
    files = [*CHECKOUT.glob("p2pcloop/**/*.py"), *CHECKOUT.glob("daemon/**/*.py")]
    found = {
        text: path.name
        for path in files
        for value in hints(ast.parse(path.read_text()))
        for text in texts(value)
    }
    assert len(found) > 50
    wrong = {text: file for text, file in found.items() if text[0].isupper() or text[-1] in ".!"}
    assert wrong == {}
