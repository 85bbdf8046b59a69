"""Texts in English that can be said in another language."""

from __future__ import annotations

import subprocess
import sys

import pytest

from p2pcloop import words
from p2pcloop.catalogue import Catalogue
from p2pcloop.cells import cells, clipped, padded, wrapped
from p2pcloop.errors import FormatError
from p2pcloop.protocol.control import ControlReceiver, Failure, encode
from p2pcloop.text import printable
from p2pcloop.words import Text, joined, packed, said_in, tr, tr_n, translated, unpacked, use

HEAD = 'msgid ""\nmsgstr "Plural-Forms: nplurals=2; plural=n > 1;\\n"\n'


def spoken(*entries: str) -> Catalogue:
    return Catalogue("xx", "\n".join([HEAD, *(f"{entry}\n" for entry in entries)]))


def entry(text: str, *texts: str, plural: str = "") -> str:
    told = [f'msgid "{text}"']
    told += [f'msgid_plural "{plural}"'] if plural else []
    told += [f'msgstr[{n}] "{form}"' for n, form in enumerate(texts)] if plural else []
    return "\n".join(told if plural else [*told, f'msgstr "{texts[0]}"'])


def test_a_text_is_english_wherever_it_goes() -> None:
    text = tr("cannot read {path!r} of {size:.1f} kB", path="a b", size=2.25)
    assert text == "cannot read 'a b' of 2.2 kB"
    assert isinstance(text, Text)
    assert tr("braces {stay}") == "braces {stay}"
    assert tr_n("{count} layer", "{count} layers", 1) == "1 layer"
    assert tr_n("{count} layer", "{count} layers", 2) == "2 layers"


def test_a_catalogue_says_it_in_its_language() -> None:
    xx = spoken(
        entry("cannot read {path}: {why}", "{why}! {path}?"),
        entry("no space", "PLENUM"),
        entry("a {b}", "A {b}"),
        entry("{count} layer", "{count} X", "{count} XX", plural="{count} layers"),
    )
    assert (
        said_in(xx, tr("cannot read {path}: {why}", path="f", why=tr("no space"))) == "PLENUM! f?"
    )
    assert said_in(xx, "no space") == "PLENUM"
    assert said_in(xx, tr("a {b}")) == "A {b}"
    assert said_in(xx, tr_n("{count} layer", "{count} layers", 1)) == "1 X"
    assert said_in(xx, tr_n("{count} layer", "{count} layers", 5)) == "5 XX"
    assert said_in(xx, "unknown") == "unknown"


def test_an_error_within_an_error_is_told_in_the_language_of_the_whole() -> None:
    xx = spoken(entry("{path}: {err}", "{path} -> {err}"), entry("no magic", "MAGUS ABEST"))
    text = tr("{path}: {err}", path="f", err=FormatError("no magic"))
    assert text == "f: no magic"
    assert said_in(xx, text) == "f -> MAGUS ABEST"


def test_an_error_of_python_within_an_error_is_told_too() -> None:
    xx = spoken(entry("{path}: {err}", "{path} -> {err}"), entry("must be {n}", "SIT {n}"))
    text = tr("{path}: {err}", path="f", err=ValueError(tr("must be {n}", n=1)))
    assert text == "f: must be 1"
    assert said_in(xx, text) == "f -> SIT 1"


def test_texts_are_put_together() -> None:
    xx = spoken(entry("one", "UNUS"), entry("two", "DUO"))
    text = "(" + tr("one") + "; " + joined(", ", [tr("two"), "x{y}"]) + ")"
    assert text == "(one; two, x{y})"
    assert said_in(xx, text) == "(UNUS; DUO, x{y})"


@pytest.mark.parametrize("told", ["{other}", "{path.secret}", "{path", "{path:d}"])
def test_a_translation_with_other_placeholders_is_not_used(told: str) -> None:
    catalogue = spoken(entry("see {path}", told))
    assert said_in(catalogue, tr("see {path}", path="f")) == "see f"


def test_entries_that_are_not_ready_are_not_used() -> None:
    xx = spoken("#, fuzzy\n" + entry("one", "UNUS"), entry("two", ""))
    assert [said_in(xx, "one"), said_in(xx, "two")] == ["one", "two"]


def test_words_of_strangers_stay_printable() -> None:
    xx = spoken(entry("from {who}", "EX {who}"))
    text = printable(tr("from {who}", who="a\x1b[2J"))
    assert text == r"from a\x1b[2J"
    assert said_in(xx, text) == r"EX a\x1b[2J"


def test_an_error_of_p2pcloopd_is_told_in_the_language_of_its_client() -> None:
    xx = spoken(entry("{path}: {why}", "{why} ({path})"), entry("gone", "ABEST"), entry("h", "H!"))
    sent = FormatError(tr("{path}: {why}", path="f", why=tr("gone")), hint=tr("h"))
    [message] = ControlReceiver().receive(encode(Failure(1, sent)))
    assert isinstance(message, Failure)
    got = message.error
    assert (str(got), got.hint) == ("f: gone", "h")
    assert said_in(xx, got.message) == "ABEST (f)"
    assert said_in(xx, got.hint or "") == "H!"


def test_what_is_no_text_of_another_program_is_plain_english() -> None:
    for told in (None, [], ["a"], ["a", None, {"b": [1]}], ["a", "1", {}], {"a": 1}):
        assert not isinstance(unpacked("a", told), Text)
    deep = tr("x")
    for _ in range(20):
        deep = tr("{x}", x=deep)
    assert unpacked("x", packed(deep)) == "x"


@pytest.mark.parametrize(
    ("variables", "language"),
    [
        ({}, "en"),
        ({"LANG": "C.UTF-8"}, "en"),
        ({"LANG": "POSIX", "LANGUAGE": "ja"}, "en"),
        ({"LANG": "en_GB.UTF-8"}, "en"),
        ({"LANG": "xx_YY"}, "en"),
        ({"LANG": "../ja"}, "en"),
        ({"LANG": "ja_JP.UTF-8"}, "ja"),
        ({"LANG": "ja"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LC_MESSAGES": "en_US.UTF-8"}, "en"),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "ja_JP.eucJP"}, "ja"),
        ({"LANG": "de_DE.UTF-8", "LANGUAGE": "fr:ja:en"}, "ja"),
        ({"LANG": "ja_JP.UTF-8", "LANGUAGE": "en:ja"}, "en"),
    ],
)
def test_the_language_is_that_of_the_locale(variables: dict[str, str], language: str) -> None:
    use(variables)
    try:
        assert words.language() == language
        assert (translated("Guests") == "Guests") is (language == "en")
    finally:
        use({})


def test_english_loads_no_catalogue() -> None:
    code = (
        "import os, sys\nfrom p2pcloop import words\nwords.use({'LANG': 'en_US.UTF-8'})\n"
        "print(words.translated('Guests'), 'p2pcloop.catalogue' in sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout == "Guests False\n"


def test_text_is_counted_in_cells() -> None:
    assert cells("ab") == 2
    assert cells("名前 ab") == 7
    assert cells("e\u0301") == 1
    assert padded("名前", 6) == "名前  "
    assert clipped("名前です", 5) == "名前"
    assert clipped("abc", 2) == "ab"


def test_lines_are_broken_between_wide_characters_and_never_before_a_full_stop() -> None:
    text = "ゲストを起動する。 p2pcloop boot は待たない。"
    for width in range(8, 40):
        lines = wrapped(text, width)
        assert all(cells(line) <= max(width, 8) + 2 for line in lines)
        assert not any(line.startswith(("。", "、", "ー")) for line in lines)
        assert "".join(lines).replace(" ", "") == text.replace(" ", "")
