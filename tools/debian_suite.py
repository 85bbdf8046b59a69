"""Packages of another Debian suite, fetched and verified by apt, and not installed.

apt itself does it, with lists and a cache of its own in a folder that goes at the end: the mirror
and the keyring are those of the system's own sources, and nothing of the system changes. It needs
no root. apt verifies InRelease by the keyring, Packages by the SHA-256 in InRelease, each
.deb by the SHA-256 in Packages (apt-secure(8)).
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from email import message_from_string
from pathlib import Path

_TIMEOUT = 1200.0

_CONFIGURATION = """\
// Hooks that other packages added to `apt-get update` are about the system's lists.
#clear APT::Update;
Dir::State "@WORK@/state";
Dir::State::status "@WORK@/status";
Dir::Cache "@WORK@/cache";
Dir::Etc::sourcelist "@WORK@/suite.sources";
Dir::Etc::sourceparts "/dev/null";
Dir::Etc::preferences "/dev/null";
Dir::Etc::preferencesparts "/dev/null";
// Whatever the system's configuration allows.
Acquire::AllowInsecureRepositories "false";
Acquire::AllowWeakRepositories "false";
Acquire::AllowDowngradeToInsecureRepositories "false";
APT::Get::AllowUnauthenticated "false";
"""

_KEPT_OPTIONS = ("signed-by", "check-valid-until")
"""Options of the system's entry that hold for another suite of its mirror, too. `trusted` is not
among them: it would turn the verification off."""


class AptError(Exception):
    """apt has no mirror, cannot fetch, or refuses what it fetched; the message is its own."""


@dataclass(frozen=True, slots=True)
class Mirror:
    """A Debian mirror of the system's sources.

    Attributes:
        uri: its address as apt writes it.
        options: those of `_KEPT_OPTIONS` that its entry has (sources.list(5)).
    """

    uri: str
    options: Mapping[str, str]


def debian_mirror() -> Mirror:
    """Return the first mirror of Debian's main archive that apt has lists of.

    Raises:
        AptError: there is none.
    """
    found = _run(
        *("apt-get", "indextargets", "--format", "$(REPO_URI) $(SOURCESENTRY)"),
        *("Created-By: Packages", "Origin: Debian", "Label: Debian"),
    )
    if not found:
        raise AptError(
            "apt knows no Debian mirror: its lists are empty (run `apt-get update` as root),"
            " or its sources name none"
        )
    uri, entry = found.splitlines()[0].split(" ", 1)
    file, _, number = entry.rpartition(":")
    options = entry_options(Path(file).read_text(), int(number), one_line=file.endswith(".list"))
    return Mirror(uri, {name: options[name] for name in _KEPT_OPTIONS if name in options})


def entry_options(text: str, number: int, *, one_line: bool) -> dict[str, str]:
    """Return the options of an entry of apt's sources, names in lower case (sources.list(5)).

    Args:
        text: the file.
        number: the entry's, as apt counts: its line, or its stanza in deb822 style, from 1.
        one_line: the file is in one-line style.
    """
    if one_line:
        bracket = re.match(r"\s*deb\s+\[([^]]*)\]", text.splitlines()[number - 1])
        words = bracket[1].split() if bracket else []
        return {name.lower(): value for name, _, value in (word.partition("=") for word in words)}
    stanzas = re.split(r"\n\s*\n", re.sub(r"(?m)^#.*\n?", "", text))
    stanza = [stanza for stanza in stanzas if stanza.strip()][number - 1]
    return {name.lower(): value for name, value in message_from_string(stanza.lstrip()).items()}


@contextmanager
def packages(mirror: Mirror, suite: str, names: Sequence[str]) -> Iterator[dict[str, Path]]:
    """Fetch the newest version of each package of a suite; name → .deb, gone when the block ends.

    Raises:
        AptError: the mirror lacks the suite or a package, or something is not as it was signed.
    """
    with tempfile.TemporaryDirectory(prefix="p2pcloop-apt-") as directory:
        work = Path(directory)
        work.chmod(0o755)  # started by root, apt fetches as _apt
        for folder in ("state/lists/partial", "cache/archives/partial"):
            (work / folder).mkdir(parents=True)
        debs = work / "debs"
        debs.mkdir()
        with suppress(LookupError, PermissionError):
            shutil.chown(debs, "_apt")
        (work / "status").touch()
        (work / "suite.sources").write_text(_sources(mirror, suite))
        (work / "apt.conf").write_text(_CONFIGURATION.replace("@WORK@", str(work)))
        apt = ("apt-get", "-c", str(work / "apt.conf"), "-q")
        try:
            _run(*apt, "update", "--error-on=any")
        except AptError as err:
            raise AptError(
                f"{mirror.uri} gives no suite {suite} that can be verified"
                f" (snapshots and partial mirrors may have none):\n{err}"
            ) from err
        _run(*apt, "download", *names, cwd=debs)
        yield {name: next(debs.glob(f"{name}_*.deb")) for name in names}


def _sources(mirror: Mirror, suite: str) -> str:
    """The one entry of the private sources, in deb822 style (sources.list(5))."""
    entry = {
        "Types": "deb",
        "URIs": mirror.uri,
        "Suites": suite,
        "Components": "main",
        "Targets": "Packages",
        "PDiffs": "no",
        **mirror.options,
    }
    return "".join(f"{name}: {value}\n" for name, value in entry.items())


def _run(*argv: str, cwd: Path | None = None) -> str:
    """Run a program of apt's; its standard output."""
    try:
        done = subprocess.run(
            argv, stdin=subprocess.DEVNULL, capture_output=True, text=True, cwd=cwd,
            timeout=_TIMEOUT, check=False, env=os.environ | {"LC_ALL": "C"},
        )  # fmt: skip
    except FileNotFoundError as err:
        raise AptError(f"{argv[0]} is not installed: this is no Debian system") from err
    except subprocess.TimeoutExpired as err:
        raise AptError(f"{argv[0]} did not end within {_TIMEOUT:.0f} s") from err
    if done.returncode != 0:
        raise AptError(done.stderr.strip() or f"{argv[0]} ended with {done.returncode}")
    return done.stdout
