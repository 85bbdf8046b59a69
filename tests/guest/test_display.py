"""What opens a display, what its wire lets through, and what a user may ask for."""

from __future__ import annotations

import os
import socket
import ssl
import struct
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from p2pcloop.errors import BusyError, GuestError, NeedsPackageError, UsageError
from p2pcloop.protocol.rfb import is_past_handshake
from p2pcloop.store import temporary_folder
from p2pcloopd.commands.displaying import title_of
from p2pcloopd.guest.display import access, host_display, relay, servers, wire
from p2pcloopd.guest.display.choice import (
    DisplayChoice,
    Listeners,
    bound_display,
    parse_display,
    parse_geometry,
)
from p2pcloopd.guest.display.host_display import HostDisplay, find_host_display
from p2pcloopd.guest.display.servers import XServer
from p2pcloopd.guest.display.spec import Display
from p2pcloopd.guest.network import frame_filter
from p2pcloopd.guest.system import addresses
from p2pcloopd.guest.system.kernel import find_busybox
from p2pcloopd.programs import find_program
from tests.support.programs import descendant
from tests.support.users import AS_ANOTHER_USER, CHECKOUT, needs_another_user
from tests.support.waiting import BOUND
from tests.support.x_screen import HEIGHT, WIDTH, desktop

ARP, IPV4, IPV6 = 0x0806, 0x0800, 0x86DD
TCP, UDP, ICMP = 6, 17, 1


def frame(kind: int, address: str = "0.0.0.0", protocol: int = TCP, port: int = 0) -> bytes:
    header = struct.pack("!BBHHHBBH4x4s", 0x45, 0, 40, 1, 0, 64, protocol, 0, inet(address))
    return bytes(12) + struct.pack("!H", kind) + header + struct.pack("!HH16x", 40000, port)


def inet(address: str) -> bytes:
    return socket.inet_aton(address)


def test_the_wire_carries_arp_and_tcp_to_the_x_server_alone() -> None:
    server, port = addresses.DISPLAY_ADDRESS, addresses.X_PORT
    wanted = [frame(ARP), frame(IPV4, server, TCP, port)]
    others = [
        frame(IPV4, server, TCP, port + 1),
        frame(IPV4, server, UDP, port),
        frame(IPV4, server, ICMP),
        frame(IPV6, server, TCP, port),
        frame(IPV4, "255.255.255.255", UDP, 67),
        *(frame(IPV4, each, TCP, port) for each in ("127.0.0.1", "192.0.0.3", "10.0.2.2")),
    ]
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
    with ours, theirs:
        frame_filter.install_single(theirs, server, port)
        theirs.setblocking(False)
        for each in [*others, *wanted, *others]:
            ours.send(each)
        assert [theirs.recv(100) for _ in wanted] == wanted
        with pytest.raises(BlockingIOError):
            theirs.recv(100)


def test_a_password_is_kept_as_vnc_programs_keep_it() -> None:
    # As tigervncpasswd(1) writes it.
    assert access.password_file("password").hex() == "dbd83cfd727a1458"
    drawn = {access.new_password() for _ in range(100)}
    assert len(drawn) == 100
    assert {len(each) for each in drawn} == {8}


@pytest.mark.interop
def test_xauth_reads_the_cookie(tmp_path: Path) -> None:
    cookie = access.new_cookie()
    file = tmp_path / "authority"
    file.write_bytes(access.authority_file(cookie))
    xauth = find_program("xauth", "xauth")
    listing = subprocess.run(
        [xauth, "-n", "-f", file, "list"], capture_output=True, text=True, check=True, timeout=120
    )
    assert listing.stdout.split()[-2:] == ["MIT-MAGIC-COOKIE-1", cookie.hex()]


@pytest.mark.parametrize(
    ("text", "choice"),
    [
        ("none", DisplayChoice("none")),
        ("window", DisplayChoice("window")),
        ("web", DisplayChoice("web", "127.0.0.1", 0)),
        ("web:6081", DisplayChoice("web", "127.0.0.1", 6081)),
        ("vnc", DisplayChoice("vnc", "127.0.0.1", 0)),
        ("vnc:5907", DisplayChoice("vnc", "127.0.0.1", 5907)),
        ("vnc:0.0.0.0:5907", DisplayChoice("vnc", "0.0.0.0", 5907)),
    ],
)
def test_displays_that_can_be_asked_for(text: str, choice: DisplayChoice) -> None:
    assert parse_display(text) == choice


@pytest.mark.parametrize(
    "text",
    [
        *("", "VNC", "vnc:", "vnc:0", "vnc:65536", "vnc:-1", "vnc:host:5901", "vnc:1.2.3:5901"),
        *(
            "web:0",
            "web:0.0.0.0:6080",
            "vnc:5901:",
            "vnc:256.0.0.1:1",
            "window:1",
            "vnc 5901",
            "vnc:٥٩٠١",
        ),
    ],
)
def test_displays_that_cannot(text: str) -> None:
    with pytest.raises(UsageError):
        parse_display(text)


def test_sizes_of_screens() -> None:
    assert parse_geometry("1280x800") == (1280, 800)
    for text in ("", "1280", "1280x", "0x0", "63x64", "16385x800", "1280X800", "1280x800+1"):
        with pytest.raises(UsageError):
            parse_geometry(text)


def test_a_free_port_is_found_and_a_taken_one_refused() -> None:
    with (
        bound_display(parse_display("vnc")) as first,
        bound_display(parse_display("web")) as second,
    ):
        assert first.vnc is not None
        assert second.vnc is not None
        assert second.web is not None
        assert first.web is None
        ports = [each.getsockname()[1] for each in (first.vnc, second.vnc, second.web)]
        assert len(set(ports)) == 3
        for kind, port in (("vnc", ports[0]), ("web", ports[2])):
            with (
                pytest.raises(BusyError, match=f"port {port} of 127"),
                bound_display(parse_display(f"{kind}:{port}")),
            ):
                pass
    away = parse_display("vnc:192.0.2.77:5901")
    with pytest.raises(UsageError, match="does not have"), bound_display(away):
        pass
    with bound_display(parse_display("none")) as nothing:
        assert nothing == Listeners()


def test_the_package_of_a_missing_server_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", os.devnull)
    with pytest.raises(NeedsPackageError) as caught:
        wire.check_programs(Display(800, 600))
    assert caught.value.hint == "apt-get install tigervnc-standalone-server"
    host = HostDisplay(":1", "/nowhere", None, 800, 600)
    with pytest.raises(NeedsPackageError) as caught:
        wire.check_programs(Display(800, 600, host=host))
    assert caught.value.hint == "apt-get install xserver-xephyr"


@pytest.mark.interop
async def test_a_server_that_does_not_start_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    """busybox in its place: it knows no applet of that name, and says so."""
    busybox = XServer(find_busybox(), (), {})
    monkeypatch.setattr(wire, "find_server", lambda _display: busybox)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        display = Display(800, 600, listener)
        with pytest.raises(GuestError, match=r"does not start: .*applet not found"):
            async with wire.display_wire(display, pytest.fail):
                await trio.sleep_forever()


@pytest.mark.interop
async def test_a_server_that_ends_later_is_reported() -> None:
    said: list[str] = []
    told = trio.Event()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    with socket.create_server(("127.0.0.1", 0)) as listener:
        display = Display(800, 600, listener)
        with trio.fail_after(BOUND):
            async with wire.display_wire(display, say):
                # It greets a viewer: it is there.
                async with await trio.open_tcp_stream(*listener.getsockname()) as viewer:
                    assert await viewer.receive_some(12) == b"RFB 003.008\n"
                descendant(os.getpid(), "Xtigervnc").kill()
                await told.wait()
    assert said[0].startswith("has no display any more: its X server ended (exit status ")


@pytest.mark.interop
async def test_no_file_of_this_machine_holds_a_displays_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It would stay there if this process was killed."""
    monkeypatch.setattr(temporary_folder, "socket_folder", lambda: str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as listener, trio.fail_after(BOUND):
        async with (
            wire.display_wire(Display(800, 600, listener), pytest.fail),
            await trio.open_tcp_stream(*listener.getsockname()) as viewer,
        ):
            assert await viewer.receive_some(12) == b"RFB 003.008\n"
            files = await trio.to_thread.run_sync(lambda: [*tmp_path.rglob("*")])
            assert [path.name for path in files if path.is_file()] == []


@pytest.mark.interop
@pytest.mark.parametrize("program", ["Xephyr", "Xnest"])
async def test_a_window_opens_on_the_users_display(
    program: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def find(name: str, package: str) -> Path:
        if name != program:
            raise NeedsPackageError(f"no {name}", hint=package)
        return find_program(name, package)

    monkeypatch.setattr(servers, "find_program", find)
    with desktop(tmp_path) as users:
        host = find_host_display(users.environment)
        assert (host.width, host.height) == (WIDTH, HEIGHT)
        display = Display(300, 200, host=host, title="the guest's own")
        async with wire.display_wire(display, pytest.fail):
            await trio.to_thread.run_sync(users.wait_for_window, display.title)


@pytest.mark.interop
def test_a_display_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    with desktop(tmp_path) as users:
        wrong = tmp_path / "wrong"
        wrong.write_bytes(access.authority_file(bytes(16)))
        with pytest.raises(GuestError, match=r"it refused us: .*COOKIE"):
            find_host_display(users.environment | {"XAUTHORITY": str(wrong)})
        with pytest.raises(GuestError, match="it refused us: Authorization required"):
            find_host_display({"DISPLAY": users.environment["DISPLAY"], "HOME": str(tmp_path)})
    with pytest.raises(GuestError, match="cannot be used: ") as caught:
        find_host_display(users.environment)
    assert "--display vnc" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("name", "why"),
    [("", "DISPLAY is not set"), ("0", "DISPLAY is '0'"), (":0\n", "DISPLAY is"), ("a/b:1", "is")],
)
def test_names_of_displays_that_are_none(name: str, why: str) -> None:
    with pytest.raises(GuestError, match=why):
        find_host_display({"DISPLAY": name})


def test_a_server_that_hangs_up_or_is_none() -> None:
    for answer in (b"", b"HTTP/1.1 400 Bad Request\r\n\r\n", b"\1" + bytes(7)):
        with socket.create_server(("127.0.0.1", 0)) as listener:
            thread = Thread(target=answer_once, args=(listener, answer))
            thread.start()
            number = listener.getsockname()[1] - addresses.X_PORT
            with pytest.raises(GuestError, match="cannot be used"):
                find_host_display({"DISPLAY": f"localhost:{number}"})
            thread.join()


def test_a_server_may_refuse_before_it_is_greeted(monkeypatch: pytest.MonkeyPatch) -> None:
    why = b"Maximum number of clients reached"
    refusal = struct.pack("<BBHHH", 0, len(why), 11, 0, 9) + why.ljust(36)
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def refused(address: tuple[str, int]) -> socket.socket:
            client = socket.create_connection(address)
            with listener.accept()[0] as connection:
                connection.sendall(refusal)
                at_once = struct.pack("ii", 1, 0)
                connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, at_once)
            return client

        monkeypatch.setattr(host_display, "_connected", refused)
        number = listener.getsockname()[1] - addresses.X_PORT
        with pytest.raises(GuestError, match="it refused us: Maximum number of clients"):
            find_host_display({"DISPLAY": f"localhost:{number}"})


def answer_once(listener: socket.socket, answer: bytes) -> None:
    with listener.accept()[0] as connection:
        connection.recv(100)
        connection.sendall(answer)


def test_the_cookie_is_taken_that_names_the_display(tmp_path: Path) -> None:
    def entry(family: int, address: bytes, number: bytes, cookie: bytes) -> bytes:
        fields = (address, number, access.COOKIE_NAME, cookie)
        packed = b"".join(struct.pack(">H", len(field)) + field for field in fields)
        return struct.pack(">H", family) + packed

    here = socket.gethostname().encode()
    file = tmp_path / "authority"
    file.write_bytes(
        entry(256, b"elsewhere", b"7", b"1" * 16)
        + entry(256, here, b"8", b"2" * 16)
        + entry(256, here, b"7", b"3" * 16)
        + entry(0, b"\x0a\0\0\1", b"7", b"4" * 16)
        + b"\1"  # cut off
    )
    environment = {"XAUTHORITY": str(file)}
    assert host_display._find_cookie(environment, "", 7) == b"3" * 16
    assert host_display._find_cookie(environment, "localhost", 8) == b"2" * 16
    assert host_display._find_cookie(environment, "10.0.0.1", 7) == b"4" * 16
    assert host_display._find_cookie(environment, "", 9) is None


@pytest.mark.interop
async def test_the_server_of_viewers_has_no_socket_of_the_network() -> None:
    """With one it could reach services of this machine."""
    with bound_display(DisplayChoice("vnc")) as listeners, trio.fail_after(BOUND):
        assert listeners.vnc is not None
        async with (
            wire.display_wire(Display(800, 600, listeners.vnc), pytest.fail),
            await trio.open_tcp_stream(*listeners.vnc.getsockname()) as viewer,
        ):
            assert await viewer.receive_some(12) == b"RFB 003.008\n"
            server = descendant(os.getpid(), "Xtigervnc")
            held = sockets_of(server.pid)
            assert held
            assert held.isdisjoint(sockets_of_the_network())


def sockets_of(pid: int) -> set[str]:
    """The numbers of the sockets that a process has."""
    names = (str(fd.readlink()) for fd in Path(f"/proc/{pid}/fd").iterdir())
    return {name[8:-1] for name in names if name.startswith("socket:[")}


def sockets_of_the_network() -> set[str]:
    """The numbers of this machine's sockets of TCP over IPv4."""
    return {line.split()[9] for line in Path("/proc/net/tcp").read_text().splitlines()[1:]}


def test_a_unix_socket_that_listens_cannot_be_connected(tmp_path: Path) -> None:
    """The sandboxed server has one: it must not lead to sockets of this machine."""
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as service:
        for sock, name in ((listener, "viewers"), (service, "service")):
            sock.bind(str(tmp_path / name))
            sock.listen()
        with socket.socket(socket.AF_UNIX) as viewer:
            viewer.connect(str(tmp_path / "viewers"))
            accepted, _ = listener.accept()
        for taken in (listener, accepted):
            with taken:
                taken.shutdown(socket.SHUT_RDWR)
                with pytest.raises(OSError, match=r"Invalid argument|already connected"):
                    taken.connect(str(tmp_path / "service"))


ALONE = """
import os, trio
from p2pcloopd.guest.display import wire
from p2pcloopd.guest.display.choice import bound_display, parse_display
from p2pcloopd.guest.display.spec import Display
async def main():
    with bound_display(parse_display("vnc")) as listeners:
        listener = listeners.vnc
        async with wire.display_wire(Display(800, 600, listener), print):
            async with await trio.open_tcp_stream(*listener.getsockname()) as viewer:
                print(os.getuid(), (await viewer.receive_some(12)).decode(), end="")
trio.run(main)
"""


@pytest.mark.interop
@needs_another_user
def test_an_ordinary_user_can_have_a_display() -> None:
    path = f"{CHECKOUT}:{CHECKOUT / 'daemon'}"
    environment = os.environ | {"PYTHONPATH": path, "HOME": "/", "TMPDIR": "/tmp"}
    done = subprocess.run(
        [*AS_ANOTHER_USER, sys.executable, "-c", ALONE],
        env=environment, cwd="/", capture_output=True, text=True, timeout=BOUND, check=False,
    )  # fmt: skip
    user = next(word for word in AS_ANOTHER_USER if word.startswith("--reuid=")).partition("=")[2]
    assert (done.stdout, done.stderr) == (f"{user} RFB 003.008\n", "")


def test_a_title_has_no_secret_of_a_link() -> None:
    assert title_of("/images/desktop.cloop") == "p2pcloop: desktop.cloop"
    assert title_of("magnet:?xt=urn:x&ws=http://a/b#key=c2VjcmV0") == "p2pcloop: b"


async def test_a_taken_over_server_has_few_connections(tmp_path: Path) -> None:
    """Each would take two descriptors of the process that runs the guest."""
    outer, path = tmp_path / "outer", tmp_path / "inner"
    with socket.socket(socket.AF_UNIX) as display, socket.socket(socket.AF_UNIX) as listener:
        for sock, place in ((display, outer), (listener, path)):
            sock.bind(str(place))
            sock.listen(100)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(relay.relay, listener, str(outer))
            with ExitStack() as stack:
                clients = [stack.enter_context(socket.socket(socket.AF_UNIX)) for _ in range(40)]
                for client in clients:
                    client.connect(str(path))
                served = stack.enter_context(
                    trio.socket.fromfd(display.fileno(), display.family, display.type)
                )
                with trio.fail_after(BOUND):
                    for _ in range(relay._MAX_CLIENTS):
                        stack.enter_context((await served.accept())[0])
                    await trio.testing.wait_all_tasks_blocked()
                    with pytest.raises(BlockingIOError):
                        display.accept()
                    # The next one is served when one leaves.
                    clients[0].close()
                    stack.enter_context((await served.accept())[0])
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def vnc_server(path: str) -> AsyncIterator[None]:
    """A server that greets each viewer, asks the next 13 bytes for a password, lets it in whatever
    it answers, and then sends back what it sends."""

    async def serve(viewer: trio.SocketStream) -> None:
        async with viewer:
            await viewer.send_all(b"RFB 003.008\n")
            if len(await viewer.receive_some(13)) == 13:
                await viewer.send_all(b"\1\2" + bytes(16))
                while data := await viewer.receive_some(1 << 10):
                    await viewer.send_all(bytes(4) + data)

    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(path)
        sock.listen(100)
        sock.setblocking(False)
        listener = trio.SocketListener(trio.socket.from_stdlib_socket(sock))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.serve_listeners, serve, [listener])
            yield
            nursery.cancel_scope.cancel()


@asynccontextmanager
async def viewers(path: str) -> AsyncIterator[Callable[[], Awaitable[trio.SocketStream]]]:
    """Connects viewers to a server, over a relay."""
    serve = partial(relay.relay, is_past_handshake=is_past_handshake)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        async with vnc_server(path), AsyncExitStack() as stack, trio.open_nursery() as nursery:
            nursery.start_soon(serve, listener, path)

            async def viewer() -> trio.SocketStream:
                stream = await trio.open_tcp_stream(*listener.getsockname())
                return await stack.enter_async_context(stream)

            yield viewer
            nursery.cancel_scope.cancel()


async def test_viewers_that_are_silent_keep_no_other_out(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with viewers(str(tmp_path / "server")) as viewer:
        silent = [await viewer() for _ in range(relay._MAX_CLIENTS)]
        for number, each in enumerate(silent):
            assert await each.receive_some(100) == b"RFB 003.008\n"
            if number % 2:  # its user does not come to the password
                await each.send_all(b"RFB 003.008\n\2")
                assert len(await each.receive_some(100)) == 18
        begun = trio.current_time()
        with trio.fail_after(2 * relay.HANDSHAKE_SECONDS):
            assert await (await viewer()).receive_some(100) == b"RFB 003.008\n"
            assert [await each.receive_some(100) for each in silent] == [b""] * len(silent)
        assert trio.current_time() - begun <= relay.HANDSHAKE_SECONDS


async def test_a_viewer_past_its_handshake_may_be_silent(
    tmp_path: Path, autojump_clock: MockClock
) -> None:
    async with viewers(str(tmp_path / "server")) as viewer:
        watching = await viewer()
        assert await watching.receive_some(100) == b"RFB 003.008\n"
        await watching.send_all(b"RFB 003.008\n\2")
        assert len(await watching.receive_some(100)) == 18
        for _ in range(2):
            await watching.send_all(bytes(16))
            assert await watching.receive_some(100) == bytes(20)
            await trio.sleep(10 * relay.HANDSHAKE_SECONDS)


@pytest.mark.interop
@pytest.mark.parametrize("in_tls", [False, True])
async def test_xvnc_is_seen_to_have_judged_a_viewer(
    in_tls: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[bool] = []

    def noted(viewer: bytes, server: bytes) -> bool:
        seen.append(is_past_handshake(viewer, server))
        return seen[-1]

    monkeypatch.setattr(wire, "is_past_handshake", noted)
    with socket.create_server(("127.0.0.1", 0)) as listener, trio.fail_after(BOUND):
        display = Display(800, 600, listener)
        async with wire.display_wire(display, pytest.fail):
            viewer = await trio.to_thread.run_sync(asked, listener.getsockname(), in_tls)
            with viewer:
                challenge = await trio.to_thread.run_sync(viewer.recv, 16)
                assert len(challenge) == 16
                assert not any(seen)
                viewer.sendall(access.vnc_des(display.password.encode(), challenge))
                assert await trio.to_thread.run_sync(viewer.recv, 4) == bytes(4)
                assert seen[-1]


def asked(address: tuple[str, int], in_tls: bool) -> socket.socket:
    """A viewer that the server asks for a password next."""
    tls_vnc = (258).to_bytes(4)
    viewer = socket.create_connection(address, BOUND)
    assert viewer.recv(12) == b"RFB 003.008\n"
    viewer.sendall(b"RFB 003.008\n")
    assert viewer.recv(1) == b"\2"
    assert set(viewer.recv(2)) == {2, 19}
    if not in_tls:
        viewer.sendall(b"\2")
        return viewer
    viewer.sendall(b"\x13")
    assert viewer.recv(2) == b"\0\2"
    viewer.sendall(b"\0\2")
    assert viewer.recv(1) == b"\0"
    subtypes = viewer.recv(4 * viewer.recv(1)[0])
    assert tls_vnc in [subtypes[at : at + 4] for at in range(0, len(subtypes), 4)]
    viewer.sendall(tls_vnc)
    assert viewer.recv(1) == b"\1"
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.maximum_version = ssl.TLSVersion.TLSv1_2
    context.set_ciphers("aNULL:@SECLEVEL=0")  # TLSVnc has no certificates, as TLS 1.3 must
    return context.wrap_socket(viewer)


def test_a_clipboard_stays_on_its_side() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        options = servers.find_server(Display(800, 600, listener)).options
    assert {"-AcceptCutText=0", "-SendCutText=0"} <= set(options)
