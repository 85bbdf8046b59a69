"""The user's signing keys: `keys/<name>.key`, mode 0600, one Ed25519 key (RFC 8032) each.

Beside an imported key there is an empty `<name>.imported`: the key may have signed elsewhere.
Beside a key that was made here there is an empty `<name>.<start of the public key>-<inode of the
key's file>-<inode of the home>.made`. It fits neither a copy of the file nor one that was moved
into another home, which would be imported keys without a mark.

For the format see p2pcloop/formats/key_file.py. The file holds the public key, too, so that a
damaged seed is noticed: it would be another key, and no new version of the images published with
the old one could be signed.
"""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.errors import NotHereError, UsageError, storage_error
from p2pcloop.formats.key_file import MAX_KEY_TEXT, KeyText, format_key_text, parse_key_text
from p2pcloop.formats.name import check_label
from p2pcloop.formats.named import sync_names
from p2pcloop.words import tr

DEFAULT_KEY = "default"
_SUFFIX = ".key"
_IMPORTED = ".imported"
_MADE = ".made"
_NO_LINKS = tr("its file system knows no hard links: choose another --home, on ext4 for example")

AskPassphrase = Callable[[str], str]
"""Returns the passphrase of the key that it is given, or raises a `P2pcloopError`."""


def load_or_create_key(
    keys_dir: Path, name: str = DEFAULT_KEY, ask: AskPassphrase | None = None
) -> Ed25519PrivateKey:
    """Return the key of that name; the first use makes it, durably and without a passphrase.

    Two processes that do this at the same time get the same key. A file is never replaced.

    Args:
        keys_dir: the directory of the keys; made (mode 0700) if it is missing.
        name: of the form of a label (`check_label`).
        ask: called for a key that is protected, and for no other.

    Raises:
        FormatError: the name is not of that form, or the file is damaged.
        MismatchError: the passphrase is another one.
        UsageError: other users can read the file, or it belongs to another user; or it is
            protected, and `ask` is None.
        StorageError: the system refused.
    """
    path = key_path(keys_dir, name)
    if not path.exists():
        _put(path, format_key_text(Ed25519PrivateKey.generate(), None), made=True)
    return _open(path, ask)


def load_key(keys_dir: Path, name: str, ask: AskPassphrase | None = None) -> Ed25519PrivateKey:
    """As `load_or_create_key`, but a missing key is a `NotHereError`."""
    path = key_path(keys_dir, name)
    if not path.exists():
        raise NotHereError(
            tr("there is no key {name!r}", name=name),
            hint=tr("make it with `p2pcloop key new {name}`", name=name),
        )
    return _open(path, ask)


def read_key(keys_dir: Path, name: str) -> KeyText:
    """The text of a key, for which no passphrase is needed; errors as of `load_key`."""
    path = key_path(keys_dir, name)
    if not path.exists():
        raise NotHereError(
            tr("there is no key {name!r}", name=name), hint="`p2pcloop key list` tells which are"
        )
    return _read(path)


def list_keys(keys_dir: Path) -> list[str]:
    """The names of the keys, in order.

    Raises:
        StorageError: the system refused.
    """
    try:
        found = [path.name for path in keys_dir.iterdir()]
    except FileNotFoundError:
        return []
    except OSError as err:
        raise storage_error(tr("cannot read {keys_dir}", keys_dir=keys_dir), err) from err
    return sorted(
        name.removesuffix(_SUFFIX)
        for name in found
        if name.endswith(_SUFFIX) and not name.startswith(".")
    )


def name_of_key(keys_dir: Path, public: bytes, only: str | None = None) -> str | None:
    """The name of our key with this public half, 32 bytes; None if there is none.

    Args:
        only: no other key is looked at; it must be there.

    Errors as of `read_key`.
    """
    names = list_keys(keys_dir) if only is None else [only]
    return next((name for name in names if read_key(keys_dir, name).public == public), None)


def our_keys(keys_dir: Path) -> set[bytes]:
    """The public halves of all keys, 32 bytes each. Errors as of `read_key`."""
    return {read_key(keys_dir, name).public for name in list_keys(keys_dir)}


def store_key(keys_dir: Path, name: str, text: bytes, *, imported: bool = False) -> KeyText:
    """Keep a new or an imported key under a name that is free.

    Args:
        imported: it may have signed versions that are not known here (`was_imported`).

    Raises:
        FormatError: the name is no label, or the text no key.
        UsageError: there is a key of that name, which is kept.
        StorageError: the system refused.
    """
    path = key_path(keys_dir, name)
    key = parse_key_text(text, tr("what is to be imported"))
    if imported and not path.exists():
        mark_imported(keys_dir, name)  # first, so that it is never taken for one made here
    if not _put(path, text, made=not imported):
        raise UsageError(
            tr("there is a key {name!r} already, and it is never replaced", name=name),
            hint="give another name, or move the file away yourself",
        )
    return key


def was_imported(keys_dir: Path, name: str) -> bool:
    """Whether the key of that name was made elsewhere, where it may have signed."""
    return key_path(keys_dir, name).with_suffix(_IMPORTED).exists()


def mark_imported(keys_dir: Path, name: str) -> None:
    """Note that the key of that name was made elsewhere.

    Raises:
        StorageError: the system refused.
    """
    _put(key_path(keys_dir, name).with_suffix(_IMPORTED), b"")


def was_made_here(keys_dir: Path, name: str) -> bool:
    """Whether the file of the key of that name is the one that was made in this home, and no copy.

    A home that is moved as a whole keeps its inode, unless it comes to another file system: then
    its keys are copies. Files of keys that were made before November 2026 do not tell. Errors as of
    `read_key`.
    """
    path = key_path(keys_dir, name)
    return _made_mark(path, read_key(keys_dir, name), path.stat().st_ino).exists()


def _made_mark(path: Path, key: KeyText, inode: int) -> Path:
    home = path.parent.parent.stat().st_ino
    return path.with_suffix(f".{key.public.hex()[:16]}-{inode}-{home}{_MADE}")


def key_path(keys_dir: Path, name: str) -> Path:
    """The path of the key of a name; it need not exist.

    Raises:
        FormatError: the name is not of the form of a label.
    """
    return keys_dir / f"{check_label(name)}{_SUFFIX}"


def _put(path: Path, text: bytes, *, made: bool = False) -> bool:
    """Make a key file, whole and durable, if no file has that name; return whether none had.

    Args:
        made: mark it as made here.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        descriptor, hidden = tempfile.mkstemp(prefix=".new-", dir=path.parent)  # mode 0600
        try:
            with open(descriptor, "wb") as file:
                file.write(text)
                file.flush()
                os.fsync(descriptor)
            with _marked(path, text, hidden) if made else nullcontext():
                os.link(hidden, path)
        except FileExistsError:
            return False
        finally:
            Path(hidden).unlink()
        sync_names(path.parent)
    except OSError as err:
        hint = _NO_LINKS if err.errno in (errno.EPERM, errno.ENOSYS, errno.EOPNOTSUPP) else None
        raise storage_error(tr("cannot make the key {path}", path=path), err, hint=hint) from err
    return True


@contextmanager
def _marked(path: Path, text: bytes, hidden: str) -> Iterator[None]:
    """Mark a key as made here, before it gets its name in this context: as soon as others see the
    key, they see the mark. Where it does not get its name the mark goes."""
    mark = _made_mark(path, parse_key_text(text, str(path)), Path(hidden).stat().st_ino)
    mark.touch(0o600)
    try:
        yield
    except BaseException:
        mark.unlink()
        raise


def _open(path: Path, ask: AskPassphrase | None) -> Ed25519PrivateKey:
    key = _read(path)
    what = tr("the key {path}", path=path)
    if not key.protected:
        return key.open(None, what)
    if ask is None:
        raise UsageError(tr("{what} is protected by a passphrase", what=what))
    return key.open(ask(what), what)


def _read(path: Path) -> KeyText:
    try:
        # O_NONBLOCK: a FIFO of that name must not block.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        try:
            status = os.fstat(descriptor)
            text = os.read(descriptor, MAX_KEY_TEXT) if stat.S_ISREG(status.st_mode) else b""
        finally:
            os.close(descriptor)
    except OSError as err:
        raise storage_error(tr("cannot read the key {path}", path=path), err) from err
    if status.st_uid != os.geteuid():
        raise UsageError(
            tr("the key {path} belongs to another user", path=path), hint="choose another --home"
        )
    if status.st_mode & (stat.S_IRWXG | stat.S_IRWXO):
        raise UsageError(
            tr("the key {path} can be read or written by other users", path=path),
            hint=tr("chmod 600 {path}", path=path),
        )
    return parse_key_text(text, str(path))
