"""Keys of others whose states may run here: `trusted-keys` in the home, text, one `@<key>` a line.

A state is a machine of another user that goes on here, with all that ran in it. A user says once
for each key that this may be. Our own keys need no line. Commands write the file, not p2pcloopd.
"""

from __future__ import annotations

from p2pcloop.errors import FormatError, NotHereError, UsageError, storage_error
from p2pcloop.formats.name import format_key, parse_key
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home, replace_file
from p2pcloop.words import tr

MAX_TRUSTED = 4096
_MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class TrustedKeys:
    """The keys that a home trusts with states."""

    home: Home

    def all(self) -> set[bytes]:
        """The keys, 32 bytes each.

        Raises:
            FormatError: the file is damaged.
            StorageError: the system refused.
        """
        path = self.home.trusted_keys
        try:
            with path.open("rb") as file:
                data = file.read(_MAX_SIZE + 1)
        except FileNotFoundError:
            return set()
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=path), err) from err
        lines = data.decode(errors="replace").splitlines()
        if len(data) > _MAX_SIZE or len(lines) > MAX_TRUSTED:
            raise FormatError(
                tr(
                    "{path} has more than {max_trusted} keys, or too long lines",
                    path=path,
                    max_trusted=MAX_TRUSTED,
                )
            )
        keys = set()
        for number, line in enumerate(lines, 1):
            try:
                keys.add(read_trusted(line))
            except FormatError as err:
                raise FormatError(
                    tr("{path}, line {number}: {err}", path=path, number=number, err=err),
                    hint="correct or delete that line",
                ) from err
        return keys

    def add(self, key: bytes) -> None:
        """Trust a key from now on, durably.

        Raises:
            UsageError: there are too many.
            FormatError, StorageError: as of `all`.
        """
        with self.home.changing_trusted_keys():
            self._write(self.all() | {key})

    def forget(self, key: bytes) -> None:
        """Trust a key no more.

        Raises:
            NotHereError: it is not trusted.
            FormatError, StorageError: as of `all`.
        """
        if key not in self.all():  # before a file is made
            raise NotHereError(
                tr("@{key} is not trusted here", key=format_key(key)),
                hint="`p2pcloop key trust` lists them",
            )
        with self.home.changing_trusted_keys():
            self._write(self.all() - {key})

    def _write(self, keys: set[bytes]) -> None:
        if len(keys) > MAX_TRUSTED:
            raise UsageError(
                tr(
                    "there are {max_trusted} trusted keys, and no more may be",
                    max_trusted=MAX_TRUSTED,
                )
            )
        lines = sorted(f"@{format_key(key)}\n" for key in keys)
        replace_file(self.home.trusted_keys, "".join(lines).encode())


def read_trusted(text: str) -> bytes:
    """Read a key as users give it: `@<key>`, or a name, of which the key counts.

    Raises:
        FormatError: it is none, or only the beginning of one: anybody can make a key that begins
            like another one.
    """
    key = text.removeprefix("@").partition("/")[0]
    try:
        return parse_key(key)
    except FormatError as err:
        raise FormatError(
            err.message,
            hint="give all of it, as @<key> of 52 characters: others can make a key that begins"
            " like this one",
        ) from err
