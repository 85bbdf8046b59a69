"""The sandbox from inside: a program that may run any code tries what a hostile guest would.

What it runs is Python with ctypes, natively, in place of a User-Mode Linux kernel whose guest got
out. All that it tries is harmless: files are opened for writing and closed, processes are counted.
"""

from __future__ import annotations

import dataclasses
import json
import os
import shutil
import socket
import stat
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import trio

from p2pcloop.errors import GuestError
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.sandbox import failure as sandbox_failure
from p2pcloopd.guest.sandbox import scope, staging, syscall_filter
from p2pcloopd.guest.system.kernel import find_busybox, shared_libraries
from p2pcloopd.programs import find_program
from tests.support.users import (
    AS_ANOTHER_USER,
    CHECKOUT,
    NOBODY_ELSE,
    can_be_another_user,
    needs_another_user,
)
from tests.support.waiting import BOUND

PYTHON = Path(sys.executable).resolve()
PROCESSES = 40
MEMORY = 256 << 20

HOSTILE = """
import ctypes, errno, json, mmap, os, resource, socket, sys, time
libc = ctypes.CDLL(None, use_errno=True)
stranger, listener, secret = json.loads(sys.argv[1])
found = {}

def tried(name, attempt):
    try:
        found[name] = attempt() or "done"
    except OSError as err:
        found[name] = errno.errorcode.get(err.errno, str(err))
    except Exception as err:
        found[name] = repr(err)

def call(number, *arguments):
    if libc.syscall(number, *arguments) < 0:
        raise OSError(ctypes.get_errno(), "refused")

def writable(top):
    names = [top] if not os.path.isdir(top) else [
        os.path.join(folder, name) for folder, _, files in os.walk(top) for name in files]
    opened = []
    for name in names:
        try:
            os.close(os.open(name, os.O_WRONLY))
            opened.append(name)
        except OSError:
            pass
    return opened

def files(folder):
    made = []
    try:
        for n in range(1000):
            made.append(f"{folder}/flood{n}")
            os.close(os.open(made[-1], os.O_CREAT | os.O_WRONLY))
    except OSError as err:
        assert err.errno == errno.ENOSPC, err
    finally:
        for name in made[:-1]:
            os.unlink(name)
    return len(made)

def fill(name):
    size = 0
    with open(name, "wb", 0) as file:
        try:
            while size < 64 << 20:
                size += file.write(bytes(1 << 16))
        except OSError:
            pass
    os.unlink(name)
    return size

def fork_many():
    children = []
    try:
        for _ in range(1000):
            child = os.fork()
            if not child:
                time.sleep(60)
                os._exit(0)
            children.append(child)
    except BlockingIOError:
        pass
    for child in children:
        os.kill(child, 9)
        os.waitpid(child, 0)
    return len(children)

def connect(address):
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(address)

x86_64 = dict(shmget=29, unshare=272, keyctl=250, memfd=319, mount=165, setns=308, bpf=321,
              io_uring=425, clone3=435, add_key=248, userfaultfd=323, ptrace=101)
found["ids"] = [os.getuid(), os.getgid(), os.getgroups()]
found["environment"] = sorted(os.environ)
found["descriptors"] = sorted(
    os.readlink(f"/proc/self/fd/{fd}").split(":")[0] for fd in os.listdir("/proc/self/fd")
    if int(fd) < 100 and os.path.exists(f"/proc/self/fd/{fd}"))
found["root"] = sorted(os.listdir("/"))
found["devices"] = sorted(os.listdir("/dev"))
found["processes"] = sorted(int(name) for name in os.listdir("/proc") if name.isdigit())
found["settings"] = writable("/proc/sys") + writable("/proc/sysrq-trigger") + writable("/proc/irq")
for name in ("cmdline", "keys", "interrupts"):
    tried(name, lambda: open(f"/proc/{name}").read())
found["own settings"] = writable("/proc/self/oom_score_adj") + writable("/proc/self/uid_map")
found["core"] = list(resource.getrlimit(resource.RLIMIT_CORE))
for place in ("/", "/dev", "/proc", "/run", "/dev/shm"):
    tried(f"file in {place}", lambda: os.close(os.open(f"{place}/new", os.O_CREAT | os.O_WRONLY)))
found["files"] = {place: files(place) for place in ("/run", "/dev/shm")}
found["bytes"] = {place: fill(f"{place}/fill") for place in ("/run", "/dev/shm")}
tried("secret", lambda: open(secret).read())
tried("stranger's socket", lambda: connect(listener))
tried("abstract socket", lambda: connect("\\0" + stranger["abstract"]))
tried("stranger's process", lambda: os.kill(stranger["pid"], 0))
tried("stranger's /proc", lambda: open(f"/proc/{stranger['pid']}/environ").read())
tried("ptrace", lambda: call(x86_64["ptrace"], 16, stranger["pid"], 0, 0))
tried("terminal", lambda: os.close(os.open("/dev/tty", os.O_RDWR)))
for family in ("AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK", "AF_ALG"):
    kind = socket.SOCK_RAW if family in ("AF_NETLINK", "AF_PACKET") else socket.SOCK_STREAM
    tried(family, lambda: socket.socket(getattr(socket, family), kind).close())
tried("session keyring", lambda: call(x86_64["keyctl"], 0, -3, 0))
tried("key", lambda: call(x86_64["add_key"], b"user", b"p2pcloop", b"x", 1, -5))
tried("memfd", lambda: call(x86_64["memfd"], b"m", 0))
tried("shared memory", lambda: call(x86_64["shmget"], 0, 4096, 0o1600))
tried("user namespace", lambda: call(x86_64["unshare"], 0x10000000))
tried("clone3", lambda: call(x86_64["clone3"], 0, 0))
tried("clone", lambda: call(56, 0x10000000 | 17, 0, 0, 0, 0))
tried("mount", lambda: call(x86_64["mount"], b"none", b"/run", b"tmpfs", 0, 0))
tried("bpf", lambda: call(x86_64["bpf"], 0, 0, 0))
tried("io_uring", lambda: call(x86_64["io_uring"], 1, 0))
tried("userfaultfd", lambda: call(x86_64["userfaultfd"], 1))
tried("memory", lambda: mmap.mmap(-1, 1 << 30).close())
found["forks"] = fork_many()
print(json.dumps(found))
"""


@pytest.fixture
def stranger() -> Iterator[dict[str, Any]]:
    """A process of the host with an abstract socket; the test can reach both."""
    name = f"p2pcloop-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(f"\0{name}")
        yield {"pid": os.getpid(), "abstract": name}


def python_files() -> dict[Path, Path]:
    """What a Python with ctypes needs."""
    program = PYTHON
    library = Path(sysconfig.get_path("stdlib"))
    parts = sandbox.program_files(program) | {library: library}
    for extension in library.glob("lib-dynload/*.so"):
        parts |= {path: path for path in shared_libraries(extension)}
    return parts


async def output_of(boxed: sandbox.Sandbox) -> bytes:
    with tempfile.TemporaryFile() as output, trio.fail_after(BOUND):
        async with sandbox.running(boxed, output=output.fileno()) as process:
            code = await process.wait()
        output.seek(0)
        said = output.read()
    assert code == 0, said.decode()
    return said


async def attack(secret: Path, stranger: dict[str, Any]) -> dict[str, Any]:
    listener = secret.with_name("control.sock")
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(listener))
        server.listen()
        words = [stranger, str(listener), str(secret)]
        boxed = sandbox.prepare(
            [str(PYTHON), "-IS", "-c", HOSTILE, json.dumps(words)],
            visible=python_files(),
            memory=MEMORY,
            processes=PROCESSES,
            tmpfs={"/run": 1 << 20, "/dev/shm": 8 << 20},
            environment={"HOME": "/"},
        )
        found: dict[str, Any] = json.loads(await output_of(boxed))
    return found


CLOSED = {
    "secret": "ENOENT",
    "stranger's socket": "ENOENT",
    "stranger's process": "ESRCH",
    "stranger's /proc": "ENOENT",
    "ptrace": "ESRCH",
    "abstract socket": "ECONNREFUSED",
    "terminal": "ENOENT",
    "file in /": "EROFS",
    "file in /dev": "EROFS",
    "file in /proc": "ENOENT",
    "AF_INET": "EAFNOSUPPORT",
    "AF_INET6": "EAFNOSUPPORT",
    "AF_NETLINK": "EAFNOSUPPORT",
    "AF_PACKET": "EAFNOSUPPORT",
    "AF_VSOCK": "EAFNOSUPPORT",
    "AF_ALG": "EAFNOSUPPORT",
    "session keyring": "EPERM",
    "key": "EPERM",
    "memfd": "EPERM",
    "shared memory": "EPERM",
    "user namespace": "EPERM",
    "clone": "EPERM",
    "clone3": "ENOSYS",
    "mount": "EPERM",
    "bpf": "EPERM",
    "io_uring": "EPERM",
    "userfaultfd": "EPERM",
    "memory": "ENOMEM",
}
"""What is refused, and how."""


async def test_nothing_is_within_reach(tmp_path: Path, stranger: dict[str, Any]) -> None:
    secret = tmp_path / "secret"
    secret.write_text("the host's secret")
    found = await attack(secret, stranger)
    assert {name: found[name] for name in CLOSED} == CLOSED
    assert found["settings"] == found["own settings"] == []
    hidden = [found[name] for name in ("cmdline", "keys", "interrupts")]
    assert set(hidden) <= {"EACCES", "ENOENT"}
    assert found["ids"] == [1000, 1000, []]
    assert set(found["environment"]) <= {"HOME", "PATH", "PWD", "SHLVL"}
    assert len(found["descriptors"]) == 3, "standard input, output and error"
    assert found["descriptors"][0] == "/dev/null"
    assert set(found["root"]) <= {"dev", "lib", "lib64", "proc", "run", "usr"}
    assert found["devices"] == ["full", "null", "random", "shm", "urandom", "zero"]
    assert found["processes"] == [1, 2]
    assert found["core"] == [1, 1]
    # What it may write to is small.
    assert found["file in /run"] == found["file in /dev/shm"] == "done"
    assert max(found["files"].values()) <= 64
    assert found["bytes"] == {"/run": 1 << 20, "/dev/shm": 8 << 20}
    assert 0 < found["forks"] < PROCESSES


@needs_another_user
def test_the_same_as_an_ordinary_user() -> None:
    with tempfile.TemporaryDirectory(prefix="p2pcloop-test-") as scratch:
        os.chown(scratch, NOBODY_ELSE, NOBODY_ELSE)
        words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__]
        done = subprocess.run(
            [*AS_ANOTHER_USER, *words, "-k", "within_reach or starts", f"--basetemp={scratch}/t"],
            cwd=CHECKOUT, env=os.environ | {"HOME": scratch, "TMPDIR": scratch},
            stdout=subprocess.PIPE, text=True, timeout=120, check=False,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout
    assert "passed" in done.stdout


def sleeper(**more: Any) -> sandbox.Sandbox:
    busybox = str(find_busybox())
    return sandbox.prepare(
        [busybox, "sleep", "600"], visible={}, memory=MEMORY, processes=9, **more
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root has other users to become")
async def test_root_is_not_who_runs_it() -> None:
    with trio.fail_after(BOUND):
        async with sandbox.running(sleeper()) as one, sandbox.running(sleeper()) as other:
            owners = owner_of(one), owner_of(other)
    assert owners[0] != owners[1], "nor who runs another guest"
    assert all(owner in range(61184, 65520) for owner in owners)


def owner_of(process: sandbox.SandboxedProcess) -> int:
    status = Path(f"/proc/{process.init_pid}/status").read_text().splitlines()
    (ids,) = {tuple(line.split()[1:]) for line in status if line.startswith(("Uid:", "Gid:"))}
    assert len(set(ids)) == 1, "real, effective, saved and for files"
    return int(ids[0])


@pytest.mark.skipif(os.geteuid() != 0, reason="others can hand in only what they can reach")
async def test_what_root_alone_can_reach_is_handed_in(tmp_path: Path) -> None:
    """A kernel in root's home, a library that only root can read, a socket, a directory."""
    home = tmp_path / "root"
    home.mkdir(mode=0o700)
    (home / "library").write_text("read")
    (home / "library").chmod(0o600)
    (home / "program").write_text("#!/bin/nothing")
    (home / "program").chmod(0o700)
    (home / "folder").mkdir(mode=0o755)
    (home / "folder/file").write_text("inside")
    for path, mode in ((home / "folder", 0o755), (home / "folder/file", 0o644)):
        path.chmod(mode)
    busybox = str(find_busybox())
    with socket.socket(socket.AF_UNIX) as listener:
        os.chdir(home)
        listener.bind("sock")
        script = "cat /library /folder/file; test -x /program && test -w /sock && echo reached"
        boxed = sandbox.prepare(
            [busybox, "sh", "-c", script],
            visible={Path("/", name): home / name for name in ("library", "program", "sock")}
            | {Path("/folder"): home / "folder"},
            memory=MEMORY,
            processes=9,
            environment={"PATH": str(Path(busybox).parent)},
        )
        assert await output_of(boxed) == b"readinsidereached\n"
    assert (home / "library").stat().st_mode & 0o777 == 0o600
    assert (home / "folder").stat().st_uid == 0


FAILING = """
import trio
from p2pcloop.errors import GuestError
from p2pcloopd.guest.sandbox import bubblewrap as sandbox
from p2pcloopd.guest.system.kernel import find_busybox

async def main():
    busybox = str(find_busybox())
    boxed = sandbox.prepare([busybox, "true"], visible={}, memory=1 << 28, processes=9)
    try:
        async with sandbox.running(boxed) as process:
            print("started", await process.wait())
    except GuestError as err:
        print(err, "|", err.hint)

trio.run(main)
"""


async def test_a_device_that_is_handed_in_can_be_opened(tmp_path: Path) -> None:
    """Also one that root alone may open: the sandbox runs as another user."""
    device = Path("/dev/zero")
    if os.geteuid() == 0:
        device = tmp_path / "zero"
        os.mknod(device, stat.S_IFCHR | 0o600, os.makedev(1, 5))
    busybox = find_busybox()
    boxed = sandbox.prepare(
        [str(busybox), "sh", "-c", f"head -c 3 {device} | od -An -tx1; ls /dev"],
        visible={busybox: busybox},
        memory=MEMORY,
        processes=PROCESSES,
        devices=[device],
    )
    zeros, *others = (await output_of(boxed)).split(b"\n")
    assert zeros.strip() == b"00 00 00"
    assert b"kvm" not in others


def why_it_does_not_start(*before: str) -> str:
    done = subprocess.run(
        [*before, sys.executable, "-c", FAILING],
        stdout=subprocess.PIPE, text=True, cwd=CHECKOUT, timeout=120, check=True,
    )  # fmt: skip
    return done.stdout


NO_NAMESPACES = 'echo 0 > /proc/sys/user/max_user_namespaces && exec "$@"'


def test_it_starts() -> None:
    assert why_it_does_not_start() == "started 0\n"


def test_it_starts_where_the_users_limits_are_lower() -> None:
    limits = ["--core=0", "--nofile=512", "--memlock=65536", "--sigpending=100"]
    other = AS_ANOTHER_USER if can_be_another_user() is None else ()
    assert why_it_does_not_start("prlimit", *limits, *other) == "started 0\n"


def test_it_starts_where_root_has_no_other_user_to_become() -> None:
    assert why_it_does_not_start("unshare", "-Ur") == "started 0\n"


def test_user_namespaces_that_may_not_be_made_are_named() -> None:
    """As in a container, or on a system whose administrator forbids them."""
    said = why_it_does_not_start("unshare", "-Ur", "sh", "-c", NO_NAMESPACES, "sh")
    assert "the sandbox round the guest does not start: unshare" in said
    assert "sysctl user.max_user_namespaces=" in said


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to take from")
def test_root_of_a_container_without_capabilities_is_told() -> None:
    said = why_it_does_not_start("setpriv", "--bounding-set=-sys_admin")
    assert "unshare failed: Operation not permitted" in said
    assert "--cap-add SYS_ADMIN" in said


@pytest.mark.parametrize(
    ("script", "said"),
    [
        ("echo bwrap: no room in here >&2; exit 1", "bwrap: no room in here"),
        ("printf 'one\\ntwo\\nthree\\nfour\\n' >&2; exit 1", "two; three; four"),
        ("exit 3", "it ended without a word"),
        ("kill -9 $$", "it ended without a word"),
    ],
)
async def test_bubblewraps_own_words_are_told(
    script: str, said: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # pytest's directories are for their owner alone, and root's bubblewrap is run by another.
    folder = tempfile.TemporaryDirectory(prefix="p2pcloop-test-")
    program = Path(folder.name) / "bwrap"
    program.write_text(f"#!/bin/sh\n{script}\n")
    for path in (program.parent, program):
        path.chmod(0o755)
    monkeypatch.setattr(
        sandbox,
        "find_program",
        lambda name, of: program if name == "bwrap" else find_program(name, of),
    )
    boxed = sleeper()
    with folder, trio.fail_after(BOUND), pytest.raises(GuestError) as caught:
        async with sandbox.running(boxed):
            pass
    assert str(caught.value) == f"the sandbox round the guest does not start: {said}"


async def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.touch()
    boxed = sandbox.prepare(["/x"], visible={Path("/x"): gone}, memory=MEMORY, processes=9)
    gone.unlink()
    with trio.fail_after(BOUND), pytest.raises(GuestError, match=str(gone)):
        async with sandbox.running(boxed):
            pass


async def test_a_sandbox_that_takes_too_long_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_START_TIMEOUT", 0.05)
    boxed = sleeper()
    late = ["/bin/sh", "-c", "sleep 600"]
    slow = sandbox.Sandbox([], late, [], boxed.syscall_filter)
    with trio.fail_after(BOUND), pytest.raises(GuestError, match="was not ready within"):
        async with sandbox.running(slow):
            pass


@pytest.mark.parametrize(
    ("complaint", "switch", "hint"),
    [
        ("x: Operation not permitted", "kernel/unprivileged_userns_clone=0", "only root may"),
        ("No space left on device", "user/max_user_namespaces=0", "max_user_namespaces=10000"),
        (
            "bwrap: setting up uid map: Permission denied",
            "kernel/apparmor_restrict_unprivileged_userns=1",
            "AppArmor",
        ),
        ("Can't mount proc on /newroot/proc: Operation not permitted", "", "container"),
        ("fork: Resource temporarily unavailable", "", "as many processes"),
        ("cannot open /x", "", "None"),
    ],
)
def test_what_can_be_done(complaint: str, switch: str, hint: str, tmp_path: Path) -> None:
    name, _, value = switch.partition("=")
    if name:
        file = tmp_path / "proc/sys" / name
        file.parent.mkdir(parents=True)
        file.write_text(f"{value}\n")
    assert hint in str(sandbox_failure.sandbox_failure(complaint, tmp_path).hint)


def systemd(folder: Path, cgroup: str) -> None:
    (folder / "run/systemd/system").mkdir(parents=True)
    (folder / "proc/self").mkdir(parents=True)
    (folder / "proc/self/cgroup").write_text(f"0::{cgroup}\n")


@pytest.mark.parametrize(
    ("user", "cgroup", "manager"),
    [
        (0, "/user.slice/user-0.slice/session-1.scope", "--system"),
        (1000, "/user.slice/user-1000.slice/user@1000.service/app.slice/x.scope", "--user"),
        # A user's systemd ends with the last login, and its groups with it.
        (1000, "/user.slice/user-1000.slice/session-1.scope", None),
        (1000, "/user.slice/user-0.slice/user@0.service/app.slice/x.scope", None),
    ],
)
def test_who_gives_a_control_group(
    user: int, cgroup: str, manager: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: f"/usr/bin/{name}")
    for name in ("getuid", "geteuid"):
        monkeypatch.setattr(os, name, lambda: user)
    assert scope.scope_words(1 << 30, 99, tmp_path) == [], "systemd does not run here"
    systemd(tmp_path, cgroup)
    words = scope.scope_words(1 << 30, 99, tmp_path)
    if manager is None:
        assert words == []
    else:
        assert words[:2] == ["/usr/bin/systemd-run", manager]
        assert {"--scope", "--property=MemoryMax=1073741824", "--property=TasksMax=99"} < {*words}
        assert words[-1] == "--"


@pytest.mark.parametrize(
    ("script", "grouped"),
    [
        ('until [ "$1" = -- ]; do shift; done; shift; echo group > @LOG@; exec "$@"', True),
        ("echo Failed to connect to bus: No such file or directory >&2; exit 1", False),
    ],
)
async def test_it_starts_with_a_control_group_or_without(
    script: str, grouped: bool, tmp_path: Path
) -> None:
    """Played by a script: that it starts what follows in a group is systemd's part."""
    log = tmp_path / "log"
    boxed = dataclasses.replace(
        sandbox.prepare(
            [str(find_busybox()), "echo", "runs"], visible={}, memory=MEMORY, processes=9
        ),
        scope=["/bin/sh", "-c", script.replace("@LOG@", str(log)), "scope", "--scope", "--"],
    )
    assert await output_of(boxed) == b"runs\n"
    assert log.exists() is grouped


LOOPBACK = """
import errno, json, socket, sys
found = {}
for family in ("AF_UNIX", "AF_INET", "AF_INET6", "AF_NETLINK", "AF_PACKET", "AF_VSOCK"):
    try:
        socket.socket(getattr(socket, family), socket.SOCK_DGRAM).close()
        found[family] = "made"
    except OSError as err:
        found[family] = errno.errorcode[err.errno]
with socket.create_server(("127.0.0.1", 0)) as own:
    socket.create_connection(own.getsockname()).close()
    found["own"] = "reached"
for address in sys.argv[2:]:
    try:
        socket.create_connection((address, int(sys.argv[1])), 5).close()
        found[address] = "reached"
    except OSError as err:
        found[address] = errno.errorcode[err.errno]
print(json.dumps(found))
"""


_NAMELESS = """
import sys
with open("/proc/self/comm", "wb") as comm:
    comm.write(b") \\xff")
print(flush=True)
sys.stdin.read()
"""


def test_names_of_other_processes_do_no_harm() -> None:
    """They may be no text: the system cuts them off after 15 bytes, and anyone chooses them."""
    with subprocess.Popen(
        [sys.executable, "-c", _NAMELESS], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        assert other.stdout is not None
        other.stdout.readline()
        process = sandbox.SandboxedProcess(other, other.pid)
        with pytest.raises(GuestError, match="has ended"):  # this one has no child
            process.command_pid()
        other.communicate()
        for fd in (process._outer, process._inner):
            assert fd is not None
            os.close(fd)


async def test_programs_of_a_sandbox_with_a_loopback_reach_each_other_alone() -> None:
    with socket.create_server(("0.0.0.0", 0)) as listener:
        port = str(listener.getsockname()[1])
        boxed = sandbox.prepare(
            [str(PYTHON), "-IS", "-c", LOOPBACK, port, "127.0.0.1", "192.0.2.9"],
            visible=python_files(),
            memory=MEMORY,
            processes=PROCESSES,
            network=sandbox.Network(loopback=True),
        )
        found = json.loads(await output_of(boxed))
    assert found == {
        "AF_UNIX": "made",
        "AF_INET": "made",
        "AF_INET6": "EAFNOSUPPORT",
        "AF_NETLINK": "EAFNOSUPPORT",
        "AF_PACKET": "EAFNOSUPPORT",
        "AF_VSOCK": "EAFNOSUPPORT",
        "own": "reached",
        "127.0.0.1": "ECONNREFUSED",
        "192.0.2.9": "ENETUNREACH",
    }


def test_filter_is_what_bubblewrap_takes() -> None:
    families = (socket.AF_UNIX,), (socket.AF_INET,), (socket.AF_UNIX, socket.AF_INET)
    filters = {syscall_filter.build(*each) for each in families}
    assert len(filters) == 3
    assert all(len(each) % 8 == 0 for each in filters), "struct sock_filter"


def test_ids_that_are_mapped(tmp_path: Path) -> None:
    table = tmp_path / "uid_map"
    table.write_text("         0       1000          1\n         1     100000      65536\n")
    assert staging._mapped_ids(table) == [range(1), range(1, 65537)]
