"""Packages of another suite: apt fetches them, and refuses all that is not as it was signed."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.archive import Archive, Key, careless_apt
from tools.debian_suite import AptError, debian_mirror, entry_options, packages


def test_options_of_a_line() -> None:
    text = (
        "# deb [signed-by=/no] file:/a stable main\n\n"
        "deb file:/a stable main\n"
        " deb  [ arch=amd64  Signed-By=/k,/l trusted=yes ]  file:/b stable main\n"
    )
    assert entry_options(text, 3, one_line=True) == {}
    assert entry_options(text, 4, one_line=True) == {
        "arch": "amd64",
        "signed-by": "/k,/l",
        "trusted": "yes",
    }


def test_options_of_a_stanza() -> None:
    text = (
        "# what apt takes\n\n\nTypes: deb\nURIs: file:/a\n# Signed-By: /no\n\n \n"
        "#\nTypes: deb\nSigned-by:\n begin\n .\n end\nSuites: x y\n"
    )
    assert entry_options(text, 1, one_line=False) == {"types": "deb", "uris": "file:/a"}
    assert entry_options(text, 2, one_line=False) == {
        "types": "deb",
        "signed-by": "\n begin\n .\n end",
        "suites": "x y",
    }


@dataclass(frozen=True)
class Field:
    """An archive with suites `stable` (the system's) and `new`, and keys."""

    archive: Archive
    key: Key
    other_key: Key
    in_release: Path


@pytest.fixture
def field(signing_key: Key, other_key: Key, tmp_path: Path) -> Field:
    archive = Archive(tmp_path / "archive")
    archive.publish("stable", [archive.add("old", "1", {})], signing_key)
    stanzas = [archive.add("one", "1.0", {"usr/one": b"1"}), archive.add("two", "2:0-1", {})]
    in_release = archive.publish("new", stanzas, signing_key)
    return Field(archive, signing_key, other_key, in_release)


def deb822(field: Field) -> str:
    return (
        f"Types: deb\nURIs: file:{field.archive.root}\nSuites: stable\nComponents: main\n"
        f"Trusted: yes\nSigned-By: {field.key.public}\n"
    )


def with_the_key_itself(field: Field) -> str:
    lines = field.key.public.read_text().splitlines()
    text = "".join(f" {line or '.'}\n" for line in lines)
    # A stanza before it: the second one counts.
    other = "Types: deb\nEnabled: no\nURIs: file:/none\nSuites: x\nComponents: main\n\n# next\n\n"
    return other + deb822(field).replace(f" {field.key.public}\n", f"\n{text}")


def one_line(field: Field) -> str:
    return (
        f"# ours\ndeb [trusted=yes signed-by={field.key.public}] file:{field.archive.root}"
        " stable main\n"
    )


@pytest.fixture
def apt(field: Field, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of the system's apt, which would take anything."""
    configuration = careless_apt(tmp_path / "apt", deb822(field))
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    return configuration.parent


@pytest.mark.interop
@pytest.mark.parametrize(
    ("sources", "name"),
    [
        (deb822, "debian.sources"),
        (with_the_key_itself, "debian.sources"),
        (one_line, "debian.list"),
    ],
)
def test_fetched_from_the_systems_mirror_by_its_keyring(
    sources: Callable[[Field], str],
    name: str,
    field: Field,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    configuration = careless_apt(tmp_path / "apt", sources(field), name)
    monkeypatch.setenv("APT_CONFIG", str(configuration))
    before = state_of(configuration.parent)
    mirror = debian_mirror()
    assert mirror.uri.removeprefix("file:").strip("/") == str(field.archive.root).strip("/")
    assert list(mirror.options) == ["signed-by"]
    with packages(mirror, "new", ["one", "two"]) as found:
        pool = field.archive.root / "pool"
        assert found["one"].read_bytes() == next(pool.glob("one_*")).read_bytes()
        assert found["two"].read_bytes() == next(pool.glob("two_*")).read_bytes()
        folder = found["one"].parent.parent
    assert not folder.exists()
    assert state_of(configuration.parent) == before


def state_of(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


def changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def unsigned(field: Field) -> None:
    lines = field.in_release.read_text().splitlines(keepends=True)
    end = lines.index("-----BEGIN PGP SIGNATURE-----\n")
    field.in_release.with_name("Release").write_text("".join(lines[3:end]))
    field.in_release.unlink()


def signed_by_another(field: Field) -> None:
    lines = field.in_release.read_text().splitlines(keepends=True)
    end = lines.index("-----BEGIN PGP SIGNATURE-----\n")
    field.in_release.write_text(field.other_key.sign("".join(lines[3:end])))


def release_changed(field: Field) -> None:
    text = field.in_release.read_text()
    field.in_release.write_text(text.replace("Codename: new", "Codename: old"))


def packages_changed(field: Field) -> None:
    index = field.archive.packages("new")
    index.write_text(index.read_text().replace("for a test", "for a Test"))


def deb_changed(field: Field) -> None:
    changed(next((field.archive.root / "pool").glob("one_*")))


def deb_gone(field: Field) -> None:
    next((field.archive.root / "pool").glob("one_*")).unlink()


def suite_gone(field: Field) -> None:
    field.in_release.unlink()


@pytest.mark.interop
@pytest.mark.parametrize(
    ("spoil", "says"),
    [
        (unsigned, "is not signed"),
        (signed_by_another, "NO_PUBKEY"),
        (release_changed, "BADSIG"),
        (packages_changed, "Hash Sum mismatch|unexpected size"),
        (deb_changed, "Hash Sum mismatch"),
        (deb_gone, "No such file"),
        (suite_gone, "no suite new.*partial mirrors"),
    ],
)
@pytest.mark.usefixtures("apt")
def test_what_is_not_as_it_was_signed_is_refused(
    spoil: Callable[[Field], None], says: str, field: Field
) -> None:
    spoil(field)
    with pytest.raises(AptError, match=f"(?s){says}"):
        with packages(debian_mirror(), "new", ["one"]):
            pass


@pytest.mark.interop
@pytest.mark.usefixtures("apt")
def test_a_package_that_the_suite_lacks() -> None:
    with pytest.raises(AptError, match="three"):
        with packages(debian_mirror(), "new", ["three"]):
            pass


@pytest.mark.interop
def test_no_lists(apt: Path) -> None:
    for file in (apt / "state/lists").glob("*_*"):
        file.unlink()
    with pytest.raises(AptError, match="apt-get update"):
        debian_mirror()


def test_no_debian(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(AptError, match="no Debian system"):
        debian_mirror()
