"""The texts that users read, found in the sources, and the catalogues of their translations.

    python -m tools.translations            update p2pcloop/locale/*.po
    python -m tools.translations LANGUAGE   the same, and begin a catalogue for LANGUAGE

What counts as a text: what is passed to `tr` and `tr_n`; the message and the hint of an error, what
is passed to `say`, `notify` and `warn`; titles, commands, options and their help; and the texts of
the web page. docs/translating.md tells more.
"""

from __future__ import annotations

import argparse
import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple, TypeGuard

from p2pcloop.catalogue import FOLDER, Entry, read_entries
from p2pcloopd.web.words import RESOURCES, html_texts, script_texts
from tools.json_table import CHECKOUT

SHOWN = {
    *("say", "notify", "warn", "report", "storage_error", "ask_passphrase", "choose_passphrase"),
    *("progress_bar", "growth_bar", "waiting_for"),
}
"""Functions whose first argument is a text for users."""

_COMMANDS = CHECKOUT / "p2pcloop/cli/commands.py"
_COMMENT = re.compile(r"^  [^#\n]*\S\s+# (.*)$", re.MULTILINE)
_LETTERS = re.compile(r"[A-Za-z]{2}")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_WIDTH = 90


class Found(NamedTuple):
    """A text in the sources.

    Attributes:
        id: the text in English, or its singular.
        plural: its plural, or "".
        where: the file.
        kind: what it is: `error`, `hint`, `help`, `text`, ...
        has_values: it is a template of `str.format`.
    """

    id: str
    plural: str
    where: str
    kind: str
    has_values: bool = False


def sources() -> list[Path]:
    """The modules whose texts are translated."""
    return sorted([*CHECKOUT.glob("p2pcloop/**/*.py"), *CHECKOUT.glob("daemon/**/*.py")])


def trees() -> dict[Path, ast.Module]:
    """The modules, parsed."""
    return {path: ast.parse(path.read_text()) for path in sources()}


def error_classes(modules: dict[Path, ast.Module]) -> set[str]:
    """The names of all classes of errors that users meet."""
    bases = {
        node.name: {_name(base) for base in node.bases}
        for tree in modules.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    found = {"P2pcloopError"}
    while new := {name for name, above in bases.items() if above & found} - found:
        found |= new
    return found


def positions(tree: ast.AST, errors: set[str]) -> Iterator[tuple[str, ast.expr]]:
    """The expressions of a module that are texts, and what they are."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            name = _name(node.func)
            if node.args and name in errors | {"storage_error"}:
                yield "error", node.args[0]
            elif node.args and name in SHOWN:
                yield "text", node.args[0]
            for keyword in node.keywords:
                if keyword.arg in ("hint", "help", "short_help"):
                    yield keyword.arg, keyword.value
        elif isinstance(node, ast.Assign) and "HINT" in _name(node.targets[0]):
            yield "hint", node.value


def branches(value: ast.expr) -> Iterator[ast.expr]:
    """What an expression may come to."""
    match value:
        case ast.IfExp():
            yield from branches(value.body)
            yield from branches(value.orelse)
        case ast.BoolOp():
            for each in value.values:
                yield from branches(each)
        case ast.Dict():
            for each in value.values:
                yield from branches(each)
        case _:
            yield value


def texts() -> dict[str, Found]:
    """All texts, by their id."""
    found = [*_marked(), *_positioned(), *_help(), *_page()]
    return {each.id: each for each in reversed(found) if _LETTERS.search(without_values(each))}


def without_values(text: Found) -> str:
    """The words of a text."""
    return _PLACEHOLDER.sub("", text.id) if text.has_values else text.id


def _marked() -> Iterator[Found]:
    modules = trees()
    errors = error_classes(modules)
    for path, tree in modules.items():
        kinds = {
            id(part): kind for kind, value in positions(tree, errors) for part in branches(value)
        }
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and _name(node.func) in ("tr", "tr_n"):
                kind = kinds.get(id(node), "text")
                given = [each.value for each in node.args if isinstance(each, ast.Constant)]
                plural = given[1] if _name(node.func) == "tr_n" else ""
                has_values = bool(node.keywords or plural)
                yield Found(str(given[0]), str(plural), _where(path), kind, has_values)


def _positioned() -> Iterator[Found]:
    modules = trees()
    errors = error_classes(modules)
    constants = {
        name.id: node.value.value
        for tree in modules.values()
        for node in tree.body
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant)
        for name in node.targets
        if isinstance(name, ast.Name) and isinstance(node.value.value, str)
    }
    for path, tree in modules.items():
        for kind, value in positions(tree, errors):
            for part in branches(value):
                match part:
                    case ast.Constant(value=str(text)):
                        yield Found(text, "", _where(path), kind)
                    case ast.Name(id=name) if name in constants:
                        yield Found(constants[name], "", _where(path), kind)


def _help() -> Iterator[Found]:
    table = next(node for node in ast.parse(_COMMANDS.read_text()).body if _is_table(node))
    for title, commands in ast.literal_eval(table.value).items():
        yield Found(title, "", _where(_COMMANDS), "heading")
        yield from (Found(line, "", _where(_COMMANDS), "help") for _, line in commands.values())
    for path, tree in trees().items():
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and any(map(_is_command, node.decorator_list)):
                for part in inspect.cleandoc(ast.get_docstring(node) or "").split("\n\n"):
                    yield from _paragraph_texts(part, path)
            elif isinstance(node, ast.Assign) and _name(node.targets[0]) == "_EPILOG":
                yield from _comments(str(_constant(node.value)), path)


def _paragraph_texts(text: str, path: Path) -> Iterator[Found]:
    """The texts of a paragraph of help: of examples, which keep their lines, the comments."""
    if text.startswith("\b"):
        yield from _comments(text, path)
    else:
        yield Found(" ".join(text.split()), "", _where(path), "help")


def _comments(examples: str, path: Path) -> Iterator[Found]:
    for text in _COMMENT.findall(examples):
        yield Found(text, "", _where(path), "comment of an example")


def _is_table(node: ast.stmt) -> TypeGuard[ast.Assign]:
    return isinstance(node, ast.Assign) and _name(node.targets[0]) == "SECTIONS"


def _is_command(decorator: ast.expr) -> bool:
    name = _name(decorator.func) if isinstance(decorator, ast.Call) else _name(decorator)
    return name in ("command", "group")


def _constant(value: ast.expr) -> object:
    match value:
        case ast.Constant():
            return value.value
        case ast.JoinedStr():
            return "".join(str(_constant(each)) for each in value.values)
    return ""


def _page() -> Iterator[Found]:
    html = RESOURCES / "index.html"
    yield from (Found(text, "", _where(html), "page") for text in html_texts(html.read_text()))
    for path in sorted(RESOURCES.glob("*.js")):
        for text in script_texts(path.read_text()):
            yield Found(text, "", _where(path), "page", bool(_PLACEHOLDER.search(text)))


def _name(node: ast.AST) -> str:
    return node.id if isinstance(node, ast.Name) else str(getattr(node, "attr", ""))


def _where(path: Path) -> str:
    return str(path.relative_to(CHECKOUT))


def merged(header: Entry, old: dict[str, Entry], found: dict[str, Found]) -> str:
    """The text of a .po file with all texts, and the translations that there were."""
    parts = [_paragraph([], "", "", header.texts)]
    for text in sorted(found.values(), key=lambda each: (each.where, each.id)):
        was = old.get(text.id)
        told = was.texts if was is not None else ("",)
        comments = [f"#. {text.kind}", f"#: {text.where}"]
        comments += ["#, fuzzy"] if was is not None and was.fuzzy else []
        comments += ["#, python-brace-format"] if text.has_values else []
        parts.append(_paragraph(comments, text.id, text.plural, told))
    return "\n".join(parts)


def _paragraph(comments: list[str], id: str, plural: str, texts: tuple[str, ...]) -> str:  # noqa: A002  gettext's word
    lines = [*comments, f"msgid {_quoted(id)}"]
    if plural:
        lines.append(f"msgid_plural {_quoted(plural)}")
        lines += [f"msgstr[{form}] {_quoted(text)}" for form, text in enumerate(texts)]
    else:
        lines.append(f"msgstr {_quoted(texts[0])}")
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    """As gettext writes it: one that has line ends, in lines of its own."""
    pieces = text.splitlines(keepends=True) if "\n" in text.rstrip("\n") else [text]
    quoted = [f'"{_escaped(piece)}"' for piece in pieces]
    return "\n".join(quoted if len(quoted) == 1 else ['""', *quoted])


def _escaped(text: str) -> str:
    for raw, told in (("\\", "\\\\"), ('"', '\\"'), ("\n", "\\n"), ("\t", "\\t")):
        text = text.replace(raw, told)
    return text


def update(path: Path, found: dict[str, Found]) -> None:
    """Write the catalogue at `path` anew, with the texts of now."""
    entries = list(read_entries(path.read_text(encoding="utf-8")))
    old = {entry.id: entry for entry in entries[1:]}
    path.write_text(merged(entries[0], old, found), encoding="utf-8")


def begin(path: Path) -> None:
    """Write a catalogue with nothing but its header, of a language that has two forms."""
    header = (
        "Project-Id-Version: p2pcloop\nMIME-Version: 1.0\n"
        "Content-Type: text/plain; charset=UTF-8\nContent-Transfer-Encoding: 8bit\n"
        f"Language: {path.stem}\nPlural-Forms: nplurals=2; plural=n != 1;\n"
    )
    path.write_text(_paragraph([], "", "", (header,)), encoding="utf-8")


def main() -> None:
    """Update all catalogues."""
    parser = argparse.ArgumentParser(prog="tools.translations", description=main.__doc__)
    parser.add_argument("language", nargs="*", help="begin a catalogue for this one, as de")
    FOLDER.mkdir(exist_ok=True)
    for language in parser.parse_args().language:
        if not (FOLDER / f"{language}.po").exists():
            begin(FOLDER / f"{language}.po")
    found = texts()
    for path in sorted(FOLDER.glob("*.po")):
        update(path, found)


if __name__ == "__main__":
    main()
