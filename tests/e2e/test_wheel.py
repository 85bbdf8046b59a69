"""The wheel: built, installed elsewhere, and used from an empty directory."""

from __future__ import annotations

import os
import site
import sys
from pathlib import Path

import pytest

from tests.support.programs import Done, started
from tests.support.waiting import BOUND

pytestmark = pytest.mark.interop

CHECKOUT = Path(__file__).resolve().parents[2]
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet")

IMPORT_ALL = """
import pkgutil, sys
from importlib import import_module, resources
import p2pcloop, p2pcloopd
modules = [
    import_module(found.name)
    for package in (p2pcloop, p2pcloopd)
    for found in pkgutil.walk_packages(package.__path__, package.__name__ + ".")
    if not found.name.endswith("__main__")
]
for module in modules:
    assert module.__file__.startswith(sys.prefix), module
for name, word in (("xsave_shim", "PTRACE_SETREGSET"), ("slirp_ports", "slirp_new")):
    assert word in resources.files("p2pcloopd.guest").joinpath("resources", f"{name}.c").read_text()
assert p2pcloopd.guest.system.scripts.script("init").startswith("#!/bin/sh")
print(*(module.__name__ for module in modules))
"""


def run(*words: str | Path, directory: Path) -> Done:
    """Run a program in a directory, with this environment's packages but not ours."""
    environment = os.environ | {"PYTHONPATH": site.getsitepackages()[0], "P2PCLOOP_HOME": "none"}
    with started(words, cwd=directory, env=environment) as process:
        out, err = process.communicate(timeout=BOUND)
    assert process.returncode == 0, (words, out, err)
    return Done(out, err)


def test_wheel(tmp_path: Path) -> None:
    empty, venv = tmp_path / "empty", tmp_path / "venv"
    empty.mkdir()
    build = ("wheel", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path)
    run(*PIP, *build, CHECKOUT, directory=tmp_path)
    [wheel] = tmp_path.glob("*.whl")
    run(sys.executable, "-m", "venv", "--without-pip", venv, directory=tmp_path)
    python = venv / "bin/python"
    install = ("--python", python, "install", "--no-index", "--no-deps", "--force-reinstall")
    run(*PIP, *install, wheel, directory=tmp_path)

    assert "boot" in run(venv / "bin/p2pcloop", "--help", directory=empty).out
    assert "p2pcloopd" in run(venv / "bin/p2pcloopd", "--help", directory=empty).out
    assert "0.1" in run(venv / "bin/p2pcloop", "--version", directory=empty).out
    imported = set(run(python, "-c", IMPORT_ALL, directory=empty).out.split())
    sources = [
        path.relative_to(root).with_suffix("")
        for root, package in ((CHECKOUT, "p2pcloop"), (CHECKOUT / "daemon", "p2pcloopd"))
        for path in (root / package).rglob("*.py")
    ]
    names = {".".join(source.parts).removesuffix(".__init__") for source in sources}
    names = {name for name in names if "." in name and not name.endswith("__main__")}
    assert imported == names
    assert list(empty.iterdir()) == []
