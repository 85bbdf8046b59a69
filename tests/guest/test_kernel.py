"""Finding kernel, modules and programs, and saying what is missing."""

from __future__ import annotations

import lzma
import subprocess
import sys
from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

import pytest

from p2pcloop.errors import NeedsPackageError, NotHereError
from p2pcloopd import programs
from p2pcloopd.guest.machine import uml_kernel
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.spec import GuestSpec
from p2pcloopd.guest.system import kernel, xsave
from p2pcloopd.guest.system.kernel import Kernel
from p2pcloopd.guest.system.kernel_words import OMISSIONS, kernel_words


def make_kernel(tmp_path: Path, *, version: str = "6.1.0", built_in: str = "") -> Path:
    """A program that answers as a UML kernel does, with modules beside it."""
    program = tmp_path / "bin/linux"
    program.parent.mkdir()
    program.write_text(
        "#!/bin/sh\n"
        f"case $1 in --version) echo {version};; --showconfig) echo '{built_in}';; esac\n"
    )
    program.chmod(0o755)
    return program


def add_modules(tmp_path: Path, dep: str, files: dict[str, bytes], built_in: str = "") -> None:
    modules = tmp_path / "lib/uml/modules/6.1.0"
    modules.mkdir(parents=True)
    (modules / "modules.dep").write_text(dep)
    (modules / "modules.builtin").write_text(built_in)
    for name, data in files.items():
        (modules / name).write_bytes(data)


def test_modules_come_in_the_order_of_insertion(tmp_path: Path) -> None:
    program = make_kernel(tmp_path)
    add_modules(
        tmp_path,
        "virtio_blk.ko.xz: mid-dle.ko base.ko\nmid-dle.ko: base.ko\nbase.ko:\nother.ko: base.ko\n",
        {"virtio_blk.ko.xz": lzma.compress(b"V"), "mid-dle.ko": b"M", "base.ko": b"B"},
        "kernel/fs/ext4/ext4.ko\n",
    )
    found = kernel.find_kernel(program)
    assert found.release == "6.1.0"
    assert kernel.load_modules(found, ["ext4", "virtio_blk", "base"]) == [
        ("base", b"B"),
        ("mid_dle", b"M"),
        ("virtio_blk", b"V"),
    ]


def test_what_a_module_needs_without_a_symbol_comes_before_it(tmp_path: Path) -> None:
    """As ext4 needs an implementation of crc32c, by the name of an alias (modprobe.d(5))."""
    program = make_kernel(tmp_path)
    add_modules(
        tmp_path,
        "ext4.ko: jbd2.ko\njbd2.ko:\ncrc32c_generic.ko:\nr8169.ko:\n",
        {f"{name}.ko": name.encode() for name in ("ext4", "jbd2", "crc32c_generic", "r8169")},
    )
    modules = tmp_path / "lib/uml/modules/6.1.0"
    (modules / "modules.alias").write_text("alias crc32c crc32c_generic\nalias pci:v* other\n")
    (modules / "modules.softdep").write_text(
        "softdep jbd2 pre: crc32c post: later\nsoftdep crc32c_generic pre: jbd2\n"
        "softdep r8169 pre: realtek\n"
    )
    found = kernel.find_kernel(program)
    names = [name for name, _ in kernel.load_modules(found, ["ext4", "r8169"])]
    assert names == ["crc32c_generic", "jbd2", "ext4", "r8169"]


def test_module_that_is_not_there(tmp_path: Path) -> None:
    program = make_kernel(tmp_path)
    add_modules(tmp_path, "virtio_blk.ko:\n", {})
    found = kernel.find_kernel(program)
    for name in ("virtio_blk", "unheard_of"):
        with pytest.raises(NeedsPackageError, match=name) as caught:
            kernel.load_modules(found, [name])
        assert "user-mode-linux" in str(caught.value.hint)


def test_kernel_without_modules(tmp_path: Path) -> None:
    found = kernel.find_kernel(
        make_kernel(tmp_path, version="9.9.9-none", built_in="CONFIG_VIRTIO_BLK=y")
    )
    assert found.modules is None
    assert kernel.load_modules(found, ["virtio_blk"]) == []
    with pytest.raises(NeedsPackageError, match="overlay"):
        kernel.load_modules(found, ["virtio_blk", "overlay"])


@pytest.mark.parametrize("path", ["/bin/true", "/etc/passwd"])
def test_not_a_kernel(path: str) -> None:
    with pytest.raises(NeedsPackageError, match="kernel") as caught:
        kernel.find_kernel(Path(path))
    assert "user-mode-linux" in str(caught.value.hint)


@pytest.fixture
def unpacked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A kernel where tools/get-uml-kernel puts it."""
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path))
    monkeypatch.delenv("P2PCLOOP_KERNEL")
    link = kernel.unpacked_kernel()
    link.parent.mkdir(parents=True)
    link.symlink_to(make_kernel(tmp_path, version="7.2.0"))
    return link


def test_unpacked_kernel_is_taken_before_the_systems(unpacked: Path) -> None:
    assert kernel.find_kernel().path == unpacked.resolve()
    system = kernel.find_kernel(kernel.SYSTEM_KERNEL)
    assert system.path.name == "linux.uml"
    unpacked.resolve().unlink()
    assert kernel.find_kernel() == system


def test_kernel_that_the_environment_names(
    unpacked: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("P2PCLOOP_KERNEL", "system")
    assert kernel.find_kernel() == kernel.find_kernel(kernel.SYSTEM_KERNEL)
    assert kernel.find_kernel(unpacked).path == unpacked, "what is asked for comes first"
    monkeypatch.setenv("P2PCLOOP_KERNEL", str(tmp_path / "none"))
    with pytest.raises(NotHereError, match="none"):
        kernel.find_kernel()


@pytest.mark.parametrize(
    ("release", "words"),
    [("6.1.176", ()), ("6.15.99", ()), ("6.16-rc1", ("seccomp=auto",)), ("7.2", ("seccomp=auto",))],
)
def test_seccomp_is_asked_for_where_the_kernel_has_it(release: str, words: tuple[str]) -> None:
    assert tuple(kernel_words(Kernel(Path("/k"), release, None))) == words


def test_users_parameters_come_last(tmp_path: Path) -> None:
    """Of a parameter that is given twice UML takes the last."""
    newer = kernel.find_kernel(
        make_kernel(tmp_path, version="7.2.0", built_in="CONFIG_VIRTIO_BLK=y")
    )
    (tmp_path / "disk").touch()
    spec = GuestSpec(tmp_path / "disk", append="seccomp=off")
    with ExitStack() as stack:
        boxed, _ = uml_kernel.sandboxed_kernel(spec, newer, [], stack)
    words = boxed.arguments
    assert [word for word in words if "seccomp" in word] == ["seccomp=auto", "seccomp=off"]


PTYS = "pty.legacy_count=0"
SERIAL = "initcall_blacklist=ssl_init"
RAID = "initcall_blacklist=raid6_init,raid6_select_algo"
MD = "module_blacklist=raid456"
ALL = frozenset().union(*(one.options for one in OMISSIONS))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (ALL, f"{PTYS} {SERIAL} {RAID} {MD}"),
        ({"LEGACY_PTYS"}, PTYS),
        ({"SSL"}, SERIAL),
        ({"RAID6_PQ", "RAID6_PQ_BENCHMARK"}, f"{RAID} {MD}"),
        ({"RAID6_PQ"}, ""),
        ((), ""),
    ],
)
def test_what_a_guest_does_not_use_is_left_out_where_the_kernel_has_it(
    tmp_path: Path, options: Iterable[str], words: str
) -> None:
    """`RAID6_PQ` alone is a kernel that measures nothing."""
    lines = "\n".join(f"CONFIG_{option}=y" for option in options)
    found = kernel.find_kernel(make_kernel(tmp_path, built_in=f"{lines}\nCONFIG_LEGACY_PTYS=m"))
    assert found.options == frozenset(options)
    assert kernel_words(found) == words.split()


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("p2pcloop.raid6", f"{PTYS} {SERIAL} p2pcloop.raid6"),
        ("p2pcloop.legacy_ptys quiet", f"{SERIAL} {RAID} {MD} p2pcloop.legacy_ptys quiet"),
        ("p2pcloop.serial_lines", f"{PTYS} {RAID} {MD} p2pcloop.serial_lines"),
        (
            "module_blacklist=a module_blacklist=b,c quiet",
            f"{PTYS} {SERIAL} {RAID} {MD},b,c quiet",
        ),
        (
            "p2pcloop.raid6 module_blacklist=a",
            f"{PTYS} {SERIAL} p2pcloop.raid6 module_blacklist=a",
        ),
        (
            "ro -- p2pcloop.raid6 module_blacklist=a",
            f"{PTYS} {SERIAL} {RAID} {MD} ro -- p2pcloop.raid6 module_blacklist=a",
        ),
    ],
)
def test_a_word_gives_back_what_is_left_out(given: str, words: str) -> None:
    """What stands behind `--` is for init."""
    has_all = Kernel(Path("/k"), "6.1.176", None, ALL)
    assert kernel_words(has_all, given.split()) == words.split()


def test_library_that_glibc_opens_late_is_among_a_programs_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    libraries = [tmp_path / "libc.so.6", tmp_path / "ld.so"]
    monkeypatch.setattr(sandbox, "shared_libraries", lambda _: libraries)
    program, unwinder = tmp_path / "program", tmp_path / "libgcc_s.so.1"
    assert set(sandbox.program_files(program)) == {program, *libraries}
    unwinder.touch()
    assert set(sandbox.program_files(program)) == {program, *libraries, unwinder}


def test_no_kernel_of_that_name() -> None:
    with pytest.raises(NotHereError) as caught:
        kernel.find_kernel(Path("/nonexistent/linux"))
    assert str(caught.value) == "there is no kernel /nonexistent/linux"


@pytest.mark.parametrize(
    ("program", "package"),
    [
        ("linux.uml", "user-mode-linux"),
        ("bwrap", "bubblewrap"),
        ("libslirp-helper", "libslirp-helper"),
    ],
)
def test_missing_program_names_its_package(
    program: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NeedsPackageError, match=program) as caught:
        programs.find_program(program, package)
    assert package in str(caught.value.hint)


def test_dynamic_busybox_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "busybox").symlink_to(programs.find_program("ls", "coreutils"))
    (tmp_path / "ldd").symlink_to(programs.find_program("ldd", "libc-bin"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    with pytest.raises(NeedsPackageError, match="shared libraries") as caught:
        kernel.find_busybox()
    assert "busybox-static" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("release", "flags", "needed"),
    [
        ("6.1.176", "fpu avx512f amx_bf16 amx_tile", True),
        ("6.12.99", "amx_tile fpu", True),
        ("6.13.0", "fpu amx_tile", False),
        ("7.2-rc1", "fpu amx_tile", False),
        ("6.1.176", "fpu avx512f", False),
    ],
)
def test_shim_is_needed_by_cpu_and_kernel(
    release: str, flags: str, needed: bool, tmp_path: Path
) -> None:
    cpuinfo = tmp_path / "cpuinfo"
    cpuinfo.write_text(f"processor\t: 0\nmodel name\t: amx_tile\nflags\t\t: {flags}\nbugs\t:\n")
    assert xsave.is_needed(Kernel(Path("/k"), release, None), cpuinfo) is needed


@pytest.mark.interop
def test_shim_is_compiled_once(tmp_path: Path) -> None:
    shim = xsave.compiled_shim(tmp_path)
    before = shim.stat()
    assert xsave.compiled_shim(tmp_path) == shim
    assert shim.stat() == before
    assert list(tmp_path.iterdir()) == [shim]


def test_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NeedsPackageError, match="compiler") as caught:
        xsave.compiled_shim(tmp_path / "cache")
    assert "gcc libc6-dev" in str(caught.value.hint)


def test_programs_with_a_dynamic_linker_are_told_by_their_elf_header(tmp_path: Path) -> None:
    linker = kernel.find_interpreter(Path(sys.executable).resolve())
    assert linker is not None
    assert linker.name.startswith("ld-linux")
    assert linker.exists()
    assert kernel.find_interpreter(kernel.find_busybox()) is None
    for content in (b"", b"#!/bin/sh\n", b"\x7fELF\x02", b"\x7fELF\x02" + bytes(59)):
        (tmp_path / "other").write_bytes(content)
        assert kernel.find_interpreter(tmp_path / "other") is None
    assert kernel.find_interpreter(tmp_path / "none") is None


def test_libraries_are_those_that_ldd_lists() -> None:
    program = Path(sys.executable).resolve()
    listed = subprocess.run(["ldd", program], capture_output=True, text=True, check=True).stdout
    for path in kernel.shared_libraries(program):
        assert str(path) in listed
    assert len(kernel.shared_libraries(program)) == listed.count(" (0x") - listed.count("vdso")
