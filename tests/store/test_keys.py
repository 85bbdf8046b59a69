"""The user's keys: made once, kept private, and never silently another one."""

from __future__ import annotations

import errno
import os
import shutil
import threading
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import FormatError, MismatchError, NotHereError, StorageError, UsageError
from p2pcloop.formats.key_file import format_key_text
from p2pcloop.store.keys import (
    list_keys,
    load_key,
    load_or_create_key,
    read_key,
    store_key,
    was_imported,
    was_made_here,
)

PROTECTED = Path(__file__).parents[1] / "data" / "key-v2.key"

# RFC 8032, section 7.1, test 1
SEED = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
PUBLIC = bytes.fromhex("d75a980182b10ab7d54bfed3c964073a0ee172f3daa62325af021a68f707511a")
TEXT = (
    b"p2pcloop-key 1 ed25519\n"
    b"seed 9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60\n"
    b"public 25njqamcweflpvkl73j4szahhihoc4xt3ktcgjnpaingr5yhkena\n"
)


@pytest.fixture
def keys(tmp_path: Path) -> Path:
    return tmp_path / "home" / "keys"


def put(keys: Path, text: bytes, mode: int = 0o600) -> Path:
    keys.mkdir(parents=True, exist_ok=True)
    path = keys / "default.key"
    path.write_bytes(text)
    path.chmod(mode)
    return path


def test_first_use_makes_a_private_key_that_stays(keys: Path) -> None:
    old = os.umask(0)
    try:
        key = load_or_create_key(keys)
    finally:
        os.umask(old)
    again = load_or_create_key(keys)
    assert again.private_bytes_raw() == key.private_bytes_raw()
    assert [path.name for path in keys.glob("*.key")] == ["default.key"]
    assert (keys / "default.key").stat().st_mode & 0o777 == 0o600
    assert keys.stat().st_mode & 0o777 == 0o700
    again.public_key().verify(key.sign(b"message"), b"message")
    other = load_or_create_key(keys, "other")
    assert other.private_bytes_raw() != key.private_bytes_raw()


def test_a_known_file_is_read(keys: Path) -> None:
    put(keys, TEXT)
    key = load_or_create_key(keys)
    assert key.private_bytes_raw() == SEED
    assert key.public_key().public_bytes_raw() == PUBLIC


def test_any_changed_character_is_noticed_and_nothing_is_told(keys: Path) -> None:
    for at in range(len(TEXT)):
        bad = bytearray(TEXT)
        bad[at] ^= 1
        path = put(keys, bytes(bad))
        with pytest.raises(FormatError) as caught:
            load_or_create_key(keys)
        assert str(path) in str(caught.value)
        assert SEED.hex()[:8] not in f"{caught.value} {caught.value.hint}"
        assert path.read_bytes() == bad


@pytest.mark.parametrize("text", [b"", TEXT[:-1], TEXT + b"\n", TEXT.upper(), b"a" * 10_000_000])
def test_other_files_are_refused_and_left_alone(keys: Path, text: bytes) -> None:
    path = put(keys, text)
    with pytest.raises(FormatError):
        load_or_create_key(keys)
    assert path.read_bytes() == text


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602, 0o610, 0o601, 0o644, 0o666])
def test_a_key_that_others_may_touch_is_refused(keys: Path, mode: int) -> None:
    path = put(keys, TEXT, mode)
    with pytest.raises(UsageError) as caught:
        load_or_create_key(keys)
    assert caught.value.hint == f"chmod 600 {path}"
    path.chmod(0o600)
    load_or_create_key(keys)


@pytest.mark.parametrize("name", ["", ".", "..", "../x", "a/b", "A", "a b", "a\n", "x" * 65, "é"])
def test_bad_names_are_refused_before_the_disk_is_touched(keys: Path, name: str) -> None:
    with pytest.raises(FormatError):
        load_or_create_key(keys, name)
    assert not keys.exists()


def test_what_is_no_file_is_refused(keys: Path) -> None:
    keys.mkdir(parents=True)
    os.mkfifo(keys / "pipe.key", 0o600)
    with pytest.raises(FormatError):
        load_or_create_key(keys, "pipe")
    (keys / "folder.key").mkdir(mode=0o700)
    with pytest.raises(FormatError):
        load_or_create_key(keys, "folder")
    (keys / "file").touch()
    with pytest.raises(StorageError):
        load_or_create_key(keys / "file")


def test_all_who_come_first_get_one_key(keys: Path) -> None:
    start, found = threading.Barrier(8), []

    def come() -> None:
        start.wait(60)
        found.append(load_or_create_key(keys).private_bytes_raw())

    threads = [threading.Thread(target=come) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(found) == 8
    assert len(set(found)) == 1
    assert [path.name for path in keys.glob("*.key")] == ["default.key"]
    assert len(list(keys.iterdir())) == 2, "the key and its mark"
    assert was_made_here(keys, "default")


def test_a_copy_of_a_key_was_not_made_there(keys: Path, tmp_path: Path) -> None:
    store_key(keys, "old.one", TEXT)
    assert was_made_here(keys, "old.one")
    copied = shutil.copytree(keys, tmp_path / "copied")
    assert not was_made_here(copied, "old.one")
    store_key(keys, "given", TEXT, imported=True)
    assert was_imported(keys, "given")
    assert not was_made_here(keys, "given")


def test_a_key_that_was_moved_into_another_home_was_not_made_there(keys: Path) -> None:
    store_key(keys, "old.one", TEXT)
    moved = keys.parent.rename(keys.parent.with_name("moved"))
    assert was_made_here(moved / "keys", "old.one"), "all of the home"
    other = keys.parent.with_name("other")
    other.mkdir()
    (moved / "keys").rename(other / "keys")
    assert not was_made_here(other / "keys", "old.one")
    (other / "keys").rename(moved / "keys")
    assert was_made_here(moved / "keys", "old.one"), "back again"


def test_a_full_disk_leaves_no_half_key(keys: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(StorageError) as caught:
            load_or_create_key(keys)
    assert caught.value.errno == errno.ENOSPC
    assert list(keys.iterdir()) == []
    load_or_create_key(keys)


def test_a_file_system_without_hard_links_is_named(
    keys: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(errno.EPERM, os.strerror(errno.EPERM))

    monkeypatch.setattr(os, "link", refuse)
    with pytest.raises(StorageError) as caught:
        store_key(keys, "school", TEXT)
    assert "knows no hard links" in (caught.value.hint or "")
    assert list(keys.iterdir()) == []


def test_a_key_is_kept_once_and_never_replaced(keys: Path) -> None:
    key = store_key(keys, "school", TEXT)
    assert key.public == PUBLIC
    assert load_key(keys, "school").private_bytes_raw() == SEED
    other = format_key_text(Ed25519PrivateKey.generate(), None)
    for text in (TEXT, other):
        with pytest.raises(UsageError, match="never replaced"):
            store_key(keys, "school", text)
    assert (keys / "school.key").read_bytes() == TEXT
    assert (keys / "school.key").stat().st_mode & 0o777 == 0o600
    assert list_keys(keys) == ["school"]


@pytest.mark.parametrize("text", [b"", TEXT[:-1], TEXT.replace(b"9d61", b"9d62"), b"x" * 600])
def test_what_is_no_key_is_not_kept(keys: Path, text: bytes) -> None:
    with pytest.raises(FormatError):
        store_key(keys, "school", text)
    assert list_keys(keys) == []
    assert not keys.exists()


def test_only_a_protected_key_is_asked_for(keys: Path) -> None:
    put(keys, TEXT)
    store_key(keys, "safe", PROTECTED.read_bytes())
    asked: list[str] = []

    def ask(what: str) -> str:
        asked.append(what)
        return "correct horse"

    assert load_or_create_key(keys, ask=ask).private_bytes_raw() == SEED
    assert load_or_create_key(keys, "new", ask).sign(b"")
    assert asked == []
    for load in (load_key, load_or_create_key):
        assert load(keys, "safe", ask).private_bytes_raw() == SEED
    assert asked == [f"the key {keys}/safe.key"] * 2
    with pytest.raises(UsageError, match="protected by a passphrase"):
        load_or_create_key(keys, "safe")
    with pytest.raises(MismatchError, match="not the passphrase"):
        load_key(keys, "safe", lambda _: "wrong")
    assert read_key(keys, "safe").public == PUBLIC
    assert list_keys(keys) == ["default", "new", "safe"]


def test_a_key_that_is_not_there(keys: Path) -> None:
    assert list_keys(keys) == []
    for load in (load_key, read_key):
        with pytest.raises(NotHereError, match="there is no key 'school'"):
            load(keys, "school")
    assert not keys.exists()


def test_what_is_being_made_is_not_listed(keys: Path) -> None:
    put(keys, TEXT)
    (keys / ".new-abc").touch()
    (keys / ".hidden.key").touch()
    (keys / "readme").touch()
    assert list_keys(keys) == ["default"]
