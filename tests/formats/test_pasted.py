"""What programs do to a link on its way is undone, or the reader is told that it was changed."""

import quopri
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.client.refs import read_ref
from p2pcloop.errors import FormatError, NotHereError, P2pcloopError, UsageError
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.name import Name
from p2pcloop.formats.pasted import clean_pasted, parse_pasted_link
from p2pcloop.store.home import Home
from tests.formats.test_link import LINK, SECRET, TEXT

WHOLE = TEXT + SECRET
NAME = str(LINK.name)
BARE = str(replace(LINK.public(), peers=(), trackers=(), web_seeds=(), mirrors=()))
TRACKED = f"{BARE}&tr=http://tracker.example/announce"


def quoted_printable(text: str) -> str:
    """As mail has it: `=` as `=3D`, lines broken at 76 characters."""
    return quopri.encodestring(text.encode()).decode()


@pytest.mark.parametrize(
    "change",
    [
        lambda text: f"{text}.",
        lambda text: f"({text}).",
        lambda text: f"{text};",
        lambda text: f"<URL:{text}>",
        lambda text: f'<a href="{text}">debian</a>',
        lambda text: f"[debian]({text})",
        lambda text: f"<{text}|debian>",
        lambda text: f"**{text}**",
        lambda text: f"p2pcloop boot '{text}'",
        lambda text: f"link: {text}",
        lambda text: f"> {text[:76]}\n> {text[76:]}",
        lambda text: f"„{text}“",
        lambda text: f"»{text}«",
        lambda text: f"「{text}」。",
        quoted_printable,
        lambda text: quote(text, safe=""),
        lambda text: quote(quote(text, safe=""), safe=""),
        lambda text: "magnet:?" + quote(text[8:], safe=""),
        lambda text: text.replace("=", "%3D"),
        lambda text: f"https://www.example/url?q={quote(text, safe='')}&sa=D",
        lambda text: text.replace("#", "%23"),
        lambda text: text.replace("magnet:?", "magnet://?"),
        lambda text: text.replace("magnet:?", "magnet：？").replace("&", "＆"),  # noqa: RUF001  meant
        lambda text: text.replace("&", "^&"),
        lambda text: f"\x1b[200~{text}\x1b[201~",
        lambda text: f"\x1b[1;32m{text}\x1b[0m",
        lambda text: f"\x1b]8;;{text}\x1b\\debian\x1b]8;;\x1b\\",
        lambda text: f"\x1b]8;id=1;{text}\adebian\x1b]8;;\a",
        lambda text: f"[{text}]({text})",
        lambda text: f"[[{text}][debian]]",
        lambda text: f"{text}…",
        lambda text: text.replace("&", "\\u0026").replace("=", "\\u003d").replace("/", "\\/"),
        lambda text: text.replace("&", "<wbr>&").replace("?", "?<br/>"),
        lambda text: text.replace("&", "`&"),
        lambda text: f"{text[:99]}\ufe0f{text[99:120]}\u034f{text[120:]}",
    ],
)
def test_links_that_people_copy(change: Callable[[str], str]) -> None:
    assert clean_pasted(change(WHOLE)) == WHOLE


@pytest.mark.parametrize(("first", "last"), ["''", "‘’", "()", "**"])  # noqa: RUF001  meant
def test_a_link_ends_where_its_quotes_do(first: str, last: str) -> None:
    assert clean_pasted(f"boot {first}{TRACKED}{last} and wait") == TRACKED
    assert clean_pasted(f"({TRACKED}(1)/) and wait") == f"{TRACKED}(1)/)andwait", "of the link"


@pytest.mark.parametrize(
    "form",
    [
        "'{} and boot it'",
        "{}, and then\nboot it",
        "{}\n\nBest regards",
        "{}'s content",
        "{} (my image)",
        "{}を使う",
        "p2pcloop boot {} --memory 2G & wait",
    ],
)
@pytest.mark.parametrize("link", [WHOLE, TEXT, BARE, f"{BARE}&x.pe=192.0.2.1:6881"])
def test_words_right_behind_a_link_are_left_out(form: str, link: str) -> None:
    assert str(parse_pasted_link(form.format(link))) == link
    half = len(link) - 20
    wrapped = f"{link[:half]}\n  {link[half:]}"
    assert str(parse_pasted_link(form.format(wrapped))) == link


@pytest.mark.parametrize("end", ["\n&x.pe=nonsense", "\n#key=short", f" {WHOLE}", " & x.mt=1"])
def test_what_may_be_a_damaged_part_is_not_left_out(end: str) -> None:
    with pytest.raises(P2pcloopError):
        parse_pasted_link(BARE + end)


@pytest.mark.parametrize(
    "form", ["<{}>", " {}\n", "“{}”", "({}).", "{},", "\ufeff{}", "`{}`", "{}\u200b"]
)
def test_names_and_urls_that_people_copy(form: str) -> None:
    assert clean_pasted(form.format(NAME)) == NAME
    url = f"https://mirror.example/a/{NAME}"
    assert clean_pasted(form.format(url)) == url
    assert clean_pasted(url.replace("@", "%40") + "/") == url


@pytest.mark.parametrize("text", ["debian.cloop", "a b/c", "./magnet:?x", "dir/@k/l", "(x)y", ""])
def test_what_is_no_link_keeps_its_words(text: str) -> None:
    assert clean_pasted(text) == text.replace(" ", "")


@pytest.mark.parametrize("entity", ["&amp;", "&AMP;", "&#38;", "&#x26;"])
def test_an_entity_of_a_page_is_named(entity: str) -> None:
    with pytest.raises(UsageError, match=entity) as caught:
        parse_link(clean_pasted(f'href="{WHOLE.replace("&", entity)}"'))
    assert entity in str(caught.value.hint)


@pytest.mark.parametrize("by", [";", "&amp", " "])
def test_a_link_that_was_changed_is_not_called_foreign(by: str) -> None:
    with pytest.raises(P2pcloopError, match="the link was changed on its way") as caught:
        parse_link(clean_pasted(WHOLE.replace("&", by)))
    assert caught.value.hint


@given(st.text(st.sampled_from("magnet:?=3D%26&x.p2pcloop> \n<()]@/'\"\\é"), max_size=80))
def test_any_words(text: str) -> None:
    assert clean_pasted(clean_pasted(text)) is not None
    with suppress(FormatError, UsageError):
        parse_pasted_link(text)
    clean_pasted(f"magnet:?{text}x.p2pcloop%3D{text}")


def test_a_reference_in_any_clothes(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert read_ref(f"<{WHOLE}>.", home) == WHOLE
    assert read_ref(f"{WHOLE} is mine", home) == WHOLE
    assert read_ref(f"“{NAME}”", home) == NAME
    assert Name(LINK.name.key, "debian") == LINK.name


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(NotHereError, match="255 bytes at most") as caught:
        read_ref("a" * 5000, Home(tmp_path))
    assert caught.value.hint
