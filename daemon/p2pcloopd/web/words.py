"""The page in the language of its viewer: what of its files is text, and its translation.

Which language, the browser says in each request (Accept-Language). The HTML is translated here. The
scripts get a map of their own texts with the page, and look them up (`tr` of words.js). English
viewers get the files as they are.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from html import escape, unescape
from pathlib import Path

from p2pcloop.catalogue import catalogue
from p2pcloop.text import to_json
from p2pcloop.words import said_in

RESOURCES = Path(__file__).parent / "resources"

_SHOWN = re.compile(
    r"(?P<tag><[a-z][^<>]*>)(?P<text>[^<>]*)|(?P<between></[a-z0-9]+>)(?P<after>[^<>]+)"
)
_ATTRIBUTE = re.compile(r'(?<= )(aria-label|placeholder)="([^"]*)"')
_KEPT = 'translate="no"'
_CALL = re.compile(r'\btr\(\s*("[^"\\]*")')
_WORDS = '<script type="application/json" id="words">{}</script>'
_ENGLISH = '<html lang="en">'


def language_of(accepted: str) -> str:
    """The language of an Accept-Language (RFC 9110, 12.5.4) that the viewer likes best and for
    which there is a catalogue; `en` where there is none."""
    ranked = []
    for number, each in enumerate(accepted.split(",")):
        name, _, weight = each.partition(";")
        match = re.fullmatch(r"\s*q=([01](?:\.[0-9]{0,3})?)\s*", weight or "q=1")
        quality = float(match[1]) if match is not None else 0.0
        ranked.append((-quality, number, name.strip().lower().partition("-")[0]))
    for quality, _, language in sorted(ranked):
        if quality and (language == "en" or catalogue(language) is not None):
            return language
    return "en"


def said(text: str, language: str) -> str:
    """A text in a language of `language_of`."""
    found = None if language == "en" else catalogue(language)
    return text if found is None else said_in(found, text)


def page_in(html: str, language: str) -> str:
    """The HTML of the page in a language, with the texts of its scripts."""
    if language == "en":
        return html

    def translate(text: str) -> str:
        return escape(said(text, language))

    scripts = (path.read_text(encoding="utf-8") for path in sorted(RESOURCES.glob("*.js")))
    words = {text: said(text, language) for script in scripts for text in script_texts(script)}
    data = to_json(words).replace("<", "\\u003c")  # no text ends the element
    html = _changed(html, translate).replace(_WORDS, _WORDS.replace("{}", data))
    return html.replace(_ENGLISH, f'<html lang="{language}">')


def html_texts(html: str) -> list[str]:
    """What of the HTML is text: between tags, and of some attributes. An element with
    `translate="no"` is none."""
    found: list[str] = []

    def note(text: str) -> str:
        found.append(text)
        return text

    _changed(html, note)
    return found


def script_texts(script: str) -> list[str]:
    """The texts that a script passes to `tr`."""
    return [json.loads(text) for text in _CALL.findall(script)]


def _changed(html: str, change: Callable[[str], str]) -> str:
    """The HTML with each of its texts changed; blanks around a text stay."""

    def text(raw: str) -> str:
        words = raw.strip()
        return raw.replace(words, change(unescape(" ".join(words.split())))) if words else raw

    def attribute(match: re.Match[str]) -> str:
        return f'{match[1]}="{text(match[2])}"'

    def part(match: re.Match[str]) -> str:
        if match["tag"] is None:
            return match["between"] + text(match["after"])
        if _KEPT in match["tag"] or match["tag"].startswith("<script"):
            return match[0]
        return _ATTRIBUTE.sub(attribute, match["tag"]) + text(match["text"])

    return _SHOWN.sub(part, html)
