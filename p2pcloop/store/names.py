"""Short names of the user's own: `short-names` in the home, text, one a line.

    knoppix @<key>/knoppix

They are for the command line of this home and are never passed on. The user defined them, so there
is no question of trust. Commands write them, not p2pcloopd.
"""

from __future__ import annotations

from p2pcloop.errors import FormatError, NotHereError, UsageError, storage_error
from p2pcloop.formats.name import Name, check_label, parse_name
from p2pcloop.formats.named import read_file
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home, replace_file
from p2pcloop.words import tr

MAX_SHORT_NAMES = 4096
_MAX_SIZE = 1 << 20


@dataclass(frozen=True, slots=True)
class ShortNames:
    """The short names of a home."""

    home: Home

    def all(self) -> dict[str, Name]:
        """Each short name with the name that it stands for, in order.

        Raises:
            FormatError: the file is damaged.
            StorageError: the system refused.
        """
        path = self.home.short_names
        try:
            text = read_file(path, _MAX_SIZE + 1).decode()
        except FileNotFoundError:
            return {}
        except UnicodeDecodeError as err:
            raise FormatError(
                tr("{path} is not text: {err}", path=path, err=err), hint="correct or delete it"
            ) from err
        except OSError as err:
            raise storage_error(tr("cannot read {path}", path=path), err) from err
        lines = text.splitlines()
        if len(text) > _MAX_SIZE or len(lines) > MAX_SHORT_NAMES:
            raise FormatError(
                tr(
                    "{path} has more than {max_short_names} names, or too long lines",
                    path=path,
                    max_short_names=MAX_SHORT_NAMES,
                )
            )
        names: dict[str, Name] = {}
        for number, line in enumerate(lines, 1):
            short, _, name = line.partition(" ")
            try:
                names[check_label(short)] = parse_name(name)
            except FormatError as err:
                raise FormatError(
                    tr("{path}, line {number}: {err}", path=path, number=number, err=err),
                    hint="correct or delete that line",
                ) from err
        return dict(sorted(names.items()))

    def find(self, short: str) -> Name | None:
        """The name that a short name stands for, or None. Errors as of `all`."""
        return self.all().get(short)

    def add(self, short: str, name: Name) -> None:
        """Let a short name stand for a name, durably.

        Raises:
            FormatError: it is not of the form of a label, or the file is damaged.
            UsageError: it stands for another name already, or there are too many short names.
            StorageError: the system refused.
        """
        check_label(short)
        _check_free(self.all(), short, name)
        with self.home.changing_short_names():
            names = self.all()
            _check_free(names, short, name)
            if short not in names:
                self._write(names | {short: name})

    def forget(self, short: str) -> None:
        """Remove a short name.

        Raises:
            NotHereError: there is no such short name.
            FormatError, StorageError: as of `all`.
        """
        if short not in self.all():  # before a file is made
            raise NotHereError(
                tr("{short!r} is not a short name here", short=short[:80]),
                hint="`p2pcloop name list` tells them",
            )
        with self.home.changing_short_names():
            names = self.all()
            if names.pop(short, None) is not None:
                self._write(names)

    def _write(self, names: dict[str, Name]) -> None:
        if len(names) > MAX_SHORT_NAMES:
            raise UsageError(
                tr(
                    "there are {max_short_names} short names, and no more may be",
                    max_short_names=MAX_SHORT_NAMES,
                )
            )
        lines = [f"{short} {name}\n" for short, name in sorted(names.items())]
        replace_file(self.home.short_names, "".join(lines).encode())


def _check_free(names: dict[str, Name], short: str, name: Name) -> None:
    if names.get(short, name) != name:
        raise UsageError(
            tr("{short} stands for {names}", short=short, names=names[short]),
            hint=tr("`p2pcloop name forget {short}` first, or choose another", short=short),
        )
