"""Programs of this system in a first root, with the libraries that they need.

A first root has busybox, which does not know everything. A program that an unseen guest needs
besides runs there as it does here: its dynamic linker gets the folder of the libraries by name, so
nothing has to lie where the program would look for it.
"""

from __future__ import annotations

from pathlib import Path

from p2pcloop.errors import NeedsPackageError
from p2pcloop.words import tr
from p2pcloopd.guest.system.initramfs import Part
from p2pcloopd.guest.system.kernel import find_interpreter, shared_libraries
from p2pcloopd.programs import find_program


def host_program(name: str, package: str) -> Part:
    """What a first root needs to run a program of this system, as `host-NAME`.

    Args:
        name: of the program.
        package: of Debian, for the hint.

    Raises:
        NeedsPackageError: it is not installed, or cannot be read.
    """
    path = find_program(name, package)
    try:
        return Part(steps=(), files=tuple(_files(path, name)))
    except OSError as err:
        raise NeedsPackageError(
            tr("{path} cannot be read: {why}", path=err.filename, why=err.strerror),
            hint=tr("apt-get install {package}", package=package),
        ) from err


def _files(path: Path, name: str) -> list[tuple[str, bytes]]:
    linker = find_interpreter(path)
    if linker is None:
        return [(f"bin/host-{name}", path.read_bytes())]
    listed = [each for each in shared_libraries(path) if each.name != linker.name]
    # glibc opens it at the end of a thread, so it is not listed.
    listed += [each.with_name("libgcc_s.so.1") for each in listed if each.name == "libc.so.6"]
    libraries = {each.name: each for each in listed if each.exists()}
    start = f'#!/bin/sh\nexec /bin/{linker.name} --library-path /lib /bin/{name}.host "$@"\n'
    return [
        (f"bin/host-{name}", start.encode()),
        (f"bin/{name}.host", path.read_bytes()),
        (f"bin/{linker.name}", linker.read_bytes()),
        *((f"lib/{library}", place.read_bytes()) for library, place in libraries.items()),
    ]
