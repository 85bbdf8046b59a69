"""The page in the language of its viewer."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any, NoReturn

import pytest
import trio

from p2pcloop.catalogue import Catalogue
from p2pcloop.client.picture import Pictures
from p2pcloop.errors import NotHereError
from p2pcloop.picture.panels import Mark, Panel
from p2pcloop.store.home import Home
from p2pcloop.words import tr
from p2pcloopd.web import jobs, words
from p2pcloopd.web.jobs import Jobs
from p2pcloopd.web.site import Site
from p2pcloopd.web.words import RESOURCES, language_of, page_in, said, script_texts
from tests.support.waiting import BOUND

HTML = (RESOURCES / "index.html").read_text()


@pytest.mark.parametrize(
    ("accepted", "language"),
    [
        ("", "en"),
        ("*", "en"),
        ("ja", "ja"),
        ("ja-JP,ja;q=0.9,en-US;q=0.8", "ja"),
        ("en-US,en;q=0.9,ja;q=0.8", "en"),
        ("en;q=0.2, JA ; q=0.3", "ja"),
        ("fr, de;q=0.9, ja;q=0.1", "ja"),
        ("ja;q=0, fr", "en"),
        ("ja;q=nan, ../../etc", "en"),
        ("ja;q=2", "en"),
    ],
)
def test_the_language_is_what_the_viewer_likes_best(accepted: str, language: str) -> None:
    assert language_of(accepted) == language


def test_english_viewers_get_the_file_as_it_is() -> None:
    assert page_in(HTML, "en") == HTML


def test_the_page_has_the_texts_of_its_scripts() -> None:
    page = page_in(HTML, "ja")
    match = re.search(r'id="words">(.*?)</script>', page)
    assert match is not None
    sent = json.loads(match[1])
    wanted = {each for path in RESOURCES.glob("*.js") for each in script_texts(path.read_text())}
    assert sent.keys() == wanted
    assert sent["Close"] == "閉じる"
    assert len(page.encode()) - len(HTML.encode()) < 10_000


def test_names_and_values_of_options_stay_and_texts_do_not() -> None:
    page = page_in(HTML, "ja")
    for kept in ('<h1 translate="no">p2pcloop<', ">qemu<", ">User-Mode Linux<", "my-debian"):
        assert kept in page
    assert '<html lang="ja">' in page
    assert '<h2 id="peers-title">ピア</h2>' in page
    assert 'aria-label="ピアの一覧表"' in page


def test_a_translation_is_no_markup(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = (f'msgid "{text}"\nmsgstr "</script><b>\\"&"' for text in ("Peers", "Close"))
    evil = Catalogue("xx", "\n\n".join(entries))
    monkeypatch.setattr(words, "catalogue", lambda _language: evil)
    page = page_in(HTML, "xx")
    assert "<b>" not in page
    assert page.count("</script>") == HTML.count("</script>")
    assert ">&lt;/script&gt;&lt;b&gt;&quot;&amp;</h2>" in page


def test_a_chunk_map_is_told_in_the_language() -> None:
    panel = Panel(
        tr("Who sent it"),
        [Mark("own", tr("{what}, {size}", what=tr("published here"), size="1 MB"), "")],
    )
    assert panel.told == "Who sent it: published here, 1 MB."
    assert said(panel.told, "ja") == "送り手: ここで公開したもの, 1 MB."
    assert said(panel.told, "en") == panel.told


async def test_a_command_that_cannot_be_run_says_so_in_the_language_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "nothing"))
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            job = Jobs(Home(tmp_path), nursery).start({"do": "pin", "ref": "x"}, "ja")
    assert job.said == "コマンドを実行できません: No such file or directory"


def test_why_there_is_no_chunk_map_is_told_in_the_language(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object, **__: object) -> NoReturn:
        raise NotHereError(
            tr("{name} is not here", name="x"), hint="give REF; `p2pcloop images` lists them"
        )

    monkeypatch.setattr(Pictures, "picture", missing)
    nothing: Any = None
    told = Site(Home(tmp_path), nothing, nothing)._map("x", "ja")["why"]
    assert told == "x はここにありません: REF を指定してください。`p2pcloop images` で一覧できます"


@pytest.mark.parametrize("locale", ["C.UTF-8", "ja_JP.UTF-8"])
@pytest.mark.parametrize(("language", "begin"), [("ja", "使い方"), ("en", "Usage")])
async def test_a_command_of_a_button_speaks_the_language_of_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, locale: str, language: str, begin: str
) -> None:
    monkeypatch.setenv("LC_ALL", locale)
    monkeypatch.setattr(jobs, "command_of", lambda _asked: (["--help"], ""))
    with trio.fail_after(BOUND):
        async with trio.open_nursery() as nursery:
            started = Jobs(Home(tmp_path), nursery)
            job = started.start({}, language)
    assert (job.said.split(":")[0], job.code) == (begin, 0)
