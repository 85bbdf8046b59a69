"""The user's signing keys: `keys/<name>.key`, mode 0600, one Ed25519 key (RFC 8032) each.

    p2pcloop-key 1 ed25519
    seed <64 hexadecimal digits>
    public <52 characters, as in names>

The public key is there so that a damaged seed is noticed: it would be another key, and all that
was published under this one could not be carried on.
"""

from __future__ import annotations

import os
import re
import stat
import tempfile
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import FormatError, UsageError, storage_error
from p2pcloop.formats.name import check_label, format_key
from p2pcloop.store.home import sync_directory

_TEXT = re.compile(rb"p2pcloop-key 1 ed25519\nseed ([0-9a-f]{64})\npublic ([a-z2-7]{52})\n")
_MAX_SIZE = 256  # more than a key file has: a longer one does not match


def load_or_create_key(keys_dir: Path, name: str = "default") -> Ed25519PrivateKey:
    """Return the key of that name; the first use makes it, durably.

    Whoever comes at the same time gets the same key. A file that is there is never replaced.

    Args:
        keys_dir: the directory of the keys; made (mode 0700) where it is missing.
        name: of the form of a label (`check_label`).

    Raises:
        FormatError: the name is not of that form, or the file is damaged.
        UsageError: others may read the file, or it belongs to another user.
        StorageError: the system refused.
    """
    path = keys_dir / f"{check_label(name)}.key"
    if not path.exists():
        _create(path)
    return _load(path)


def _create(path: Path) -> None:
    """Make a key under a name that appears whole, durable, and only if it is still free."""
    text = _format(Ed25519PrivateKey.generate())
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, hidden = tempfile.mkstemp(prefix=".new-", dir=path.parent)  # mode 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            try:
                os.link(hidden, path)
            except FileExistsError:
                return  # somebody else was first: theirs is the key
        finally:
            Path(hidden).unlink()
        sync_directory(path.parent)
    except OSError as err:
        raise storage_error(f"cannot make the key {path}", err) from err


def _load(path: Path) -> Ed25519PrivateKey:
    try:
        # O_NONBLOCK: a FIFO by that name must not hang the open.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            text = os.read(descriptor, _MAX_SIZE) if stat.S_ISREG(status.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as err:
        raise storage_error(f"cannot read the key {path}", err) from err
    if status.st_uid != os.geteuid():
        raise UsageError(f"the key {path} belongs to another user", hint="choose another --home")
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            f"the key {path} can be read or written by other users", hint=f"chmod 600 {path}"
        )
    return _parse(text, path)


def _format(key: Ed25519PrivateKey) -> bytes:
    seed, public = key.private_bytes_raw(), key.public_key().public_bytes_raw()
    return f"p2pcloop-key 1 ed25519\nseed {seed.hex()}\npublic {format_key(public)}\n".encode()


def _parse(text: bytes, path: Path) -> Ed25519PrivateKey:
    """Check a key file whole; what it holds is never put into a message."""
    hint = "put a copy of it back; a new key would be a new name"
    found = _TEXT.fullmatch(text)
    if found is None:
        raise FormatError(f"{path} is not a key of p2pcloop, or is damaged", hint=hint)
    key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(found[1].decode()))
    if format_key(key.public_key().public_bytes_raw()).encode() != found[2]:
        raise FormatError(f"{path} is damaged: its seed is not that of its public key", hint=hint)
    return key
