"""A Debian archive of a few packages on this disk, signed with a key of its own, and an apt that
knows no other."""

from __future__ import annotations

import hashlib
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path


def run(*words: str | Path, **environment: str) -> str:
    """Run a program to its end; its standard output."""
    return subprocess.run(
        words, check=True, capture_output=True, text=True, timeout=120, stdin=subprocess.DEVNULL,
        env=os.environ | environment,
    ).stdout  # fmt: skip


class Key:
    """A throwaway OpenPGP key.

    Attributes:
        public: the file with its public half, as Signed-By takes it.
    """

    def __init__(self, home: Path) -> None:
        home.mkdir(mode=0o700)
        self._home = home
        self.public = home / "public.asc"
        unprotected = ("--batch", "--pinentry-mode", "loopback", "--passphrase", "")
        self._gpg(*unprotected, "--quick-gen-key", "archive@example.org", "ed25519", "sign", "0")
        self.public.write_text(self._gpg("--armor", "--export"))

    def sign(self, text: str) -> str:
        """`text` with its signature, as InRelease is."""
        plain = self._home / "plain"
        plain.write_text(text)
        return self._gpg("--batch", "--output", "-", "--clearsign", plain)

    def end(self) -> None:
        """End the agent that gpg started."""
        run("gpgconf", "--homedir", self._home, "--kill", "gpg-agent")

    def _gpg(self, *words: str | Path) -> str:
        return run("gpg", "--quiet", "--homedir", self._home, *words)


class Archive:
    """An archive with one component, `main`, whose suites are made by `publish`."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.architecture = run("dpkg", "--print-architecture").strip()

    def add(self, name: str, version: str, files: Mapping[str, bytes]) -> str:
        """Make a package of `files` (path → content, all executable); return its stanza."""
        tree = self.root / f"{name}_{version}"
        control = f"Package: {name}\nVersion: {version}\nArchitecture: {self.architecture}\n"
        control += "Maintainer: nobody <nobody@example.org>\nDescription: for a test\n"
        for path, content in {"DEBIAN/control": control.encode(), **files}.items():
            (tree / path).parent.mkdir(parents=True, exist_ok=True)
            (tree / path).write_bytes(content)
            (tree / path).chmod(0o755)
        deb = self.root / f"pool/{name}_{version}_{self.architecture}.deb"
        deb.parent.mkdir(exist_ok=True)
        run("dpkg-deb", "-Znone", "--root-owner-group", "--build", tree, deb)
        data = deb.read_bytes()
        where = f"Filename: {deb.relative_to(self.root)}\nSize: {len(data)}\n"
        return f"{control}{where}SHA256: {hashlib.sha256(data).hexdigest()}\n"

    def packages(self, suite: str) -> Path:
        """The index of a suite."""
        return self.root / f"dists/{suite}/main/binary-{self.architecture}/Packages"

    def publish(self, suite: str, stanzas: list[str], key: Key) -> Path:
        """Make a suite; return its InRelease."""
        index = self.packages(suite)
        index.parent.mkdir(parents=True)
        data = "\n".join(stanzas).encode()
        index.write_bytes(data)
        folder = self.root / "dists" / suite
        listed = f" {hashlib.sha256(data).hexdigest()} {len(data)} {index.relative_to(folder)}\n"
        release = f"Origin: Debian\nLabel: Debian\nSuite: {suite}\nCodename: {suite}\n"
        release += "Date: Thu, 01 Jan 2026 00:00:00 UTC\nComponents: main\n"
        release += f"Architectures: {self.architecture}\nSHA256:\n{listed}"
        signed = folder / "InRelease"
        signed.write_text(key.sign(release))
        return signed


def careless_apt(folder: Path, sources: str, name: str = "debian.sources") -> Path:
    """A configuration of apt (APT_CONFIG) whose only source is `sources`, and which takes anything
    unverified; its lists are fetched.

    Returns:
        The file.
    """
    for directory in ("state/lists/partial", "cache/archives/partial", "sources.list.d"):
        (folder / directory).mkdir(parents=True)
    (folder / "status").touch()
    (folder / "sources.list.d" / name).write_text(sources)
    configuration = folder / "apt.conf"
    configuration.write_text(
        f"""\
Dir::State "{folder}/state";
Dir::State::status "{folder}/status";
Dir::Cache "{folder}/cache";
Dir::Etc "{folder}";
Dir::Etc::parts "/dev/null";
APT::Sandbox::User "root";
APT::Get::AllowUnauthenticated "true";
Acquire::AllowInsecureRepositories "true";
Acquire::AllowWeakRepositories "true";
APT::Update::Post-Invoke {{ "touch {folder}/hooked"; }};
"""
    )
    run("apt-get", "update", APT_CONFIG=str(configuration))
    (folder / "hooked").unlink()
    return configuration
