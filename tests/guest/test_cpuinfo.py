"""The first root mends the list of processors of a kernel that leaves out what procps wants."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from p2pcloopd.guest.system import scripts
from p2pcloopd.guest.system.kernel import find_busybox

UML = """\
processor\t: 0
vendor_id\t: User Mode Linux
flags\t\t: fpu processor: core id
bogomips\t: 4023.10
"""
WITH_CORE = UML.replace("vendor_id", "core id\t: 0\nvendor_id", 1) + "\n"


def mended(tmp_path: Path, cpuinfo: str) -> str | None:
    """What the step mounts over this list, by busybox; None for nothing."""
    original, copy = tmp_path / "original", tmp_path / "copy"
    original.write_text(cpuinfo)
    script = (
        'fail() { echo "$*" >&2; exit 7; }\n'
        'mount() { echo "mount $*"; cat "$2" >/copy; ls -l "$2" | cut -c 1-10; }\n'
    )
    copy.write_text("")
    box = [*("bwrap", "--unshare-all", "--die-with-parent", "--clearenv", "--setenv", "PATH", "/")]
    for applet in ("cat", "cut", "grep", "ls", "sed", "sh"):
        box += ["--ro-bind", str(find_busybox()), f"/{applet}"]
    box += ["--ro-bind", str(original), "/proc/cpuinfo", "--bind", str(copy), "/copy"]
    done = subprocess.run(
        [*box, "/sh", "-fc", script + scripts.script("cpuinfo")],
        capture_output=True, text=True, timeout=120, check=True,
    )  # fmt: skip
    assert done.stderr == ""
    if not done.stdout:
        return None
    assert done.stdout == "mount --bind /cpuinfo /proc/cpuinfo\n-r--r--r--\n"
    return copy.read_text()


def test_uml_gets_a_core_and_an_empty_line(tmp_path: Path) -> None:
    assert mended(tmp_path, UML) == WITH_CORE


def test_each_processor_has_its_core(tmp_path: Path) -> None:
    two = f"{UML}\n{UML.replace(': 0', ': 1')}\n"
    assert mended(tmp_path, two) == f"{WITH_CORE}{WITH_CORE.replace(': 0', ': 1')}"


@pytest.mark.parametrize("end", ["", "\n"])
def test_a_list_that_has_cores_stays(tmp_path: Path, end: str) -> None:
    assert mended(tmp_path, WITH_CORE + end) is None
