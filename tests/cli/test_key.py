"""`p2pcloop key`: no key is replaced, no secret is told; passphrases come from where they may."""

from __future__ import annotations

import io
import os
import pty
import subprocess
from pathlib import Path

import pytest

from p2pcloop import errors
from p2pcloop.formats import key_file
from p2pcloop.store.keys import load_key
from tests.support.command import Run
from tests.support.programs import P2PCLOOP

GOLDEN = Path(__file__).parents[1] / "data" / "key-v2.key"
PUBLIC = "25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena"


@pytest.fixture(autouse=True)
def _scrypt_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(key_file, "NEW_COST", 10)
    monkeypatch.delenv("P2PCLOOP_PASSPHRASE", raising=False)


def tree(home: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() if path.is_file() else b"" for path in home.rglob("*")}


def test_keys_are_made_listed_and_shown(p2pcloop: Run, home: Path) -> None:
    assert p2pcloop("key", "list", "--json").json == {"keys": []}
    made = p2pcloop("key", "new", "school", "--json").json
    assert made["file"] == str(home / "keys" / "school.key")
    assert made["passphrase"] is False
    seed = load_key(home / "keys", "school").private_bytes_raw().hex()
    for words in (("list",), ("show", "school"), ("show", "school", "--json"), ("list", "--json")):
        ran = p2pcloop("key", *words)
        assert made["key"] in ran.out
        assert seed not in ran.out + ran.err
    assert p2pcloop("key", "list", "--json").json == {"keys": [made]}


def test_no_key_is_replaced(p2pcloop: Run, home: Path, tmp_path: Path) -> None:
    p2pcloop("key", "new", "school")
    (tmp_path / "there").touch()
    before = tree(home)
    for words in (
        ("new", "school"),
        ("import", "school", GOLDEN),
        ("export", "school", tmp_path / "there"),
    ):
        ran = p2pcloop("key", *words)
        assert (ran.code, ran.out) == (errors.UsageError.exit_code, "")
    assert tree(home) == before
    assert (tmp_path / "there").read_bytes() == b""


def test_a_key_goes_from_home_to_home(p2pcloop: Run, home: Path, tmp_path: Path) -> None:
    p2pcloop("key", "new", "school")
    copy = tmp_path / "copy"
    assert p2pcloop("key", "export", "school", copy).out == ""
    assert copy.stat().st_mode & 0o777 == 0o600
    assert p2pcloop("key", "export", "school").out.encode() == copy.read_bytes()
    other = tmp_path / "other"
    assert p2pcloop("key", "import", "mine", copy, "--home", other).code == 0
    key = load_key(home / "keys", "school").private_bytes_raw()
    assert load_key(other / "keys", "mine").private_bytes_raw() == key


def test_a_passphrase_for_scripts(
    p2pcloop: Run, home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert p2pcloop("key", "import", "safe", GOLDEN, "--json").json["key"] == PUBLIC
    assert p2pcloop("key", "export", "safe").out.encode() == GOLDEN.read_bytes()
    again = ("key", "export", "safe", tmp_path / "copy", "--passphrase")
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO()))
    ran = p2pcloop(*again)
    assert ran.code == errors.UsageError.exit_code
    assert "set P2PCLOOP_PASSPHRASE" in ran.err
    monkeypatch.setenv("P2PCLOOP_PASSPHRASE", "wrong")
    before = tree(home)
    ran = p2pcloop(*again)
    assert ran.code == errors.MismatchError.exit_code
    assert ran.err == f"p2pcloop: that is not the passphrase of the key {home}/keys/safe.key\n"
    assert not (tmp_path / "copy").exists()
    assert tree(home) == before
    monkeypatch.setenv("P2PCLOOP_PASSPHRASE", "correct horse")
    assert p2pcloop(*again).code == 0
    text = (tmp_path / "copy").read_bytes()
    assert text != GOLDEN.read_bytes()
    assert key_file.parse_key_text(text, "it").open("correct horse", "it")
    assert p2pcloop("key", "new", "other", "--passphrase", "--json").json["passphrase"] is True
    monkeypatch.setenv("P2PCLOOP_PASSPHRASE", "")
    assert p2pcloop("key", "new", "third", "--passphrase").code == errors.UsageError.exit_code
    assert not (home / "keys" / "third.key").exists()


@pytest.mark.parametrize("name", ["", "../x", "a/b", "A", "x" * 65, "\N{CYRILLIC SMALL LETTER A}"])
def test_bad_names_of_keys(p2pcloop: Run, home: Path, name: str) -> None:
    for words in (("new", name), ("show", name), ("export", name), ("import", name, GOLDEN)):
        ran = p2pcloop("key", *words)
        assert (ran.code, ran.out) == (errors.UsageError.exit_code, "")
        assert "is not a label" in ran.err
    assert list(home.iterdir()) == []


def test_what_is_no_key_is_not_imported(p2pcloop: Run, home: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"no key")
    ran = p2pcloop("key", "import", "mine", tmp_path / "file")
    assert ran.code == errors.FormatError.exit_code
    assert f"{tmp_path}/file is not a key" in ran.err
    assert not list((home / "keys").iterdir())
    assert p2pcloop("key", "import", "mine", tmp_path / "none").code == 7
    assert p2pcloop("key", "show", "mine").code == errors.NotHereError.exit_code


def test_a_key_comes_by_a_pipe_and_a_passphrase_by_a_terminal(home: Path) -> None:
    command = [str(P2PCLOOP), "key"]
    text = GOLDEN.read_bytes()
    subprocess.run([*command, "import", "safe", "-"], input=text, check=True, timeout=120)
    ours, theirs = pty.openpty()
    try:
        with subprocess.Popen(
            [*command, "export", "safe", str(home / "copy"), "--passphrase"],
            stdin=theirs,
            stdout=subprocess.PIPE,
            stderr=theirs,
            env=os.environ,
            start_new_session=True,
        ) as process:
            try:
                seen = b""
                new = b"new passphrase of the copy of the key safe: "
                for prompt in (b"passphrase of the key", new, b"epeat"):
                    while prompt not in seen:
                        seen += os.read(ours, 1000)
                    seen = b""
                    os.write(ours, b"correct horse\n")
                assert process.wait(60) == 0
            finally:
                process.kill()
    finally:
        os.close(ours)
        os.close(theirs)
    assert b"correct horse" not in seen
    key = key_file.parse_key_text((home / "copy").read_bytes(), "it")
    assert key.open("correct horse", "it")
