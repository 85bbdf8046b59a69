"""`p2pcloop block`: whom it lets in, and what it refuses before anything is opened or started."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from p2pcloop.errors import NotHereError, P2pcloopError, UsageError
from p2pcloopd.block.nbd_listen import check_nbd_address, is_loopback
from p2pcloopd.block.nbd_tls import NbdTls
from p2pcloopd.commands.block import command
from tests.support.certificates import Authority


def refused(home: Path, *arguments: str | Path) -> P2pcloopError:
    """What the command refuses; the home is not even made."""
    words = [*map(str, arguments), "--home", str(home)]
    result = CliRunner().invoke(command, words)
    assert isinstance(result.exception, P2pcloopError), result
    assert not home.exists()
    return result.exception


@pytest.mark.parametrize("address", ["127.0.0.1:10809", "[::1]:0", "localhost:1", "0.0.0.0:10809"])
def test_tcp_needs_tls_or_a_word(tmp_path: Path, address: str) -> None:
    error = refused(tmp_path / "home", "x.img", "--nbd", address)
    assert isinstance(error, UsageError)
    assert address in str(error)
    assert error.hint is not None
    for way in ("unix:", "--tls-certificates", "--insecure"):
        assert way in error.hint
    assert check_nbd_address(address, tls=True, insecure=False) is None
    warning = check_nbd_address(address, tls=False, insecure=True)
    assert warning is not None
    assert address in warning
    assert ("other machines" in warning) == address.startswith("0")


def test_a_unix_socket_needs_neither() -> None:
    assert check_nbd_address("unix:/tmp/s", tls=False, insecure=False) is None


@pytest.mark.parametrize(
    ("host", "loopback"),
    [
        *(("127.0.0.1", True), ("127.9.9.9", True), ("::1", True), ("localhost", True)),
        *(("0.0.0.0", False), ("::", False), ("192.168.1.2", False), ("host.example", False)),
    ],
)
def test_what_is_seen_from_nowhere_else(host: str, loopback: bool) -> None:
    assert is_loopback(host) == loopback


@pytest.mark.parametrize(
    "arguments",
    [
        ("--nbd", "unix:s", "--tls-verify-peer"),
        ("--vhost-user", "s", "--insecure"),
        ("--vhost-user", "s", "--tls-certificates", "."),
        ("--nbd", "127.0.0.1", "--insecure"),
    ],
)
def test_options_that_do_not_go_together(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    assert isinstance(refused(tmp_path / "home", "x.img", *arguments), UsageError)


def test_certificates_that_are_of_no_use(tmp_path: Path) -> None:
    folder = tmp_path / "pki"
    block = ("x.img", "--nbd", "127.0.0.1:0", "--tls-certificates", folder)
    error = refused(tmp_path / "home", *block)
    assert isinstance(error, NotHereError)
    assert str(folder / "server-cert.pem") in str(error)
    Authority("ours").write(folder, "server")
    NbdTls(folder).context()
    NbdTls(folder, verify_peer=True).context()
    (folder / "ca-cert.pem").write_text("junk")
    error = refused(tmp_path / "home", *block, "--tls-verify-peer")
    assert "ca-cert.pem" in str(error)
    (folder / "server-key.pem").write_bytes(
        (Authority("b").write(tmp_path / "other", "server") / "server-key.pem").read_bytes()
    )
    assert isinstance(refused(tmp_path / "home", *block), UsageError)
