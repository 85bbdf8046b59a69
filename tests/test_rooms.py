"""The arrows between the rooms, and the sizes of modules and functions.

p2pcloop: words, errors, units ← formats ← store, protocol ← image ← making, picture ← client ← cli.
An arrow points to what is known: formats know neither store nor protocol; image reads the store's
have file, since that says what of a layer is here; store keeps manifests and links, and knows no
image. The block protocols speak to a device (image/api.py). client is what a program can do with a
node, cli is commands, their options and their output. p2pcloopd knows p2pcloop, never the other way
round; of the daemon only the commands, and the program p2pcloopd itself, know cli.
"""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LIBRARY = ROOT / "p2pcloop"
DAEMON = ROOT / "daemon" / "p2pcloopd"
MODULES = sorted(LIBRARY.rglob("*.py")) + sorted(DAEMON.rglob("*.py"))

BELOW = {
    "formats": {
        "errors",
        "frozen",
        "text",
        "units",
        "words",
        "shared_library",
        "formats",
        "parallel",
    },
    "store": {"errors", "frozen", "text", "units", "words", "formats", "store"},
    "protocol": {"errors", "frozen", "text", "units", "words", "formats", "protocol", "image.api"},
    "image": {
        "errors",
        "frozen",
        "text",
        "units",
        "words",
        "formats",
        "parallel",
        "store",
        "image",
    },
    "making": {
        "errors",
        "frozen",
        "text",
        "units",
        "words",
        "formats",
        "parallel",
        "store",
        "image",
        "making",
    },
    "picture": {
        "errors",
        "frozen",
        "text",
        "units",
        "words",
        "formats",
        "store",
        "image",
        "picture",
    },
    "client": {
        *(
            "__version__",
            "errors",
            "frozen",
            "text",
            "units",
            "words",
            "cells",
            "formats",
            "store",
            "protocol",
        ),
        *("image", "making", "picture", "client"),
    },
}
"""What each room of the library may import of p2pcloop."""

BELOW_DAEMON = {
    "http": {"accepting", "http"},
    "names": {"names", "engine"},
    "engine": {"engine", "entry", "tasks"},
    "node": {
        *("node", "names", "http", "engine", "control_server", "entry", "tasks"),
        *("frame_sender", "log_output", "unix_listener", "resolver"),
    },
    "block": {
        "accepting",
        "block",
        "control_client",
        "entry",
        "fusermount",
        "programs",
        "unix_listener",
    },
    "guest": {
        *("guest", "block"),
        *("accepting", "control_client", "control_server", "entry", "frame_sender", "programs"),
        "unix_listener",
    },
    "netboot": {
        *("netboot", "block", "http", "guest.system", "guest.sandbox", "guest.network"),
        *("entry", "programs"),
    },
    "web": {"accepting", "web", "http", "control_client", "entry", "log_output", "tasks"},
    "mount": {"mount", "block", "control_client", "entry", "fusermount", "programs", "tasks"},
    "commands": {
        *("commands", "guest", "block", "mount", "netboot", "entry", "forked", "fusermount"),
        "programs",
    },
    "guest/system": {"guest.system", "entry", "programs"},
    "guest/sandbox": {"guest.sandbox", "guest.system", "entry", "programs"},
    "guest/network": {
        *("guest.network", "guest.sandbox", "guest.system"),
        *("accepting", "entry", "programs"),
    },
    "guest/display": {
        *("guest.display", "guest.network", "guest.sandbox", "guest.system"),
        *("accepting", "entry", "programs"),
    },
    "guest/channel": {
        *("guest.channel", "guest.console", "guest.ports", "guest.system", "block"),
        *("accepting", "control_client", "control_server", "entry"),
    },
    "guest/machine": {
        *(
            "guest.machine",
            "guest.result",
            "guest.spec",
            "guest.transcript",
            "guest.vm",
            "guest.ports",
        ),
        *("guest.console", "guest.network", "guest.display", "guest.sandbox", "guest.system"),
        *("entry", "programs"),
    },
    "guest/console": {"guest.console", "control_client", "entry"},
}
"""What each room of the daemon may import of p2pcloopd."""

KNOW_CLI = {
    DAEMON / "node" / "main.py",
    *(DAEMON / "commands").glob("*.py"),
    ROOT / "tools" / "man_pages.py",
    ROOT / "tools" / "package_tree.py",
    ROOT / "tools" / "reference_page.py",
}
"""What may import p2pcloop.cli besides itself: the commands of the daemon, the program p2pcloopd,
and the tools that make manual pages, the reference and completion of the commands."""

MAX_MODULE = 600  # one concept may take so many; slices of one concept are worse
MAX_FUNCTION = 40  # lines without the docstring


def name_of(path: Path) -> str:
    root = DAEMON.parent if path.is_relative_to(DAEMON) else ROOT
    return ".".join(path.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def imports_of(path: Path) -> Iterator[str]:
    """Every module that is imported anywhere in a file; from-imports by what they name."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            package = name_of(path.parent / "__init__.py")
            module = resolve_name("." * node.level + (node.module or ""), package)
            yield module
            yield from (f"{module}.{alias.name}" for alias in node.names)


def within(module: str, package: str) -> bool:
    return module == package or module.startswith(f"{package}.")


def test_there_is_something_to_look_at() -> None:
    assert len(MODULES) > 50
    assert name_of(LIBRARY / "image" / "__init__.py") == "p2pcloop.image"
    assert "p2pcloop.store.have" in set(imports_of(LIBRARY / "image" / "content.py"))


def test_importing_the_library_loads_no_event_loop_no_engine_and_no_sockets() -> None:
    rooms = [room for room in BELOW if room != "client"]
    modules = [name_of(path) for room in rooms for path in sorted((LIBRARY / room).rglob("*.py"))]
    code = (
        "import importlib, sys\n"
        f"for name in ['p2pcloop', 'p2pcloop.parallel', *{modules!r}]:\n"
        "    importlib.import_module(name)\n"
        "bad = {'trio', 'libtorrent', 'socket', '_socket', 'asyncio', 'rich', 'click'}\n"
        "print(*sorted(bad & set(sys.modules)))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == []


def test_the_boot_command_is_light_until_p2pcloopd_starts() -> None:
    """What runs guests, and reads files and manifests, is loaded while p2pcloopd starts."""
    code = (
        "import sys, p2pcloopd.commands.boot, p2pcloopd.commands.run\n"
        "print(*{'trio', 'libtorrent', 'cryptography', 'zstandard'} & set(sys.modules))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=True
    )
    assert done.stdout.split() == []


def test_the_session_modules_alone_import_libtorrent() -> None:
    found = {p for p in MODULES if any(within(m, "libtorrent") for m in imports_of(p))}
    assert found == set((DAEMON / "engine" / "bt").glob("session*.py"))


def test_the_library_never_imports_the_daemon_nor_trio() -> None:
    """The table of commands in cli/main.py names modules of p2pcloopd in strings."""
    for path in LIBRARY.rglob("*.py"):
        for module in imports_of(path):
            assert not within(module, "p2pcloopd"), path
            assert not within(module, "trio"), path


def test_one_module_of_the_library_imports_socket() -> None:
    found = [p.name for p in LIBRARY.rglob("*.py") if "socket" in set(imports_of(p))]
    assert found == ["control_client.py"]


@pytest.mark.parametrize(
    ("place", "below"),
    [(LIBRARY / room, below) for room, below in BELOW.items()]
    + [(DAEMON / room, below) for room, below in BELOW_DAEMON.items()],
    ids=lambda value: value.name if isinstance(value, Path) else "",
)
def test_rooms_know_only_what_lies_below(place: Path, below: set[str]) -> None:
    package = LIBRARY.name if place.is_relative_to(LIBRARY) else DAEMON.name
    allowed = [f"{package}.{room}" for room in below]
    for path in place.rglob("*.py"):
        for module in imports_of(path):
            if not within(module, package) or module.count(".") < 1:
                continue
            # `from p2pcloop.image import api` names p2pcloop.image first: judge what is named.
            if any(within(each, module) for each in allowed) and module not in allowed:
                continue
            assert any(within(module, each) for each in allowed), f"{path} imports {module}"


def test_two_modules_of_the_client_know_that_a_command_runs() -> None:
    found = {p.name for p in (LIBRARY / "client").rglob("*.py") if "click" in set(imports_of(p))}
    assert found == {"invocation.py", "terminal.py"}


def test_only_commands_import_the_cli() -> None:
    tools = [path for room in ("tools", "bench") for path in (ROOT / room).rglob("*.py")]
    for path in {*MODULES, *tools} - KNOW_CLI - set((LIBRARY / "cli").glob("*.py")):
        assert not any(within(module, "p2pcloop.cli") for module in imports_of(path)), path


def test_modules_are_short() -> None:
    lengths = {name_of(path): len(path.read_text().splitlines()) for path in MODULES}
    assert {name: n for name, n in lengths.items() if n > MAX_MODULE} == {}


def test_functions_are_short() -> None:
    others = [path for room in ("tools", "bench", "tests") for path in (ROOT / room).rglob("*.py")]
    lengths = {
        f"{name_of(path)}:{node.name}": _length(node)
        for path in (*MODULES, *others)
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }
    assert {name: n for name, n in lengths.items() if n > MAX_FUNCTION} == {}


def _length(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function, without its docstring."""
    lines = (function.end_lineno or 0) - function.lineno + 1
    if ast.get_docstring(function) is None:
        return lines
    docstring = function.body[0]
    return lines - ((docstring.end_lineno or 0) - docstring.lineno + 1)


def test_mocked_clocks_are_arguments() -> None:
    """pytest-trio ignores them in `usefixtures` (findings/pytest-trio-usefixtures.sh): the tests
    slept for real."""
    asked = [
        name_of(path)
        for path in (ROOT / "tests").rglob("*.py")
        if path != Path(__file__) and 'usefixtures("autojump_clock"' in path.read_text()
    ]
    assert asked == []
