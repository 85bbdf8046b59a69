"""KNOPPIX's cheatcodes among the words of `--append` (docs/knoppix.md has the table).

All words go to the guest's kernel as they are, so the image's own init finds them there. This
module tells what p2pcloop does besides, and says so where a word means something that a guest does
not have: a CD, a stick, a disk of the machine.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Mapping

from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

_LANGUAGES = {
    "at": "de_AT",
    "br": "pt_BR",
    "ch": "de_CH",
    "cn": "zh_CN",
    "cs": "cs_CZ",
    "da": "da_DK",
    "de": "de_DE",
    "dk": "da_DK",
    "en": "en_US",
    "es": "es_ES",
    "fr": "fr_FR",
    "it": "it_IT",
    "ja": "ja_JP",
    "jp": "ja_JP",
    "nl": "nl_NL",
    "pl": "pl_PL",
    "pt": "pt_PT",
    "ru": "ru_RU",
    "sk": "sk_SK",
    "sv": "sv_SE",
    "tr": "tr_TR",
    "tw": "zh_TW",
    "uk": "en_GB",
    "us": "en_US",
}
"""Locales of the codes that KNOPPIX's `lang=` takes: of languages and of countries."""

_SAME = ("de", "dk", "es", "fr", "it", "nl", "pl", "ru", "tr", "uk", "us")
_KEYMAPS = dict(zip(_SAME, _SAME, strict=True)) | {
    "at": "de",
    "br": "br-abnt2",
    "ch": "de_CH-latin1",
    "cs": "cz",
    "da": "dk",
    "en": "us",
    "ja": "jp106",
    "jp": "jp106",
    "pt": "pt-latin1",
    "sk": "sk-qwerty",
    "sv": "se-latin1",
}
"""The keyboard that comes with a language, as systemd's `vconsole.keymap=` has it."""

_LOCALE = re.compile(r"[a-z]{2,3}_[A-Z]{2}")
_KEYBOARD = re.compile(r"[A-Za-z]{2,12}([-_][A-Za-z0-9_-]{1,24})?")
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,24}(/[A-Za-z0-9_+-]{1,24}){0,2}")
_HOST_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?")

_KEPT = tr(
    "names a place on this machine, which a guest does not see: its changes are kept with"
    " --overlay FILE, and `p2pcloop import` makes such a file of a knoppix-data.img"
)
_PLACE = tr("names where the CD lies: here the image is what the command names")
_SCREEN = tr(
    "is of no use here: a guest has a screen with --display, of the size that you give that"
)
_REMARKS = {
    **dict.fromkeys(("home", "myconf", "myconfig", "config", "knoppix_data"), _KEPT),
    **dict.fromkeys(("fromhd", "bootfrom", "knoppix_dir", "isofrom"), _PLACE),
    "tohd": tr(
        "copies the CD to a disk: `p2pcloop fetch` brings all of an image here, and keeps it"
    ),
    "testcd": tr(
        "tests the CD: `p2pcloop verify` does, and a guest reads no byte without its hash"
    ),
    **dict.fromkeys(("vga", "screen", "xvrefresh", "xhrefresh"), _SCREEN),
    "noimage": tr("is what a boot without --overlay does"),
}
"""What is told of a cheatcode that does nothing here."""


@dataclass(frozen=True, slots=True)
class Cheatcodes:
    """What the cheatcodes of a user ask for.

    Attributes:
        words: for the kernel besides: what systemd understands.
        host_name: of the guest, or None.
        whole: all of the image is to be here before the guest boots.
        remarks: for the user, of those that do nothing.
    """

    words: tuple[str, ...] = ()
    host_name: str | None = None
    whole: bool = False
    remarks: tuple[str, ...] = ()


def read_cheatcodes(append: str) -> Cheatcodes:
    """Find the cheatcodes in a user's words for the kernel; of a repeated one the last counts.

    Args:
        append: quoted as for a shell; where it is not, it is refused elsewhere.
    """
    try:
        all_words = shlex.split(append)
    except ValueError:
        return Cheatcodes()
    given = {}
    for word in all_words:
        if word == "--":  # what follows is for init
            break
        name, _, value = word.partition("=")
        given[name] = value
    words = [found for read in (_language, _keyboard, _zone) if (found := read(given))]
    remarks = [f"{name}: it {_REMARKS[name]}" for name in given if name in _REMARKS]
    host_name = given.get("hostname")
    if host_name is not None and not _HOST_NAME.fullmatch(host_name):
        remarks.append(tr("hostname: it is no host name: small letters, digits and hyphens are"))
        host_name = None
    return Cheatcodes(
        tuple(word for found in words for word in found),
        host_name,
        "toram" in given,
        tuple(remarks),
    )


_Read = Callable[[Mapping[str, str]], list[str]]


def _language(given: Mapping[str, str]) -> list[str]:
    code = given.get("lang", "")
    locale = code if _LOCALE.fullmatch(code) else _LANGUAGES.get(code)
    if locale is None:
        return []
    keymap = _KEYMAPS.get(code)
    with_keys = [f"vconsole.keymap={keymap}"] if keymap and "keyboard" not in given else []
    return [f"locale.LANG={locale}.UTF-8", *with_keys]


def _keyboard(given: Mapping[str, str]) -> list[str]:
    layout = given.get("keyboard", "")
    return [f"vconsole.keymap={layout}"] if _KEYBOARD.fullmatch(layout) else []


def _zone(given: Mapping[str, str]) -> list[str]:
    zone = given.get("tz", "")
    return [f"systemd.setenv=TZ={zone}"] if _ZONE.fullmatch(zone) else []
