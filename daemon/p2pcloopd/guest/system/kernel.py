"""The programs and files of this system that a guest is made of: kernel, modules, busybox."""

from __future__ import annotations

import gzip
import lzma
import os
import re
import struct
import subprocess
from collections.abc import Iterable
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import platformdirs
import zstandard

from p2pcloop.errors import NeedsPackageError, NotHereError
from p2pcloop.frozen import dataclass
from p2pcloop.words import tr
from p2pcloopd.programs import find_program

_MODULE_SUFFIX = re.compile(r"\.ko(\.gz|\.xz|\.zst)?$")
_PROGRAM_TIMEOUT = 20.0
_KERNEL_HINT = tr(
    "give another kernel (`--kernel system` is this system's), or apt-get install user-mode-linux"
)

SYSTEM_KERNEL = Path("system")
"""Stands for this system's own kernel where a kernel's path is asked for: Debian's `linux.uml`, or
for QEMU that of /boot."""

Kind = Literal["uml", "pc"]


@dataclass(frozen=True, slots=True)
class Kernel:
    """A kernel and where its modules lie.

    Attributes:
        path: absolute; of a UML kernel the program.
        release: what it calls itself, `6.1.176`.
        modules: the directory that holds its modules.dep, or None where it has none.
        options: what its configuration says `y` to, without `CONFIG_`.
        kind: what it runs on: as a program (UML), or on a PC (QEMU).
    """

    path: Path
    release: str
    modules: Path | None
    options: frozenset[str] = frozenset()
    kind: Kind = "uml"

    @property
    def version(self) -> tuple[int, int]:
        """Major and minor number, for comparing."""
        major, minor = self.release.split(".")[:2]
        return int(major), int(re.match(r"\d+", minor)[0])  # type: ignore[index]  # _RELEASE


_RELEASE = re.compile(r"\d+\.\d+\S*")

_ELF64 = b"\x7fELF\x02"
_ELF_HEADER = struct.Struct("<32xQ14xHH")
"""Offset, size of an entry, and number of entries of the program header table."""

_PROGRAM_HEADER = struct.Struct("<I4xQ16xQ")
"""Type, offset and size of a segment."""

_PT_INTERP = 3
_MAX_PATH = 4096


def find_busybox() -> Path:
    """Return a busybox that runs without any library.

    Raises:
        NeedsPackageError: there is none, or it is linked dynamically.
    """
    path = find_program("busybox", "busybox-static")
    if find_interpreter(path) is not None:
        raise NeedsPackageError(
            tr(
                "{path} needs shared libraries, which a guest's first root does not have", path=path
            ),
            hint="apt-get install busybox-static",
        )
    return path


def find_interpreter(program: Path) -> Path | None:
    """Return the dynamic linker that starts a program, by its ELF header (elf(5)).

    None where it needs none, or is no 64-bit ELF file.
    """
    try:
        with program.open("rb") as file:
            header = file.read(_ELF_HEADER.size)
            if len(header) < _ELF_HEADER.size or header[:5] != _ELF64:
                return None
            offset, size, count = _ELF_HEADER.unpack(header)
            file.seek(offset)
            table = file.read(size * count)
            for start in range(0, len(table) - _PROGRAM_HEADER.size + 1, max(size, 1)):
                kind, offset, length = _PROGRAM_HEADER.unpack_from(table, start)
                if kind == _PT_INTERP:
                    file.seek(offset)
                    return Path(os.fsdecode(file.read(min(length, _MAX_PATH)).rstrip(b"\0")))
    except (OSError, OverflowError):
        pass
    return None


@cache
def shared_libraries(program: Path) -> tuple[Path, ...]:
    """Return the absolute paths that the dynamic linker opens for `program`, itself included;
    empty for a static one. They are asked for once: a command needs them again and again."""
    interpreter = find_interpreter(program)
    # ldd(1) is a shell script that asks the linker, too; a shared object names none.
    asked: list[str | Path] = ["ldd"] if interpreter is None else [interpreter, "--list"]
    try:
        done = subprocess.run(
            [*asked, program],
            capture_output=True,
            text=True,
            timeout=_PROGRAM_TIMEOUT,
            check=False,
        )
    except FileNotFoundError:
        return ()
    if done.returncode != 0:
        return ()
    paths = re.findall(r"(?:=> |^\s+)(/\S+)(?= \(0x)", done.stdout, re.MULTILINE)
    # `interpreter => other` (a kernel with an interpreter of its own) names two files.
    paths += re.findall(r"^\s+(/\S+) =>", done.stdout, re.MULTILINE)
    return tuple(sorted({Path(path) for path in paths}))


def unpacked_kernel() -> Path:
    """Where `tools/get-uml-kernel` puts the newer kernel that it unpacks for this user."""
    return platformdirs.user_data_path("p2pcloop", appauthor=False) / "uml/linux.uml"


def _default_kernel() -> Path:
    if chosen := os.environ.get("P2PCLOOP_KERNEL"):
        return Path(chosen)
    unpacked = unpacked_kernel()
    return unpacked.resolve() if unpacked.exists() else SYSTEM_KERNEL


def find_kernel(path: Path | None = None) -> Kernel:
    """Ask a UML kernel for its version and its configuration, and find its modules.

    Args:
        path: the kernel, or SYSTEM_KERNEL; None for the one that P2PCLOOP_KERNEL in the environment
            names, else the unpacked one, else the system's.

    Raises:
        NotHereError: there is no such file as `path`.
        NeedsPackageError: it is not installed, or does not answer as a UML kernel does.
    """
    path = path or _default_kernel()
    if path == SYSTEM_KERNEL:
        path = find_program("linux.uml", "user-mode-linux")
    path = path.absolute()
    try:
        done = _ask(path, "--version")
    except (OSError, subprocess.TimeoutExpired) as err:
        if not path.exists():
            raise NotHereError(
                tr("there is no kernel {path}", path=path), hint=_KERNEL_HINT
            ) from err
        why = os.strerror(err.errno or 0) if isinstance(err, OSError) else tr("it does not answer")
        raise NeedsPackageError(
            tr("the kernel {path} cannot be run: {why}", path=path, why=why), hint=_KERNEL_HINT
        ) from err
    release = done.stdout.strip()
    if done.returncode != 0 or not _RELEASE.fullmatch(release):
        raise NeedsPackageError(
            tr("{path} is not a User-Mode Linux kernel: it does not tell a version", path=path),
            hint=_KERNEL_HINT,
        )
    return Kernel(path, release, _find_modules(path, release), _options(path))


def _ask(kernel: Path, question: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [kernel, question],
        capture_output=True, text=True, timeout=_PROGRAM_TIMEOUT, check=False,
    )  # fmt: skip


def _options(kernel: Path) -> frozenset[str]:
    told = _ask(kernel, "--showconfig").stdout
    return frozenset(re.findall(r"^CONFIG_(\w+)=y$", told, re.MULTILINE))


def _find_modules(kernel: Path, release: str) -> Path | None:
    own_tree = kernel.resolve().parent.parent
    for root in (own_tree / "lib/uml/modules", Path("/usr/lib/uml/modules"), Path("/lib/modules")):
        if (root / release / "modules.dep").is_file():
            return root / release
    return None


def load_modules(kernel: Kernel, wanted: Iterable[str]) -> list[tuple[str, bytes]]:
    """Return name and ELF image of every module that `wanted` need, in the order of insertion;
    what is built into the kernel is left out. `-` and `_` in names are the same.

    Raises:
        NeedsPackageError: a module is neither built in nor there as a file.
    """
    if kernel.modules is None:
        missing = [name for name in wanted if not _is_built_in(kernel, name)]
        if missing:
            raise _no_module(kernel, missing[0])
        return []
    tree = _read_tree(kernel.modules)
    ordered: list[str] = []
    for name in wanted:
        if name.replace("-", "_") in tree.built_in:
            continue
        if name.replace("-", "_") not in tree.dependencies:
            raise _no_module(kernel, name)
        ordered += [file for file in tree.needed_by(name) if file not in ordered]
    return [(_module_name(file), _read_module(kernel, file)) for file in ordered]


def has_module(kernel: Kernel, name: str) -> bool:
    """Whether the kernel has a module, as a file or built in."""
    try:
        load_modules(kernel, [name])
    except NeedsPackageError:
        return False
    return True


def _no_module(kernel: Kernel, name: str) -> NeedsPackageError:
    where = kernel.modules or tr("any known directory")
    if kernel.kind == "pc":
        return NeedsPackageError(
            tr(
                "the kernel {path} ({release}) lacks the module {name} in {where}",
                path=kernel.path,
                release=kernel.release,
                name=name,
                where=where,
            ),
            hint="`tools/get-stock-kernel` unpacks a kernel of Debian's, which has it",
        )
    return NeedsPackageError(
        tr(
            "the kernel {path} ({release}) lacks the module {name} in {where}",
            path=kernel.path,
            release=kernel.release,
            name=name,
            where=where,
        ),
        hint=tr(
            "apt-get install user-mode-linux, or put the kernel's modules into"
            " lib/uml/modules/{release} beside its bin directory",
            release=kernel.release,
        ),
    )


def _is_built_in(kernel: Kernel, module: str) -> bool:
    """Whether the kernel's own configuration says so (module names follow the options')."""
    return module.upper().replace("-", "_") in kernel.options


@dataclass(frozen=True, slots=True)
class _Tree:
    """What depmod(8) has found out of a directory of modules.

    Attributes:
        built_in: names of those that are part of the kernel.
        dependencies: name → its file and those it needs, as `_read_modules_dep` returns them.
        before: name → names of those that are to be inserted before it, although it has no symbol
            of theirs (`softdep ... pre:`, modprobe.d(5)).
    """

    built_in: frozenset[str]
    dependencies: dict[str, list[str]]
    before: dict[str, list[str]]

    def needed_by(self, name: str) -> list[str]:
        """The files of a module and of those that it needs, in the order of insertion."""
        files: list[str] = []
        self._add(name.replace("-", "_"), files, set())
        return files

    def _add(self, name: str, files: list[str], seen: set[str]) -> None:
        if name in seen:
            return
        seen.add(name)
        for other in self.before.get(name, ()):
            if other in self.dependencies:
                self._add(other, files, seen)
        first, *needed = self.dependencies[name]
        # modules.dep lists what to insert last first.
        for file in reversed(needed):
            if _module_name(file) in self.dependencies:
                self._add(_module_name(file), files, seen)
            elif file not in files:
                files.append(file)
        files.append(first)


@lru_cache(maxsize=4)
def _read_tree(modules: Path) -> _Tree:
    """Read a directory of modules, once: a first root asks for many of them."""
    aliases = {
        words[1]: words[2].replace("-", "_")
        for words in map(str.split, _lines(modules / "modules.alias"))
        if len(words) == 3 and "*" not in words[1]
    }
    before: dict[str, list[str]] = {}
    for line in _lines(modules / "modules.softdep"):
        found = re.fullmatch(r"softdep (\S+) pre: (.*?)( post:.*)?", line)
        if found:
            names = [aliases.get(name, name).replace("-", "_") for name in found[2].split()]
            before.setdefault(found[1].replace("-", "_"), []).extend(names)
    return _Tree(
        frozenset(_module_name(line) for line in _lines(modules / "modules.builtin")),
        _read_modules_dep(modules / "modules.dep"),
        before,
    )


def _read_modules_dep(path: Path) -> dict[str, list[str]]:
    """Map a module's name to its file and those it needs, as paths under the directory."""
    modules = {}
    for line in _lines(path):
        file, _, needed = line.partition(":")
        modules[_module_name(file)] = [file, *needed.split()]
    return modules


def _lines(path: Path) -> list[str]:
    return path.read_text().splitlines() if path.exists() else []


def _module_name(file: str) -> str:
    return _MODULE_SUFFIX.sub("", file.rpartition("/")[2]).replace("-", "_")


def _read_module(kernel: Kernel, file: str) -> bytes:
    assert kernel.modules is not None
    try:
        data = (kernel.modules / file).read_bytes()
    except OSError as err:
        raise _no_module(kernel, _module_name(file)) from err
    match Path(file).suffix:
        case ".xz":
            return lzma.decompress(data)
        case ".gz":
            return gzip.decompress(data)
        case ".zst":
            return zstandard.ZstdDecompressor().decompressobj().decompress(data)
        case _:
            return data
