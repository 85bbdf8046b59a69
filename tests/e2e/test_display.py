"""A display for a stock image: a busybox with xterm, in which nothing was made for p2pcloop."""

from __future__ import annotations

import socket
import stat
import struct
import subprocess
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from p2pcloopd.guest.display.access import COOKIE_NAME
from tests.support.programs import Guest, Node, Nodes
from tests.support.stock_images import stock_image, x_image
from tests.support.waiting import BOUND, wait_until
from tests.support.web_socket import BrowserSocket
from tests.support.x_screen import desktop
from tools.vnc import NO_PASSWORD, RefusedError, Viewer

pytestmark = pytest.mark.e2e

BLUE, GREEN = (32, 64, 160), (0, 192, 0)
WINDOW = 50_000
"""Pixels of an xterm's background, at least."""

MACHINES = ("uml", "qemu")
IN_DISPLAY = ". /dev/.p2pcloop/display; "


@pytest.fixture(scope="module")
def x_node() -> Iterator[Node]:
    with Nodes() as nodes:
        yield nodes.make()


@pytest.fixture
def node(nodes: Nodes) -> Node:
    return nodes.make()


@pytest.fixture(scope="module", params=MACHINES)
def guest(x_node: Node, request: pytest.FixtureRequest) -> Iterator[Guest]:
    """A guest with a display and without a network."""
    screen = ("--display", "vnc", "--geometry", "800x600")
    with Guest(
        x_node, x_image(), "--name", "x", "--replace", "--vm", request.param, *screen
    ) as made:
        made.prompt()
        yield made
        made.kill()


@pytest.fixture(scope="module")
def display(guest: Guest, x_node: Node) -> dict[str, Any]:
    """What `ps` tells of the display."""
    (found,) = x_node.json("ps")["guests"]
    told: dict[str, Any] = found["display"]
    assert f"vncviewer -passwd {x_node.root}/guests/x/vnc-password {told['address']}" in guest.said
    assert told["password"] in guest.said
    assert f"display {told['address']}" in x_node.run("ps").out
    again = x_node.run("display", "x").out.splitlines()
    assert [f"p2pcloop: {line}" in guest.said.splitlines() for line in again] == [True, True]
    assert x_node.json("display", "x") == told
    assert x_node.run("exec", "x", "--", "sh", "-c", "echo $DISPLAY").out == "192.0.0.2:0\n"
    return told


def test_a_window_of_the_guest_is_seen_and_typed_into(
    guest: Guest, display: dict[str, Any]
) -> None:
    guest.sh("echo \"printf '\\\\033]11;#00c000\\\\007'\" >/root/green")
    guest.sh(f"({IN_DISPLAY} xterm -bg '#2040a0' </dev/null >/root/said 2>&1 &)")
    with Viewer(display["address"], display["password"]) as viewer:
        assert (viewer.width, viewer.height) == (800, 600)
        assert viewer.title.startswith("p2pcloop: x-")
        viewer.wait(lambda: viewer.count(BLUE) > WINDOW)
        assert not viewer.count(GREEN)
        viewer.type("sh /root/green; echo $((6*7)) >/root/answer\n")
        viewer.wait(lambda: viewer.count(GREEN) > WINDOW)
        assert not viewer.count(BLUE)
    assert guest.sh("until [ -s /root/answer ]; do sleep 0.1; done; cat /root/answer") == "42\n"


def test_a_client_without_the_cookie_is_refused(guest: Guest) -> None:
    without = f"{IN_DISPLAY} unset XAUTHORITY; xterm -e true 2>&1; echo $?"
    said = guest.sh(f"({without})").splitlines()
    assert "Authorization required" in said[0]
    assert said[-1] == "1"
    # A guess is no better, and the cookie lies where root alone reads it.
    guess = "cp /dev/.p2pcloop/Xauthority /tmp/guess; head -c 28 /tmp/guess >/tmp/short"
    guest.sh(f"{guess}; head -c 16 /dev/zero >>/tmp/short")
    said = guest.sh(
        f"({IN_DISPLAY} XAUTHORITY=/tmp/short xterm -e true 2>&1; echo $?)"
    ).splitlines()
    assert "Invalid MIT-MAGIC-COOKIE-1" in said[0]
    assert guest.sh("stat -c %a /dev/.p2pcloop/Xauthority") == "600\n"


def test_the_screen_has_no_glx(guest: Guest, x_node: Node) -> None:
    """With it, programs of the guest would read a whole compiler from the image."""
    cookie = x_node.command("exec", "x", "--", "tail", "-c", "16", "/dev/.p2pcloop/Xauthority")
    shown = subprocess.run(
        cookie, env=x_node.environment, stdout=subprocess.PIPE, timeout=BOUND, check=True
    ).stdout
    hello = struct.pack("<BxHHHHxx", ord("l"), 11, 0, len(COOKIE_NAME), len(shown))
    words = x_node.command("exec", "-i", "x", "--", "nc", "192.0.0.2", "6000")
    with subprocess.Popen(
        words, env=x_node.environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as client:

        def ask(request: bytes, size: int) -> bytes:
            """Send a request; so many bytes of its answer."""
            assert client.stdin is not None
            assert client.stdout is not None
            client.stdin.write(request)
            client.stdin.flush()
            return client.stdout.read(size)

        said = ask(hello + COOKIE_NAME + bytes(2) + shown, 8)
        ask(b"", 4 * struct.unpack("<xxxxxxH", said)[0])
        there = {}
        for name in (b"RENDER", b"GLX"):
            units = (len(name) + 3) // 4
            query = struct.pack("<BxHHxx", 98, 2 + units, len(name)) + name.ljust(4 * units, b"\0")
            there[name] = ask(query, 32)[8]
    assert there == {b"RENDER": 1, b"GLX": 0}


def test_the_wire_leads_to_nothing_but_the_x_server(guest: Guest) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(0)
        port = listener.getsockname()[1]
        guest.sh("ip route add default via 192.0.0.2")
        try_all = "; ".join(
            f"nc -w 1 {address} {port} </dev/null"
            for address in ("192.0.0.2", "192.0.0.3", "127.0.0.1", "10.0.2.2", "192.0.0.6")
        )
        said = guest.sh(f"({try_all}) >/dev/null 2>&1; echo $?")
        guest.sh("ip route del default")
        assert said == "1\n"
        with pytest.raises(BlockingIOError):
            listener.accept()
    assert " 0 packets received" in guest.sh("ping -c 1 -W 1 192.0.0.2 || :")
    # It does lead there.
    assert guest.sh("nc -w 100 192.0.0.2 6000 </dev/null; echo $?") == "0\n"


def test_a_viewer_needs_the_password(display: dict[str, Any]) -> None:
    with pytest.raises(RefusedError, match="Authentication failure"):
        Viewer(display["address"], "wrong")
    with Viewer(display["address"], display["password"]) as viewer:
        assert NO_PASSWORD not in viewer.offered


def test_what_tells_the_password_is_for_its_user_alone(
    guest: Guest, x_node: Node, display: dict[str, Any]
) -> None:
    for name in ("record.json", "vnc-password"):
        mode = (x_node.home.guests / "x" / name).stat().st_mode
        assert stat.S_IMODE(mode) == 0o600, name
    words = [Path(f"/proc/{process.pid}/cmdline").read_bytes() for process in guest.processes()]
    assert not any(display["password"].encode() in each for each in words)


@pytest.mark.parametrize("machine", MACHINES)
def test_the_display_is_there_again_after_a_reboot_and_gone_after_a_kill(
    nodes: Nodes, machine: str
) -> None:
    node = nodes.make()
    with Guest(node, x_image(), "--vm", machine, "--display", "vnc") as guest:
        guest.prompt()
        (told,) = (each["display"] for each in node.json("ps")["guests"])
        guest.send_line("reboot")
        guest.expect("p2pcloop: starts", BOUND)
        guest.prompt()
        guest.sh(f"({IN_DISPLAY} xterm -bg '#2040a0' </dev/null >/root/said 2>&1 &)")
        with Viewer(told["address"], told["password"]) as viewer:
            viewer.wait(lambda: viewer.count(BLUE) > WINDOW)
        boot, *others = guest.processes()
        assert any(b"Xtigervnc" in Path(f"/proc/{p.pid}/cmdline").read_bytes() for p in others)
        boot.kill()
        guest.wait(BOUND)
        for process in others:
            process.wait()
    with pytest.raises(ConnectionRefusedError):
        Viewer(told["address"], told["password"])


def test_a_port_that_is_in_use_is_refused(node: Node) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        said = node.run("boot", x_image(), "--display", f"vnc:{port}", code=6).err
    assert f"port {port} of 127.0.0.1: it is in use" in said
    assert not list(node.home.guests.glob("*"))


def test_a_window_on_the_users_desktop(nodes: Nodes, tmp_path: Path) -> None:
    node = nodes.make()
    with desktop(tmp_path) as users:
        node.environment |= users.environment
        with Guest(node, x_image(), "--display", "window") as guest:
            guest.prompt()
            guest.sh("echo \"printf '\\\\033]11;#00c000\\\\007'\" >/root/green")
            guest.sh(f"({IN_DISPLAY} xterm -bg '#2040a0' </dev/null >/root/said 2>&1 &)")
            wait_until(lambda: users.count(BLUE) > WINDOW)
            users.point_at(100, 100)
            users.type("sh /root/green\n")
            wait_until(lambda: users.count(GREEN) > WINDOW)
            (found,) = node.json("ps")["guests"]
            address = users.environment["DISPLAY"]
            assert found["display"] == {"kind": "window", "address": address, "password": None}
            guest.kill()


def test_a_window_without_a_desktop_is_refused(node: Node) -> None:
    node.environment.pop("DISPLAY", None)
    said = node.run("boot", x_image(), "--display", "window", code=10).err
    assert "there is no X display for the window: DISPLAY is not set" in said
    assert "hint: run it in a terminal of your desktop" in said
    node.environment["DISPLAY"] = "127.0.0.1:59535"
    said = node.run("boot", x_image(), "--display", "window", code=10).err
    assert "the X display 127.0.0.1:59535 cannot be used: Connection refused" in said
    assert not node.root.exists()


def test_a_session_runs_as_the_images_user_in_each_boot(node: Node) -> None:
    session = ("--session", "id -un >/tmp/ran; pwd >>/tmp/ran; xterm -bg '#2040a0'")
    with Guest(node, x_image(), "--display", "vnc", *session) as guest:
        for _ in range(2):
            guest.prompt()
            (told,) = (each["display"] for each in node.json("ps")["guests"])
            with Viewer(told["address"], told["password"]) as viewer:
                viewer.wait(lambda: viewer.count(BLUE) > WINDOW)
            assert guest.sh("cat /tmp/ran") == "ann\n/tmp\n"
            assert "the guest starts `id -un" in guest.said
            assert "` as ann\n" in guest.said
            guest.sh("rm /tmp/ran")
            guest.send_line("reboot")
            guest.expect("p2pcloop: starts", BOUND)
        guest.prompt()
        guest.kill()


@pytest.mark.parametrize(
    ("options", "told"),
    [
        (["echo no such thing >&2; exit 3"], "ended with exit status 3: no such thing"),
        (["true"], "ended with exit status 0, without a word"),
        (["true", "--session-user", "bob"], "ended with exit status 1: id: unknown user bob"),
    ],
)
def test_a_session_that_ends_at_once_is_told(node: Node, options: list[str], told: str) -> None:
    with Guest(node, x_image(), "--display", "vnc", "--session", *options) as guest:
        guest.prompt()
        wait_until(lambda: told in guest.said)
        assert "the guest has no session any more: `" in guest.said
        guest.kill()


def test_a_session_begins_when_systemd_has_mounted_what_it_needs(node: Node) -> None:
    session = (
        "grep -c ' /dev/shm ' /proc/mounts; echo $DISPLAY $USER $HOME $XDG_RUNTIME_DIR $LANG;"
        " tr '\\0' '\\n' </proc/1/environ | grep -c -e ^lang=de -e ^keyboard=de; exit 5"
    )
    options = ("--display", "vnc", "--session", session)
    settings = ("--locale", "de_DE.UTF-8", "--keyboard", "de")
    with Guest(node, stock_image("bookworm"), *options, *settings) as guest:
        told = "exit status 5: 1 / 192.0.0.2:0 root /root /run/user/0 de_DE.UTF-8 / 2"
        wait_until(lambda: told in guest.said)
        assert "` as root, since it has no ordinary user" in guest.said
        guest.kill()


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["--session", "xterm"], "--session needs a screen"),
        (["--geometry", "800x600"], "--geometry is the size of a screen"),
        (["--display", "vnc", "--session-user", "ann"], "--session-user needs a --session"),
        (["--display", "vnc", "--session", " "], "--session needs a command"),
        (["--locale", "german please"], "is no locale"),
    ],
)
def test_options_that_do_not_go_together(node: Node, options: list[str], why: str) -> None:
    assert why in node.run("boot", "image.cloop", *options, code=2).err


def test_a_browser_gets_the_display_by_one_link(node: Node) -> None:
    with Guest(node, x_image(), "--display", "web") as guest:
        guest.prompt()
        (told,) = (each["display"] for each in node.json("ps")["guests"])
        assert told["kind"] == "web"
        assert f"p2pcloop: display: open {told['link']}\n" in guest.said
        with urllib.request.urlopen(told["link"], timeout=BOUND) as page:
            assert b"noVNC" in page.read()
        browser = BrowserSocket(told["link"])
        assert browser.recv(12) == b"RFB 003.008\n"
        browser.close()
        # What the pages do then is done here without them.
        with Viewer(told["address"], told["password"]) as viewer:
            assert NO_PASSWORD not in viewer.offered
        guest.kill()
