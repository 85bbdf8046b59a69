"""The manual: its links lead somewhere, its lines have one width, its words are plain."""

from __future__ import annotations

import ast
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[1]
PAGES = sorted([*CHECKOUT.glob("*.md"), *CHECKOUT.glob("docs/**/*.md")])
DATED = [page for page in PAGES if page.parent.name == "measurements"]
PLAIN = [page for page in PAGES if page not in DATED]
"""Not: measurements, which stay as they were, and the page that goes with the fetcher."""

WIDTH = 100
VAGUE = re.compile(r"\b(somebody|nobody|whoever|everybody|anybody)\b", re.IGNORECASE)
MODULES = [
    path.relative_to(CHECKOUT).as_posix()
    for room in ("p2pcloop", "daemon", "bench", "tools", "tests", "findings")
    for path in CHECKOUT.glob(f"{room}/**/*.py")
]
LINK = re.compile(r"\[[^\]\[]*\]\(([^)\s]+)\)")


def prose(page: Path) -> Iterator[tuple[int, str]]:
    """Each line that is no code: its number, and its text."""
    fenced = False
    for number, line in enumerate(page.read_text().splitlines(), 1):
        if line.startswith("```"):
            fenced = not fenced
        elif not fenced and not line.startswith("    "):
            yield number, line


def anchors(page: Path) -> set[str]:
    """What GitHub calls the headings of a page."""
    headings = [line.lstrip("# ") for _, line in prose(page) if line.startswith("#")]
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {heading.replace(" ", "-") for heading in plain}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_links_lead_to_files_and_headings(page: Path) -> None:
    text = "\n".join(line for _, line in prose(page))
    for target in LINK.findall(text):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = page.parent / path if path else page
        assert there.exists(), target
        assert not anchor or anchor in anchors(there), target


@pytest.mark.parametrize("page", [p for p in PAGES if p not in DATED], ids=lambda page: page.stem)
def test_the_modules_that_are_named_exist(page: Path) -> None:
    for name in re.findall(r"`([\w/]+\.py)`", page.read_text()):
        found = [path for path in MODULES if f"/{path}".endswith(f"/{name}")]
        assert found, f"{page.name} names {name}"


@pytest.mark.parametrize("module", [m for m in MODULES if "/" in m], ids=str)
def test_the_modules_that_a_docstring_names_exist(module: str) -> None:
    text = ast.get_docstring(ast.parse((CHECKOUT / module).read_text())) or ""
    for name in re.findall(r"(?<![\w/.-])([\w/]+\.py)\b", text):
        assert any(f"/{path}".endswith(f"/{name}") for path in MODULES), name


@pytest.mark.parametrize("page", PLAIN, ids=lambda page: page.stem)
def test_sentences_have_a_subject(page: Path) -> None:
    """A client, a seeder, a user: not somebody."""
    found = [line for _, line in prose(page) if VAGUE.search(line)]
    assert found == []


@pytest.mark.parametrize("page", PLAIN, ids=lambda page: page.stem)
def test_prose_has_one_width(page: Path) -> None:
    """Longer are tables and words without a space."""
    wide = [
        (number, line)
        for number, line in prose(page)
        if len(line) > WIDTH and not line.startswith("|") and " " in line.strip()[:WIDTH]
    ]
    assert wide == []


def test_the_index_leads_to_every_page() -> None:
    index = CHECKOUT / "docs/README.md"
    targets = {(index.parent / target).resolve() for target in LINK.findall(index.read_text())}
    pages = {page for page in PAGES if page.parent == index.parent and page != index}
    assert pages - targets == set()


def test_nginx_takes_the_configuration_of_the_manual(tmp_path: Path) -> None:
    text = (CHECKOUT / "docs/howto.md").read_text()
    (server,) = re.findall(r"^```nginx$(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    server = server.replace("listen 80;", f"listen unix:{tmp_path}/s;").replace(
        "listen [::]:80;", ""
    )
    main = f"pid {tmp_path}/pid; events {{}} http {{ access_log off; {server} }}"
    (tmp_path / "conf").write_text(main)
    nginx = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    assert nginx is not None
    command = (nginx, "-t", "-q", "-c", tmp_path / "conf", "-e", tmp_path / "errors")
    told = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert (told.returncode, told.stderr) == (0, "")
