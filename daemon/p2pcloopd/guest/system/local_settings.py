"""What of this machine a guest may want to have alike: language, keyboard, time zone.

KNOPPIX's words of the kernel's command line (`lang=`, `keyboard=`, `tz=`) tell it to images whose
init reads them, and `locale.LANG=` and `vconsole.keymap=` to systemd (kernel-command-line(7)).
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path

from p2pcloop.errors import UsageError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr

_LOCALE = re.compile(r"[A-Za-z]{2,3}(_[A-Z]{2})?(\.[A-Za-z0-9-]{1,12})?(@[a-z]{1,12})?")
_KEYBOARD = re.compile(r"[a-z]{2,12}(-[a-z0-9_-]{1,24})?")
_ZONE = re.compile(r"[A-Za-z0-9_+-]{1,24}(/[A-Za-z0-9_+-]{1,24}){0,2}")
_NEUTRAL = ("C", "POSIX", "C.UTF-8", "C.utf8")
_LAYOUT = re.compile(r"^(?:XKBLAYOUT|KEYMAP)=[\"']?([a-z]+)", re.MULTILINE)


@dataclass(frozen=True, slots=True)
class LocalSettings:
    """Settings for a guest; None where the image keeps its own.

    Attributes:
        locale: as LANG has it, `de_DE.UTF-8`.
        keyboard: a layout, `de`.
        zone: a time zone, `Europe/Berlin`.
    """

    locale: str | None = None
    keyboard: str | None = None
    zone: str | None = None

    def words(self) -> list[str]:
        """Return words for the kernel."""
        words = []
        if self.locale is not None:
            language = re.split(r"[_.@]", self.locale)[0]
            words += [f"lang={language}", f"locale.LANG={self.locale}"]
        if self.keyboard is not None:
            words += [f"keyboard={self.keyboard}", f"vconsole.keymap={self.keyboard}"]
        if self.zone is not None:
            words += [f"tz={self.zone}"]
        return words

    def variables(self) -> dict[str, str]:
        """Return the environment of programs on the guest's display."""
        known = {"LANG": self.locale, "TZ": self.zone}
        return {name: value for name, value in known.items() if value is not None}


def given_settings(locale: str | None, keyboard: str | None) -> LocalSettings:
    """Return what a user asks for.

    Raises:
        UsageError: it is no locale, or no keyboard layout.
    """
    if locale is not None and locale not in _NEUTRAL and not _LOCALE.fullmatch(locale):
        raise UsageError(
            tr("--locale {locale!r} is no locale", locale=locale),
            hint="for example de_DE.UTF-8, or C",
        )
    if keyboard is not None and not _KEYBOARD.fullmatch(keyboard):
        raise UsageError(
            tr("--keyboard {keyboard!r} is no keyboard layout", keyboard=keyboard),
            hint="for example de, or us",
        )
    return LocalSettings(None if locale in _NEUTRAL else locale, keyboard)


def host_settings(
    environment: Mapping[str, str] = os.environ, root: Path = Path("/")
) -> LocalSettings:
    """Return this machine's settings, and this user's.

    Args:
        environment: of the user.
        root: where the machine's files are.
    """
    locale = environment.get("LC_ALL") or environment.get("LANG") or ""
    keyboard = _keyboard(root)
    zone = _zone(root)
    return LocalSettings(
        locale if _LOCALE.fullmatch(locale) and locale not in _NEUTRAL else None,
        keyboard if _KEYBOARD.fullmatch(keyboard) else None,
        zone if _ZONE.fullmatch(zone) else None,
    )


def _keyboard(root: Path) -> str:
    """The layout: where Debian keeps it, or systemd."""
    for name in ("etc/default/keyboard", "etc/vconsole.conf"):
        try:
            found = _LAYOUT.search((root / name).read_text(errors="replace"))
        except OSError:
            continue
        if found:
            return found[1]
    return ""


def _zone(root: Path) -> str:
    try:
        return str((root / "etc/localtime").readlink()).partition("zoneinfo/")[2]
    except OSError:
        return ""
