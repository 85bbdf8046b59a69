"""What programs do to a link on its way is undone, or the reader is told that it was changed."""

import quopri
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from p2pcloop.client.refs import read_ref
from p2pcloop.errors import NotHereError, P2pcloopError, UsageError
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.name import Name
from p2pcloop.formats.pasted import clean_pasted
from p2pcloop.store.home import Home
from tests.formats.test_link import LINK, SECRET, TEXT

WHOLE = TEXT + SECRET
NAME = str(LINK.name)


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
    clean_pasted(f"magnet:?{text}x.p2pcloop%3D{text}")


def test_a_reference_in_any_clothes(tmp_path: Path) -> None:
    home = Home(tmp_path)
    assert read_ref(f"<{WHOLE}>.", home) == WHOLE
    assert read_ref(f"“{NAME}”", home) == NAME
    assert Name(LINK.name.key, "debian") == LINK.name


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(NotHereError, match="255 bytes at most") as caught:
        read_ref("a" * 5000, Home(tmp_path))
    assert caught.value.hint
