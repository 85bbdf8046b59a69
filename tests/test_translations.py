"""Every text that users read can be translated, and each catalogue has all of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from p2pcloop.catalogue import FOLDER, Catalogue, placeholders, read_entries
from p2pcloopd.web.words import RESOURCES, html_texts
from tests.support.text_flow import Flow, Scope, assigned, flows, own, results
from tools.json_table import CHECKOUT
from tools.translations import (
    Found,
    branches,
    error_classes,
    merged,
    positions,
    sources,
    texts,
    trees,
)

CATALOGUES = sorted(FOLDER.glob("*.po"))

NOT_SHOWN = {
    "daemon/p2pcloopd/guest/machine/kvm_probe.py",  # a program of its own, without p2pcloop
}
"""Modules whose texts are not for users."""

WORDS = re.compile(r"[A-Za-z]{2}")


@pytest.fixture(scope="module")
def found() -> dict[str, Found]:
    return texts()


def holds_words(part: ast.expr) -> bool:
    constants = (each.value for each in ast.walk(part) if isinstance(each, ast.Constant))
    return any(WORDS.search(str(value)) for value in constants)


def test_texts_with_values_are_marked() -> None:
    """A constant is found by its place; one that is put together has to be passed to `tr`."""
    modules = trees()
    errors = error_classes(modules)
    unmarked = [
        f"{path.relative_to(CHECKOUT)}:{part.lineno} {ast.unparse(part)}"
        for path, tree in modules.items()
        if str(path.relative_to(CHECKOUT)) not in NOT_SHOWN
        for _, value in positions(tree, errors)
        for part in branches(value)
        if isinstance(part, ast.JoinedStr | ast.BinOp) and holds_words(part) and not marks(part)
    ]
    assert unmarked == []


def test_an_error_told_by_another_one_stays_a_text() -> None:
    """`str` makes plain English of it; its `message` does not."""
    modules = trees()
    errors = error_classes(modules)
    lost = [
        f"{path.relative_to(CHECKOUT)}:{part.lineno} {ast.unparse(part)}"
        for path, tree in modules.items()
        if not str(path.relative_to(CHECKOUT)).startswith(TO_MACHINES)
        for _, value in positions(tree, errors)
        for part in branches(value)
        if isinstance(part, ast.Call) and getattr(part.func, "id", "") == "str"
    ]
    assert lost == []


def marks(part: ast.expr) -> bool:
    """Texts that are put together by `+` stay texts."""
    return isinstance(part, ast.BinOp) and any(
        isinstance(each, ast.Call) and getattr(each.func, "id", "") in ("tr", "tr_n", "joined")
        for each in ast.walk(part)
    )


@pytest.mark.parametrize("path", sources(), ids=lambda path: str(path.relative_to(CHECKOUT)))
def test_marked_texts_are_constants(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "tr":
            assert isinstance(node.args[0], ast.Constant), f"{path}:{node.lineno}"


@pytest.fixture(scope="module")
def flowing() -> dict[Path, Flow]:
    return flows(trees())


def test_texts_stay_texts_until_they_are_shown(flowing: dict[Path, Flow]) -> None:
    """An f-string, or `str.join`, makes plain English of a text: `+`, `joined` and `tr` do not.
    `click` and `print` show the English: `say`, `notify` and `translated` do not."""
    lost = [
        f"{path.relative_to(CHECKOUT)}:{part.lineno} {ast.unparse(part)}"
        for path, flow in flowing.items()
        for scope in flow.scopes
        for part in losses(flow, scope)
    ]
    assert lost == []


def losses(flow: Flow, scope: Scope) -> Iterator[ast.expr]:
    """Expressions of a function that make plain English of texts."""
    names = flow.names(scope)
    for node in own(scope):
        match node:
            case ast.JoinedStr(values=parts):
                used = [each.value for each in parts if isinstance(each, ast.FormattedValue)]
            case ast.Call(func=ast.Attribute(attr="join"), args=used):
                pass
            case ast.Call(func=ast.Name(id="print"), args=used):
                pass
            case ast.Call(func=ast.Attribute(value=ast.Name(id="click")), args=used):
                pass
            case _:
                continue
        if any(flow.is_text(each, names) for each in used):
            yield node


FORMS = {"qcow2", "cloop"}
"""Names of forms of images, which are the same in each language."""


def test_constants_that_become_values_of_texts_are_marked(flowing: dict[Path, Flow]) -> None:
    unmarked = [
        f"{path.relative_to(CHECKOUT)}:{part.lineno} {part.value!r}"
        for path, flow in flowing.items()
        for scope in flow.scopes
        for part in constant_values(scope)
    ]
    assert unmarked == []


def constant_values(scope: Scope) -> Iterator[ast.Constant]:
    """The constants with words that a function passes to `tr` as values."""
    constants: dict[str, list[ast.Constant]] = {}
    for target, value in assigned(scope):
        if isinstance(target, ast.Name):
            constants.setdefault(target.id, []).extend(worded(value))
    for node in own(scope):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") in ("tr", "tr_n"):
            for keyword in node.keywords:
                yield from worded(keyword.value)
                for part in branches(keyword.value):
                    if isinstance(part, ast.Name):
                        yield from constants.get(part.id, ())


def worded(value: ast.expr) -> list[ast.Constant]:
    return [
        part
        for part in branches(value)
        if isinstance(part, ast.Constant)
        and isinstance(part.value, str)
        and WORDS.search(part.value)
        and part.value not in FORMS
    ]


TO_MACHINES = "daemon/p2pcloopd/netboot/"
"""What is told to the first root of another machine, in English."""


def test_what_returns_texts_returns_no_unmarked_constant(flowing: dict[Path, Flow]) -> None:
    unmarked = [
        f"{path.relative_to(CHECKOUT)}:{part.lineno} {part.value!r}"
        for path, flow in flowing.items()
        if not str(path.relative_to(CHECKOUT)).startswith(TO_MACHINES)
        for scope in flow.returning()
        for value in results(scope)
        for part in worded(value)
    ]
    assert unmarked == []


FLOWING = """
from p2pcloop.words import tr
def told(number):
    what = "nothing" if number else tr("all of it")
    lines = [tr("{what} is here", what=what)]
    lines += [tr("more")]
    click.echo(to_json(number) if number else what)
    say(f"{what}, {number}")
    return "\\n".join(lines) if number else "none at all"
def shown():
    yield tr("one")
    print(shown())
"""


def test_a_text_that_becomes_plain_english_is_found() -> None:
    tree = ast.parse(FLOWING)
    [flow] = flows({CHECKOUT / "p2pcloop/example.py": tree}).values()
    assert [sorted(part.lineno for part in losses(flow, scope)) for scope in flow.scopes] == [
        *([], [7, 8, 9], [12])
    ]
    assert [part.value for scope in flow.scopes for part in constant_values(scope)] == ["nothing"]
    assert [scope.name for scope in flow.returning()] == ["shown"]


LITERAL = re.compile(r"//[^\n]*|/\*.*?\*/|\"(?:[^\"\\\n]|\\.)*\"|`(?:[^`\\]|\\.)*`", re.DOTALL)
"""A comment, a string or a template of JavaScript."""

NO_TEXT = re.compile(
    r"""(?:from\ |===\ |\b(?:find|element|drawn|box|key|ask|startsWith|EventSource)\(
    |\b(?:addEventListener|createElementNS|getElementById)\(|press\([^)]*|class:\ [^,}]*
    |className\ =\ [^;]*|\b(?:role|rel|target|scope|method|do|preserveAspectRatio):[ ]
    |"(?:Content-Type|aria-hidden|shape-rendering)":\ )$""",
    re.VERBOSE,
)
"""What stands before a name: of an element, an event, a class or a file."""

COMMAND = "p2pcloop display ${guest.name}"
NAMES = {"bytes", "kB", "MB", "GB", "images", "fetch-link", "publish", COMMAND}


@pytest.mark.parametrize("path", sorted(RESOURCES.glob("*.js")), ids=lambda path: path.name)
def test_texts_of_the_page_are_marked(path: Path) -> None:
    assert unmarked(path.read_text()) == []


def unmarked(script: str) -> list[str]:
    """Strings of a script that are neither passed to `tr` nor stand where a name does."""
    found = []
    for match in LITERAL.finditer(script):
        words = re.sub(r"\$\{[^{}]*\}", "", match[0])
        before = script[: match.start()].rstrip("\n")[-80:]
        if match[0][0] == "/" or not WORDS.search(words) or match[0][1:-1] in NAMES:
            continue
        is_key = script.startswith(":", match.end()) and before.endswith((", ", "{ "))
        # `script_texts` finds no template: it cannot be looked up.
        is_marked = before.endswith("tr(") and match[0][0] == '"'
        if not is_marked and not NO_TEXT.search(before) and not is_key:
            found.append(match[0])
    return found


def test_a_text_of_the_page_that_is_not_marked_is_found() -> None:
    script = """
    // "no text"
    find("id").append(tr("marked"), "one", `${two} of ${three}`, ok ? "four" : tr("five"));
    element("p", { class: bad ? "bad" : "good", "aria-label": "six" }, "seven");
    find("id").append(tr(`eight ${of} them`));
    """
    assert [each[1:-1] for each in unmarked(script)] == [
        *("one", "${two} of ${three}", "four", "six", "seven", "eight ${of} them")
    ]


def test_html_has_texts_only_where_they_are_found() -> None:
    html = (RESOURCES / "index.html").read_text()
    assert {"Peers", "Guest's name", "Table of images", "as the image says"} <= set(
        html_texts(html)
    )
    assert "p2pcloop" not in html_texts(html)
    assert re.findall(r" (?:title|alt|label|value)=\"[^\"]+\"", html) == []


def test_there_are_catalogues(found: dict[str, Found]) -> None:
    assert [path.stem for path in CATALOGUES] == ["ja"]
    assert len(found) > 2000


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_a_catalogue_has_every_text_and_no_other(path: Path, found: dict[str, Found]) -> None:
    entries = {each.id: each for each in read_entries(path.read_text(encoding="utf-8"))}
    header = entries.pop("")
    assert entries.keys() - found.keys() == set(), "python -m tools.translations"
    assert found.keys() - entries.keys() == set(), "python -m tools.translations"
    untranslated = [each.id for each in entries.values() if each.fuzzy or not all(each.texts)]
    assert untranslated == []
    assert path.read_text(encoding="utf-8") == merged(header, entries, found)


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_translations_have_the_placeholders_of_the_text(
    path: Path, found: dict[str, Found]
) -> None:
    wrong = []
    for entry in list(read_entries(path.read_text(encoding="utf-8")))[1:]:
        text = found[entry.id]
        if text.has_values:
            wanted = set(placeholders(entry.id))
            wrong += [each for each in entry.texts if set(placeholders(each)) != wanted]
        else:
            braces = re.findall(r"\{[^{}]*\}", entry.id)
            found_here = (re.findall(r"\{[^{}]*\}", each) for each in entry.texts)
            wrong += [entry.id for each in found_here if sorted(each) != sorted(braces)]
    assert wrong == []


@pytest.mark.parametrize("path", CATALOGUES, ids=lambda path: path.stem)
def test_translations_keep_what_is_typed_and_the_lines(path: Path) -> None:
    """Commands in backquotes, line ends, and blanks at the ends, which join texts."""
    wrong = []
    for entry in list(read_entries(path.read_text(encoding="utf-8")))[1:]:
        for told in entry.texts:
            typed = [set(re.findall(r"`[^`]*`", each)) for each in (entry.id, told)]
            lines = [each.count("\n") for each in (entry.id, told)]
            if typed[0] != typed[1] or lines[0] != lines[1] or told.strip() == "":
                wrong.append(entry.id)
    assert wrong == []


def test_the_forms_of_a_number_are_those_of_the_language() -> None:
    assert Catalogue("ja", (FOLDER / "ja.po").read_text(encoding="utf-8")).forms == 1
