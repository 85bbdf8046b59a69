"""What packages of distributions hold, as far as it can be seen without building them.

tools/check-packages installs whole ones.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import subprocess
import tarfile
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from p2pcloop.cli.commands import COMMANDS
from p2pcloop.formats.config import SETTINGS, load_config
from p2pcloopd.guest.system import preload
from tests.support.command import home
from tests.support.programs import P2PCLOOP
from tests.support.waiting import BOUND
from tools import build_deb, build_rpm
from tools.check_packages import unmet
from tools.package_tree import (
    CHECKOUT,
    SOURCES,
    Bundled,
    drop_unused,
    fill_in,
    installed_kilobytes,
    pinned,
    write_completion,
    write_plain_files,
)

__all__ = ["home"]

DEBIAN_12 = build_deb.RELEASES["bookworm"]
BUNDLED = [
    Bundled("isal", "1.9.1", "PSF-2.0", ()),
    Bundled("trio", "0.35.0", "MIT OR Apache-2.0", ()),
    Bundled("lz4", "4.4.5", "BSD License", ()),
]


def run(*words: str | Path, **environment: str) -> str:
    done = subprocess.run(
        words,
        env=os.environ | environment,
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=BOUND,
        check=False,
    )
    assert done.returncode == 0, (words, done.stdout, done.stderr)
    return done.stdout


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The files of a package that are not compiled and come from no registry."""
    root = tmp_path_factory.mktemp("root")
    write_plain_files(root, DEBIAN_12.layout)
    write_completion(root, DEBIAN_12.layout)
    return root


def test_no_place_of_a_layout_is_left_open(root: Path) -> None:
    files = [path for path in root.rglob("*") if path.is_file()]
    assert len(files) > 12
    assert [path for path in files if re.search(r"@[A-Z_]+@", path.read_text())] == []
    scripts = [fill_in(path.read_text(), DEBIAN_12.layout) for path in SOURCES.glob("debian/*")]
    assert len(scripts) == 3
    assert not any("@" in script.replace("$@", "") for script in scripts)


# Units


@pytest.mark.interop
def test_the_system_node_is_exposed_little() -> None:
    unit = SOURCES / "systemd/system/p2pcloopd.service"
    told = run("systemd-analyze", "security", "--offline=true", "--json=short", unit)
    exposure = sum(float(row["exposure"] or 0) for row in json.loads(told))
    assert exposure < 3.0
    run("systemd-analyze", "security", "--offline=true", "--threshold=20", unit)


@pytest.mark.interop
@pytest.mark.parametrize("kind", ["system", "user"])
def test_units_are_as_systemd_wants_them(kind: str, root: Path, tmp_path: Path) -> None:
    units = sorted((root / f"usr/lib/systemd/{kind}").iterdir())
    assert units
    for unit in units:
        # Programs and manual pages need not be installed here.
        text = unit.read_text().replace("/usr/bin/p2pcloopd", "/bin/true")
        (tmp_path / unit.name).write_text(re.sub(r"Documentation=.*\n", "", text))
    run("systemd-analyze", "verify", *sorted(tmp_path.iterdir()), XDG_RUNTIME_DIR=str(tmp_path))


# Settings


def test_the_settings_in_etc_set_nothing(root: Path, tmp_path: Path) -> None:
    for name in ("config.toml", "node.toml"):
        file = root / "etc/p2pcloop" / name
        assert load_config(file, tmp_path / "none") == load_config(tmp_path / "none")


def test_the_settings_in_etc_can_be_turned_on(root: Path, tmp_path: Path) -> None:
    found: set[str] = set()
    for name in ("config.toml", "node.toml"):
        text = (root / "etc/p2pcloop" / name).read_text()
        file = tmp_path / name
        file.write_text(re.sub(r"^#(?! )", "", text, flags=re.MULTILINE))
        assert load_config(file, tmp_path / "none") != load_config(tmp_path / "none")
        found |= set(keys(tomllib.loads(file.read_text())))
    assert found == set(SETTINGS)


def keys(table: Mapping[str, object], prefix: str = "") -> Iterator[str]:
    for name, value in table.items():
        if isinstance(value, dict):
            yield from keys(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


# Completion


@pytest.mark.interop
@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_a_shell_completes_commands_options_and_names(shell: str, root: Path, home: Path) -> None:
    path = f"{P2PCLOOP.parent}:{os.environ['PATH']}"
    assert completed(shell, root, "p2pcloop bo", path) == ["boot"]
    assert completed(shell, root, "p2pcloop boot --deta", path) == ["--detach"]
    assert completed(shell, root, "p2pcloop daemon sto", path) == ["stop"]
    (home / "guests/my-guest").mkdir(parents=True)
    (home / "guests/my-guest/record.json").touch()
    assert completed(shell, root, "p2pcloop logs my", path) == ["my-guest"]


def completed(shell: str, root: Path, line: str, path: str) -> list[str]:
    """What a shell offers at the end of a line that is typed."""
    words = line.split()
    if shell == "fish":
        script = root / "usr/share/fish/vendor_completions.d/p2pcloop.fish"
        code = f"source {script}; complete --do-complete '{line}'"
        return [row.split("\t")[0] for row in run("fish", "-c", code, PATH=path).split("\n") if row]
    if shell == "bash":
        script = root / "usr/share/bash-completion/completions/p2pcloop"
        code = (
            f"source {script}; COMP_WORDS=({line}); COMP_CWORD={len(words) - 1};"
            " _p2pcloop_completion p2pcloop; printf '%s\\n' \"${COMPREPLY[@]}\""
        )
        return run("bash", "--norc", "-c", code, PATH=path).split()
    script = root / "usr/share/zsh/vendor-completions/_p2pcloop"
    # zsh completes in its line editor alone: what it would offer is printed in its place.
    code = (
        "compdef() { :; }; _describe() { print -l -- ${(P)3}; };"
        " compadd() { print -l -- ${(P)@[-1]}; };"
        f" words=({line}); CURRENT={len(words)}; source {script}; _p2pcloop_completion"
    )
    offered = run("zsh", "-f", "-c", code, PATH=path).split("\n")
    return [row.split(":")[0] for row in offered if row]


def test_completion_names_every_command() -> None:
    told = run(P2PCLOOP, _P2PCLOOP_COMPLETE="bash_complete", COMP_WORDS="p2pcloop ", COMP_CWORD="1")
    assert {line.removeprefix("plain,") for line in told.split()} == set(COMMANDS)


# Desktop


@pytest.mark.interop
def test_a_desktop_takes_the_entry_and_the_types(root: Path) -> None:
    share = root / "usr/share"
    run("desktop-file-validate", *share.glob("applications/*.desktop"))
    run("appstreamcli", "validate", "--no-net", *share.glob("metainfo/*.xml"))
    run("update-mime-database", "-V", share / "mime")
    types = (share / "mime/globs2").read_text()
    assert "application/x-cloop:*.cloop" in types
    assert "application/x-p2pcloop-overlay:*.delta" in types


def test_files_begin_as_their_types_say() -> None:
    tree = ET.parse(SOURCES / "desktop/p2pcloop-mime.xml")
    begins = [
        match.attrib["value"].encode().decode("unicode_escape").encode()
        for match in tree.iter("{http://www.freedesktop.org/standards/shared-mime-info}match")
    ]
    data = CHECKOUT / "tests/data"
    files = [data / "overlay-v1.delta", *data.glob("**/*.cloop")]
    known = [file for file in files if file.read_bytes().startswith(tuple(begins))]
    assert data / "overlay-v1.delta" in known
    assert len(known) > 1


@pytest.fixture(scope="module")
def opener() -> ModuleType:
    path = SOURCES / "desktop/open.py"
    spec = importlib.util.spec_from_file_location("desktop_open", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_a_desktop_boots_links_and_files(opener: ModuleType, tmp_path: Path) -> None:
    boot = opener.words_to_boot
    assert boot("magnet:?xt=urn:btih:00&dn=a", "p") == ["p", "boot", "magnet:?xt=urn:btih:00&dn=a"]
    assert boot("file:///srv/my%20disk.cloop", "p") == ["p", "boot", "/srv/my disk.cloop"]
    assert boot("/srv/disk.cloop", "p") == ["p", "boot", "/srv/disk.cloop"]
    told = tmp_path / "told"
    told.write_text('#!/bin/sh\necho \'{"made_on": "@key/debian"}\'\n')
    told.chmod(0o755)
    words = [str(told), "boot", "@key/debian", "--overlay", "/x/mine.delta"]
    assert boot("file:///x/mine.delta", str(told)) == words


# Python packages and licences


def project_requirements() -> list[Requirement]:
    project = tomllib.loads((CHECKOUT / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in project["dependencies"]]


def test_what_is_brought_satisfies_the_project() -> None:
    versions = dict(line.split("==") for line in pinned(build_rpm.layout("3.13")))
    wanted = [need for need in project_requirements() if need.name not in build_rpm.RECOMMENDED]
    assert len(wanted) > 10
    assert [need for need in wanted if not need.specifier.contains(versions[need.name])] == []


@pytest.mark.parametrize("release", build_deb.RELEASES)
def test_each_python_package_is_brought_or_depended_on(release: str) -> None:
    distribution = build_deb.RELEASES[release].distribution
    brought = {line.partition("==")[0] for line in pinned(build_deb.RELEASES[release].layout)}
    for need in project_requirements():
        assert (need.name in brought) != bool(distribution.get(need.name)), need
    fields = build_deb.control(build_deb.RELEASES[release], "1-1", 1)
    [depends] = [line for line in fields.splitlines() if line.startswith("Depends: ")]
    for package in filter(None, distribution.values()):
        assert package in depends


def test_licences_are_listed() -> None:
    text = build_deb.copyright_file(BUNDLED)
    assert "Files: usr/lib/p2pcloop/lib/*/isal/*" in text
    assert "License: PSF-2.0\n" in text
    assert build_rpm.licences(BUNDLED) == (
        "GPL-2.0-or-later AND (Apache-2.0 OR MIT) AND BSD-3-Clause AND PSF-2.0"
    )
    spec = build_rpm.spec(build_rpm.layout("3.13"), "1", BUNDLED)
    assert "Provides: bundled(python3dist(trio)) = 0.35.0" in spec
    assert not re.search(r"@[A-Z_]+@", spec)
    for name in build_rpm.RECOMMENDED:
        assert f"Recommends: python3-{name}\n" in spec


def test_what_a_python_package_lacks_is_found() -> None:
    found: dict[str, tuple[str, list[str]]] = {
        "p2pcloop": ("0.1", ["trio>=0.25", "Click", "tomli; python_version < '3'"]),
        "trio": ("0.22", ["attrs"]),
        "click": ("8.1", ["colour", "more; extra == 'more'"]),
    }
    assert sorted(unmet(found, "3.11.2")) == [
        "click: colour, which is not there",
        "p2pcloop: trio>=0.25, and 0.22 is there",
    ]


# Files


def test_an_rpm_owns_its_own_folders_and_settings(root: Path) -> None:
    lines = list(build_rpm.file_list(root))
    assert '%config(noreplace) "/etc/p2pcloop/node.toml"' in lines
    assert '%dir "/etc/p2pcloop"' in lines
    assert '%dir "/usr/lib/p2pcloop"' in lines
    assert '"/usr/lib/systemd/user/p2pcloopd.socket"' in lines
    assert not any(line.startswith("%dir") and "p2pcloop" not in line for line in lines)


def test_what_is_never_loaded_is_left_out(tmp_path: Path) -> None:
    keep = ["zeroconf/_dns.cpython-311-x86_64-linux-gnu.so", "zeroconf/core.py", "a/__init__.py"]
    drop = ["zeroconf/_dns.py", "zeroconf/_dns.pxd", "a/b.pyi", "a-1.dist-info/sboms/a.json"]
    drop += ["trio/_tests/test_ssl.py", "trio/_core/_tests/type/test_run.py"]
    for name in [*keep, *drop, "zstandard/_cffi.cpython-311-x86_64-linux-gnu.so"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    drop_unused(tmp_path)
    left = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()}
    assert left == set(keep)


def test_sizes_are_counted_in_whole_kilobytes(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/file").write_bytes(bytes(1025))
    (tmp_path / "link").symlink_to("folder/file")
    assert installed_kilobytes(tmp_path) == 1 + 2 + 1


def test_what_is_compiled_for_a_package_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    preload.compile_all(tmp_path)
    made = {path.name.rpartition("-")[0] for path in tmp_path.iterdir()}
    assert made == {path.stem for path in preload._FOLDER.glob("*.c")}
    monkeypatch.setattr(preload, "_PACKAGED", tmp_path)
    monkeypatch.setenv("PATH", "")  # no compiler
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "none"))
    assert preload.compiled("xsave_shim", "a test").parent == tmp_path
    assert preload.compiled_program("nbd_root", "a test").parent == tmp_path


@pytest.mark.interop
def test_the_sdist_can_build_all_packages(tmp_path: Path) -> None:
    python = P2PCLOOP.with_name("python")
    run(python, "-m", "hatchling", "build", "-t", "sdist", "-d", tmp_path)
    [archive] = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"tools/build-deb", "package/debian/postinst", "tests/conftest.py"} <= names
    assert canonicalize_name(archive.name.rpartition("-")[0]) == "p2pcloop"
    assert not any(name.startswith(("build/", ".venv/")) for name in names)
