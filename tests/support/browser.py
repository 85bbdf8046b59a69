"""Debian's Chromium, driven by Playwright, and axe's rules of accessibility."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from axe_playwright_python.base import AXE_SCRIPT
from playwright.sync_api import Page, expect, sync_playwright

from tests.support.waiting import BOUND

CHROMIUM = "/usr/bin/chromium-headless-shell"

# Chromium's own sandbox refuses root; the pages of tests are ours.
_OPTIONS = ["--no-sandbox", "--disable-gpu"]

expect.set_options(timeout=BOUND * 1000)


@contextmanager
def browser_page(language: str = "en-US") -> Iterator[Page]:
    """A page in a browser of its own, whose user reads a language.

    What it complains of fails the test in the end.
    """
    complaints: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=_OPTIONS)
        try:
            page = browser.new_page(locale=language)
            page.set_default_timeout(BOUND * 1000)
            page.on("console", lambda message: complaints.append(message.text))
            page.on("pageerror", lambda error: complaints.append(str(error)))
            yield page
        finally:
            browser.close()
    assert not complaints, complaints


def accessibility_faults(page: Page) -> list[str]:
    """What axe finds: each rule that is broken, and where."""
    if not page.evaluate("'axe' in window"):
        page.evaluate(AXE_SCRIPT)
    found: dict[str, Any] = page.evaluate("axe.run({resultTypes: ['violations']})")
    return [
        f"{rule['id']}: {rule['help']}: {[node['html'] for node in rule['nodes']]}"
        for rule in found["violations"]
    ]
