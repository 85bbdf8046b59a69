"""The page in a browser: what it shows, with a keyboard, on a narrow screen, light and dark."""

from __future__ import annotations

import os
import random
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page, expect

from p2pcloop.formats.profile import Profile, Touch, pack_profile, pack_touches
from p2pcloop.formats.timeline import Span, Wait, encode_span, encode_start, encode_wait
from p2pcloop.store.guests import OwnGuest
from p2pcloop.store.profiles import keep_profile
from tests.support.browser import accessibility_faults, browser_page
from tests.support.images import write_cloop_file
from tests.support.programs import Node, Nodes

RAW = random.Random(3).randbytes(4096 * 256)
_JAPANESE = re.compile(r"[\u3040-\u30ff\u4e00-\u9fff]")
PICTURES = os.environ.get("P2PCLOOP_SCREENSHOTS")
"""A directory for pictures of the page, to be looked at."""


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Node]:
    """A node with an image of another, which a boot has read, and a guest that has ended."""
    with Nodes() as nodes:
        seeder, node = nodes.make(), nodes.start()
        cloop = write_cloop_file(tmp_path_factory.mktemp("web") / "disk.cloop", RAW)
        published = seeder.seed(cloop, "debian")
        node.run("fetch", published["link"])
        image_id = bytes.fromhex(node.json("info", published["name"])["image_id"])
        touches = pack_touches([Touch(0, 8, 0), Touch(160, 30, 900), Touch(64, 9, 4000)])
        keep_profile(node.home, pack_profile(Profile(image_id, len(RAW), 0, touches)))
        _end_a_guest(node, published["name"])
        yield node


def _end_a_guest(node: Node, image: str) -> None:
    with OwnGuest(node.home, "g1") as guest:
        facts = {"overlay": None, "memory": 512 << 20, "network": "none"}
        guest.begin(ref=image, image=image, version=1, **facts)
        guest.folder.log_path.write_bytes(
            b"\x1b[1mDebian\x1b[0m <img src=x onerror=alert(1)>\r\n\x1b]0;title\x07g1 login: "
        )
        guest.folder.timeline_path.write_bytes(
            encode_start(guest.record.started if guest.record else 0)
            + encode_wait(Wait(1, 0.5, 65536))
            + encode_wait(Wait(2, 1.25, 4096))
            + encode_span(Span(0, 4, 8_000_000, 0.75))
        )
        guest.keep()
        guest.end(reason="poweroff", exit_code=0, boot_seconds=4.25, fetched=9_000_000)


def look(page: Page, what: str) -> None:
    """Look for faults on two screens, light and dark."""
    for width in (360, 1280):
        page.set_viewport_size({"width": width, "height": 800})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
        for scheme in ("light", "dark"):
            page.emulate_media(color_scheme=scheme)
            assert accessibility_faults(page) == [], (what, width, scheme)
            if PICTURES:
                name = Path(PICTURES) / f"{what}-{width}-{scheme}.png"
                page.screenshot(path=name, full_page=True)


def test_the_page_shows_a_node_to_everybody(node: Node) -> None:
    """One browser and one page: each costs a second of a processor."""
    with browser_page() as page:
        page.goto(node.json("web")["url"])
        row = page.locator("#images tr")
        expect(row).to_contain_text("100 %")
        _go_by_keyboard(page)
        _open_image(page)
        look(page, "image")
        _press(page)
        _open_guest(page)
        look(page, "guest")
        page.get_by_label("Filter").fill("no such image")
        expect(row).to_have_count(0)


def test_the_page_speaks_japanese_to_who_reads_it(node: Node) -> None:
    with browser_page("ja-JP") as page:
        page.goto(node.json("web")["url"])
        expect(page.locator("html")).to_have_attribute("lang", "ja")
        expect(page.locator("#node")).to_contain_text("プロセス")
        page.get_by_role("button", name="/debian").click()
        expect(page.locator("#image-title")).to_contain_text("イメージ")
        expect(page.get_by_role("img", name="ここにあるもの: 取得済み")).to_be_visible()
        _all_is_japanese(page)
        look(page, "image-ja")
        page.get_by_role("button", name="g1").click()
        expect(page.locator("#timeline")).to_contain_text("読み込みの待ちは 2 回、計 1.8 秒")
        expect(page.locator("#guests tr")).to_contain_text("シャットダウン (0)")
        _all_is_japanese(page)
        look(page, "guest-ja")


_MARKED = ", ".join(
    [
        *("h2", "h3:not(#jobs h3)", "label", "button:not(.link)", "th", "dt", "figcaption"),
        *("summary", "option:not([value*='/'])", "#timeline .legend li", "[aria-label]"),
        "[placeholder]",
    ]
)


def _all_is_japanese(page: Page) -> None:
    """Headings, names of fields and facts, buttons and labels, seen or not."""
    told: list[str] = page.evaluate(
        """(marked) => [...document.querySelectorAll(marked)].filter((each) => each.translate)
        .map((each) => each.getAttribute("aria-label") ?? each.getAttribute("placeholder")
            ?? each.textContent)""",
        _MARKED,
    )
    assert len(told) > 60
    assert [each for each in told if each.strip() and not _JAPANESE.search(each)] == []


def _go_by_keyboard(page: Page) -> None:
    page.keyboard.press("Tab")
    expect(page.get_by_role("link", name="Skip to the content")).to_be_focused()
    page.keyboard.press("Enter")
    expect(page.locator("main")).to_be_focused()
    page.get_by_label("Filter").focus()
    page.keyboard.press("Tab")
    page.keyboard.press("Tab")
    page.keyboard.press("Enter")


def _open_image(page: Page) -> None:
    expect(page.locator("#image-title")).to_be_focused()
    expect(page.locator("#image-title")).to_contain_text("/debian")
    panels = page.locator("#map figure")
    expect(panels).to_have_count(3)
    told = page.get_by_role("img", name="What is here: here, ")
    expect(told).to_be_visible()
    expect(panels.nth(2)).to_contain_text("read last, after 4.0 s")
    fill = "getComputedStyle(document.querySelector('#map path.here')).fill"
    assert page.evaluate(fill) == "rgb(0, 114, 178)"


def _press(page: Page) -> None:
    page.get_by_role("button", name="Pin").click()
    expect(page.locator("#jobs")).to_contain_text("p2pcloop pin")
    expect(page.get_by_role("button", name="Unpin")).to_be_visible()
    expect(page.locator("#jobs li p").first).to_have_text("done")


def _open_guest(page: Page) -> None:
    page.get_by_role("button", name="g1").click()
    expect(page.locator("#guest-title")).to_be_focused()
    expect(page.locator("#guest-facts")).to_contain_text("4.3 s")
    timeline = page.locator("#timeline")
    expect(timeline).to_contain_text("2 reads waited, for 1.8 s in all; 8.0 MB came, at 2.0 MB/s")
    expect(timeline.locator(".wait")).to_have_count(3)  # with that of the legend
    page.get_by_text("The longest waits").click()
    expect(timeline.locator("tbody tr").first).to_contain_text("1.25 s")
    console = page.get_by_role("log", name="Console")
    expect(console).to_have_text("Debian <img src=x onerror=alert(1)>\ng1 login: ")
    assert page.locator("#console img").count() == 0
    expect(page.get_by_role("button", name="Start again")).to_be_visible()
