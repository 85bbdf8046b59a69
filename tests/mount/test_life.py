"""A mount from its start to its end: readers inside, signals, dead processes, bad input."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from bench.links import network
from p2pcloop.errors import NeedsPackageError, StorageError, UsageError
from p2pcloopd import fusermount
from p2pcloopd.mount import mounting
from tests.support.images import make_image
from tests.support.mounts import is_mounted, mounted, names, needs_fuse, unmount
from tests.support.programs import Node, Nodes, read_until, tool
from tests.support.static_server import busybox_httpd
from tests.support.users import AS_ANOTHER_USER, needs_another_user
from tests.support.waiting import BOUND, wait_until

from .conftest import MIB

pytestmark = [pytest.mark.interop, needs_fuse]

CONTENT = make_image(4 * MIB, seed=3)


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.img"
    path.write_bytes(CONTENT)
    return path


@pytest.fixture
def directory(tmp_path: Path) -> Iterator[Path]:
    path = tmp_path / "tree"
    path.mkdir()
    yield path
    unmount(path)


@contextmanager
def reading(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that reads a file from end to end."""
    with subprocess.Popen(["cat", path], stdout=subprocess.DEVNULL) as process:
        try:
            yield process
        finally:
            process.kill()


def known_to(reader: Node, seeder: Node, image: Path) -> dict[str, Any]:
    """Have a reader know an image that it has nothing of."""
    seeded = seeder.seed(image)
    reader.run("info", seeded["link"])
    return seeded


def test_a_file_that_is_open_outlives_the_mount(nodes: Nodes, image: Path, directory: Path) -> None:
    node = nodes.make()
    name = node.seed(image)["name"]
    with mounted(node, directory) as process:
        with (directory / name / "disk.img").open("rb", buffering=0) as file:
            assert file.read(4096) == CONTENT[:4096]
            node.run("umount", directory)
            assert names(directory) == []
            assert os.pread(file.fileno(), MIB, 2 * MIB) == CONTENT[2 * MIB : 3 * MIB]
        assert process.wait(BOUND) == 0
    assert not is_mounted(directory)


@contextmanager
def another_namespace() -> Iterator[Path]:
    """A mount namespace made now, which has all mounts of this one and does not hear of their end.
    Yields its view of the file system."""
    command = ["setpriv", "--pdeathsig", "KILL", "unshare", "--mount"]
    with subprocess.Popen(
        [*command, "sh", "-c", "echo made; exec sleep infinity"], stdout=subprocess.PIPE
    ) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"made\n"
            yield Path(f"/proc/{process.pid}/root")
        finally:
            process.kill()


needs_namespaces = pytest.mark.skipif(
    network.why_not() is not None, reason=f"no namespaces: {network.why_not()}"
)


@needs_namespaces
def test_another_namespace_does_not_keep_it(nodes: Nodes, image: Path, directory: Path) -> None:
    """Files that are open do, wherever; until then `daemon stop` names the mount."""
    node = nodes.make()
    name = node.seed(image)["name"]
    with mounted(node, directory) as process, another_namespace() as root:
        there = root / directory.relative_to("/") / name / "disk.img"
        with there.open("rb", buffering=0) as file:
            assert file.read(4096) == CONTENT[:4096]
            node.run("umount", directory)
            assert os.pread(file.fileno(), MIB, 2 * MIB) == CONTENT[2 * MIB : 3 * MIB]
            assert f"`p2pcloop mount {directory}`" in node.run("daemon", "stop", code=6).err
        assert process.wait(BOUND) == 0
        with pytest.raises(OSError, match="not connected"):
            names(root / directory.relative_to("/"))
        node.run("daemon", "stop")


@needs_namespaces
def test_it_lasts_while_it_is_bound_elsewhere(
    nodes: Nodes, image: Path, directory: Path, tmp_path: Path
) -> None:
    node = nodes.make()
    name = node.seed(image)["name"]
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    with mounted(node, directory) as process:
        tool("mount", "--bind", directory, elsewhere)
        try:
            node.run("umount", directory)
            assert (elsewhere / name / "disk.img").read_bytes() == CONTENT
        finally:
            tool("umount", elsewhere)
        assert process.wait(BOUND) == 0


@needs_namespaces
def test_hosts_of_other_tests_do_not_keep_it(nodes: Nodes, image: Path, directory: Path) -> None:
    """A new mount namespace has all mounts of the old one, and does not hear of their end."""
    node = nodes.make()
    name = node.seed(image)["name"]
    with mounted(node, directory) as process:
        assert (directory / name / "disk.img").read_bytes() == CONTENT
        with network.fast_pair():
            node.run("umount", directory)
            assert process.wait(BOUND) == 0


def test_ctrl_c_ends_it(nodes: Nodes, image: Path, directory: Path) -> None:
    node = nodes.make()
    name = node.seed(image)["name"]
    with mounted(node, directory) as process:
        assert (directory / name / "disk.img").stat().st_size == len(CONTENT)
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND) == 0
    assert names(directory) == []


def test_a_second_ctrl_c_ends_it_with_files_open(
    nodes: Nodes, image: Path, directory: Path
) -> None:
    node = nodes.make()
    name = node.seed(image)["name"]
    with mounted(node, directory) as process:
        file = os.open(directory / name / "disk.img", os.O_RDONLY)
        os.read(file, 4096)
        process.send_signal(signal.SIGINT)
        read_until(process, "open files are served until they are closed: 1")
        assert not is_mounted(directory)
        process.send_signal(signal.SIGINT)
        assert process.wait(BOUND) == 0
        with pytest.raises(OSError, match=r"not connected|abort"):
            os.pread(file, MIB, 2 * MIB)
        with suppress(OSError):  # close(2) tells it, too
            os.close(file)


def test_a_dead_mount_is_repaired_by_the_next(nodes: Nodes, image: Path, directory: Path) -> None:
    node = nodes.make()
    name = node.seed(image)["name"]
    with mounted(node, directory) as process:
        process.kill()
        process.wait()
        with pytest.raises(OSError, match="not connected"):
            names(directory)
        with mounted(node, directory, said="had lost its process") as again:
            read_until(again, "mounted at")
            assert (directory / name / "disk.img").read_bytes() == CONTENT
            node.run("umount", directory)
        assert not is_mounted(directory)


def test_it_goes_on_in_the_background(nodes: Nodes, image: Path, directory: Path) -> None:
    node = nodes.make()
    name = node.seed(image)["name"]
    assert "mounted at" in node.run("mount", directory, "--detach").err
    assert (directory / name / "disk.img").read_bytes() == CONTENT
    busy = node.run("mount", directory, code=6).err
    assert f"p2pcloop is mounted at {directory} already" in busy
    node.run("umount", directory)
    assert names(directory) == []
    node.run("umount", directory, code=7)


def test_readers_wait_for_peers_and_go_on(nodes: Nodes, image: Path, directory: Path) -> None:
    """Without its seeder the reader waits, and can be interrupted; the tree is alive meanwhile."""
    seeder, reader = nodes.make(), nodes.make()
    seeded = known_to(reader, seeder, image)
    with mounted(reader, directory) as process:
        disk = directory / seeded["name"] / "disk.img"
        with disk.open("rb", buffering=0) as file:
            start = file.read(4096)
            seeder.run("daemon", "stop")
            with reading(disk) as waiting:
                read_until(process, "waits")
                assert names(directory / seeded["name"])
                waiting.send_signal(signal.SIGINT)
                assert waiting.wait(BOUND) == -signal.SIGINT
            with reading_directly(disk) as waiting:
                waiting.send_signal(signal.SIGINT)
                assert waiting.wait(BOUND) == -signal.SIGINT
            with reading(disk) as waiting:
                seeder.run("daemon", "start")
                assert waiting.wait(BOUND) == 0
            assert start + file.read() == CONTENT


@contextmanager
def reading_directly(path: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A program that reads past the page cache: the kernel itself waits for the answer."""
    with subprocess.Popen(
        ["dd", f"if={path}", "of=/dev/null", "bs=1M", "skip=2", "iflag=direct"],
        stderr=subprocess.DEVNULL,
    ) as process:
        try:
            # The name of the kernel's function in which it sleeps, which is one of FUSE's.
            where = Path(f"/proc/{process.pid}/wchan")
            wait_until(lambda: where.read_text().startswith(("request_wait", "fuse")), "dd waits")
            yield process
        finally:
            process.kill()


def test_what_is_here_is_read_without_p2pcloopd(nodes: Nodes, image: Path, directory: Path) -> None:
    seeder, reader = nodes.make(), nodes.make()
    seeded = known_to(reader, seeder, image)
    reader.run("fetch", seeded["name"])
    with mounted(reader, directory):
        reader.signal(signal.SIGKILL)
        assert (directory / seeded["name"] / "disk.img").read_bytes() == CONTENT
        assert names(directory / seeded["name"] / "versions") == ["1"]


def test_a_name_is_resolved_when_it_is_named(
    nodes: Nodes, image: Path, directory: Path, tmp_path: Path
) -> None:
    """By those whom the node's user has named: here a mirror."""
    seeder = nodes.make()
    name = seeder.seed(image)["name"]
    mirror = tmp_path / "mirror"
    seeder.run("mirror", name, mirror)
    with busybox_httpd(mirror) as url:
        reader = nodes.make(f'[discovery]\nmirrors = ["{url}"]\n')
        with mounted(reader, directory) as process:
            assert names(directory) == []
            assert (directory / name / "disk.img").read_bytes() == CONTENT
            assert names(directory) == [name.split("/")[0]]
            assert not (directory / f"{name}-of-another").exists()
            read_until(process, "was not found")
            assert not (directory / name / "versions/7").exists()
            read_until(process, "has no version 7")


def test_a_look_up_can_be_interrupted(nodes: Nodes, image: Path, directory: Path) -> None:
    """Else the shell behind it could not be ended while others are asked."""
    name = nodes.make().seed(image)["name"]
    with socket.create_server(("127.0.0.1", 0)) as mute:  # it accepts, and never answers
        port = mute.getsockname()[1]
        reader = nodes.make(f'[discovery]\nmirrors = ["http://127.0.0.1:{port}/"]\n')
        with mounted(reader, directory):
            with subprocess.Popen(["ls", directory / name]) as waiting:
                asked, _ = mute.accept()
                waiting.send_signal(signal.SIGINT)
                assert waiting.wait(BOUND) == -signal.SIGINT
                asked.close()


def reachable(path: Path) -> None:
    """Let other users look into a directory of a test, not write."""
    for folder in (path, *path.parents):
        if folder.stat().st_mode & 0o005 != 0o005:
            folder.chmod(folder.stat().st_mode | 0o055)


@needs_another_user
def test_other_users_read_it_where_that_is_wanted(
    nodes: Nodes, image: Path, directory: Path
) -> None:
    node = nodes.make()
    name = node.seed(image)["name"]
    reachable(directory)
    with mounted(node, directory, "--allow-other"):
        tool(*AS_ANOTHER_USER, "cmp", directory / name / "disk.img", image)
        tool(*AS_ANOTHER_USER, "touch", directory / name / "disk.img", code=1)


def test_bad_mount_points(nodes: Nodes, tmp_path: Path) -> None:
    """Each is told with what to do; nothing is mounted, and no p2pcloopd starts."""
    node = nodes.make()
    full, file = tmp_path / "full", tmp_path / "file"
    full.mkdir()
    (full / "kept").write_text("kept")
    file.write_text("")
    for where, code, why, advice in (
        (full, 2, "is not empty", "choose an empty directory"),
        (tmp_path / "absent", 7, "there is no directory", "mkdir -p"),
        (Path("/proc"), 6, "is mounted at /proc", "choose another directory"),
    ):
        said = node.run("mount", where, code=code).err
        assert why in said
        assert advice in said
    assert "is a file" in node.run("mount", file, code=2).err
    assert (full / "kept").read_text() == "kept"
    assert not any(is_mounted(where) for where in (full, file))
    assert not node.root.exists()


async def test_an_ending_mount_leaves_its_successor_alone(directory: Path) -> None:
    """The next file system may get the same numbers: only the descriptor tells them apart."""
    one = fusermount.mount(directory, everyone=False)
    assert fusermount.is_connected(one)
    fusermount.unmount(directory)
    assert not fusermount.is_connected(one)
    two = fusermount.mount(directory, everyone=False)
    successor = fusermount.mounted_at(directory)
    assert successor is not None
    await mounting._unmount_if_it_lives(one, directory, successor)
    assert fusermount.mounted_at(directory) == successor
    os.close(one)
    await mounting._unmount_if_it_lives(two, directory, successor)
    assert fusermount.mounted_at(directory) is None
    os.close(two)


def test_what_is_not_ours_is_not_unmounted(nodes: Nodes, tmp_path: Path) -> None:
    node = nodes.make()
    assert "is not p2pcloop's: proc" in node.run("umount", "/proc", code=2).err
    assert "nothing is mounted" in node.run("umount", tmp_path, code=7).err


@needs_another_user
def test_a_directory_of_another_user(tmp_path: Path) -> None:
    directory = tmp_path / "mine"
    directory.mkdir(mode=0o700)
    reachable(directory)
    code = (
        "import sys\n"
        "from pathlib import Path\n"
        "from p2pcloop.errors import UsageError\n"
        "from p2pcloopd.fusermount import prepare\n"
        "try:\n    prepare(Path(sys.argv[1]), print)\n"
        "except UsageError as err:\n    print(err)\n"
    )
    said = tool(*AS_ANOTHER_USER, sys.executable, "-c", code, directory)
    assert "you may not write into" in said


def test_a_system_without_fuse(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(fusermount, "DEVICE", tmp_path / "fuse")
    with pytest.raises(NeedsPackageError, match="has no FUSE"):
        fusermount.check_device()
    (tmp_path / "fuse").mkdir()
    with pytest.raises(StorageError, match="cannot open"):
        fusermount.check_device()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr("p2pcloopd.programs.shutil.which", lambda *_, **__: None)
    with pytest.raises(NeedsPackageError, match="fusermount3 is not installed"):
        fusermount.check_device()


def test_what_fusermount_refuses_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    program = tmp_path / "fusermount3"
    program.write_text(
        "#!/bin/sh\n"
        "echo \"fusermount3: option allow_other only allowed if 'user_allow_other' is set in"
        ' /etc/fuse.conf" >&2\nexit 1\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    with pytest.raises(UsageError, match="lets only root show") as caught:
        fusermount.mount(tmp_path, everyone=True)
    assert "/etc/fuse.conf" in (caught.value.hint or "")
    program.write_text("#!/bin/sh\necho fusermount3: it rains >&2\nexit 1\n")
    with pytest.raises(UsageError, match=r"refuses .*: it rains"):
        fusermount.unmount(tmp_path)
