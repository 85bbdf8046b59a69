"""Completion of a command line without click: a shell waits for it at each press of Tab.

click's own completion loads the module of the command that is typed, and all that this needs: up to
0.3 s. A package of a distribution brings a table instead, made of click's commands when it was
built (`make_table`). The protocol is click's, whose scripts for the shells ask. What the table does
not decide is left to click.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from p2pcloop.store.default_root import default_root

if TYPE_CHECKING:
    import click

NamesOf = Callable[[str, str], "list[Offer]"]
"""Offers names of a kind (`KINDS`) that go on from what was typed."""

KINDS = ("image", "ref", "guest", "running")
"""Names that are offered from the home: of images; of images, or files; of guests; of those that
run."""

SHOWN_KEY = 8
"""Characters of a key where a name is short: one of a million keys begins as another does."""

TABLE = Path(__file__).with_name("completion.json")
"""Where a package has the table; there is none in a checkout."""

VARIABLE = "_P2PCLOOP_COMPLETE"
_QUOTES = frozenset("'\"\\$`")
"""Words with one of these are not read as they are typed."""


class Offer(NamedTuple):
    """One way to go on: a word, or that files ("file") or folders ("dir") be offered."""

    kind: str
    value: str
    help: str | None = None


def make_table(context: click.Context) -> dict[str, Any]:
    """What can be typed behind a command, as plain data: its commands, options and arguments."""
    import click as library  # noqa: PLC0415  this module must load without it

    command = context.command
    options, arguments = [], []
    for parameter in command.get_params(context):
        if isinstance(parameter, library.Argument):
            arguments.append([parameter.nargs, _values(parameter)])
        elif isinstance(parameter, library.Option) and not parameter.hidden:
            takes = not (parameter.is_flag or parameter.count)
            names = [*parameter.opts, *parameter.secondary_opts]
            values = _values(parameter) if takes else None
            about = " ".join((parameter.help or "").split())
            options.append([parameter.name, names, takes, parameter.multiple, values, about])
    table: dict[str, Any] = {"options": options, "arguments": arguments}
    if isinstance(command, library.Group):
        inner = {}
        for name in command.list_commands(context):
            found = command.get_command(context, name)
            assert found is not None
            below = library.Context(found, parent=context, info_name=name)
            [offered] = [i for i in command.shell_complete(context, name) if i.value == name]
            inner[name] = make_table(below) | {"help": offered.help}
        table["commands"] = inner
    return table


def _values(parameter: click.Parameter) -> Any:  # noqa: ANN401  plain data
    """What a parameter's value may be: a list of words, "file", "dir", one of `KINDS`, or None for
    any."""
    import click as library  # noqa: PLC0415  see above

    kind = parameter.type
    if kind.name in KINDS:
        return kind.name
    if isinstance(kind, library.Choice):
        return list(kind.choices)
    if isinstance(kind, library.Path):
        return "dir" if kind.dir_okay and not kind.file_okay else "file"
    return "file" if isinstance(kind, library.File) else None


def complete(
    table: Mapping[str, Any], words: Sequence[str], begun: str, names: NamesOf
) -> list[Offer] | None:
    """What may come next on a command line.

    Args:
        table: of the program.
        words: those before the one that is typed, without the program's name.
        begun: the word that is typed, as far as it goes.
        names: of images and guests.

    Returns:
        The offers, or None where click has to tell.
    """
    place = _Place(table)
    if not all(place.pass_word(word) for word in words):
        return None
    if place.waiting is not None:
        return _offers(place.waiting[0], begun, names)
    if begun.startswith("-"):
        return None if "=" in begun else list(place.options(begun))
    if "commands" in place.table:
        inner = place.table["commands"].items()
        return [Offer("plain", name, at["help"]) for name, at in inner if name.startswith(begun)]
    arguments = place.table["arguments"]
    for many, values in arguments:
        if many < 0 or place.arguments < many:
            return _offers(values, begun, names)
        place.arguments -= many
    return []


class _Place:
    """Where a command line has come to.

    Attributes:
        table: of the command.
        arguments: how many were given so far.
        waiting: what the option before takes as its value, in a list; None: it takes none.
    """

    def __init__(self, table: Mapping[str, Any]) -> None:
        self.table = table
        self.arguments = 0
        self.waiting: list[Any] | None = None
        self._used: set[str] = set()

    def pass_word(self, word: str) -> bool:
        """Go on behind a word; return whether the table knows what it means."""
        if self.waiting is not None:
            self.waiting = None
        elif word == "--" or "=" in word:
            return False
        elif word.startswith("-") and len(word) > 1:
            return self._pass_option(word)
        elif "commands" in self.table:
            if word not in self.table["commands"]:
                return False
            self.table, self._used = self.table["commands"][word], set()
        else:
            self.arguments += 1
        return True

    def _pass_option(self, word: str) -> bool:
        for parameter, names, takes, _, values, _ in self.table["options"]:
            if word in names:
                self._used.add(parameter)
                self.waiting = [values] if takes else None
                return True
        return False

    def options(self, begun: str) -> Iterator[Offer]:
        """The options that may be given now."""
        for parameter, names, _, multiple, _, about in self.table["options"]:
            if multiple or parameter not in self._used:
                yield from (Offer("plain", name, about) for name in names if name.startswith(begun))


def _offers(values: Any, begun: str, names: NamesOf) -> list[Offer]:  # noqa: ANN401  see `_values`
    if values in KINDS:
        return names(values, begun)
    if isinstance(values, str):
        return [Offer(values, begun)]
    return [Offer("plain", value) for value in values or () if value.startswith(begun)]


def names_of(root: Path) -> NamesOf:
    """The names that a home knows, from its files as they are: nothing is verified for an offer."""

    def offer(kind: str, begun: str) -> list[Offer]:
        if kind in ("guest", "running"):
            found = _guests(root / "guests", running=kind == "running")
            return [Offer("plain", name) for name in found if name.startswith(begun)]
        offers = [Offer("plain", name) for name in _images(root, begun)]
        return [*offers, Offer("file", begun)] if kind == "ref" else offers

    return offer


def _guests(folder: Path, *, running: bool) -> list[str]:
    file = "control.sock" if running else "record.json"
    try:
        return sorted(name for name in os.listdir(folder) if (folder / name / file).exists())  # noqa: PTH208  names alone
    except OSError:
        return []


def _images(root: Path, begun: str) -> Iterator[str]:
    """Short names, and names with as much of the key as was typed, or a few characters."""
    from p2pcloop.store.name_list import list_names, list_short_names  # noqa: PLC0415  not for options

    for short in list_short_names(root / "short-names"):
        if short.startswith(begun):
            yield short
    typed_key, slash, _ = begun.partition("/")
    for name in list_names(root / "names.msgpack"):
        key, _, label = name.partition("/")
        shown = typed_key if slash else key[: max(SHOWN_KEY + 1, len(begun))]
        if key.startswith(shown) and f"{shown}/{label}".startswith(begun):
            yield f"{shown}/{label}"


def home_of(words: Sequence[str], environment: Mapping[str, str]) -> Path:
    """The home that a command line is about, as `Home.at` has it."""
    if "--home" in words[:-1]:
        return Path(words[words.index("--home") + 1]).expanduser()
    if given := environment.get("P2PCLOOP_HOME"):
        return Path(given).expanduser()
    return Path(default_root(environment)).expanduser()


def answer_shell(table: Path = TABLE, environment: Mapping[str, str] = os.environ) -> bool:
    """Answer a shell that asks for completion; return whether that is done."""
    shell = environment.get(VARIABLE, "").removesuffix("_complete")
    line = environment.get("COMP_WORDS", "")
    if shell not in _FORMATS or _QUOTES & set(line) or not table.exists():
        return False
    words = line.split()
    begun, before = _begun(shell, words, environment.get("COMP_CWORD", ""))
    cut = ""
    if shell == "bash":  # which takes `@` for a word of its own, and replaces what is behind it
        begun, before, cut = _joined(begun, before)
    names = names_of(home_of(before, environment))
    offers = complete(json.loads(table.read_bytes()), before[1:], begun, names)
    if offers is None:
        return False
    for offer in offers:
        print(_FORMATS[shell](offer._replace(value=offer.value.removeprefix(cut))))
    return True


def _joined(begun: str, before: list[str]) -> tuple[str, list[str], str]:
    """The word that is typed, those before it, and what bash does not want to hear again."""
    joined: list[str] = []
    for word in before:
        if joined[-1:] == ["@"]:
            joined[-1] += word
        else:
            joined.append(word)
    if joined[-1:] == ["@"]:
        return f"@{begun}", joined[:-1], "@"
    return begun, joined, "@" if begun == "@" else ""


def _begun(shell: str, words: list[str], place: str) -> tuple[str, list[str]]:
    """The word that is typed, and those before it. Where it is, the shells tell in two ways."""
    if shell == "fish":  # the word itself, which stands among the others, too
        return place, words[:-1] if place and words and words[-1] == place else words
    number = int(place or 0)
    return (words[number] if number < len(words) else ""), words[:number]


def _for_fish(offer: Offer) -> str:
    return f"{offer.kind},{offer.value}" + (f"\t{offer.help}" if offer.help else "")


def _for_zsh(offer: Offer) -> str:
    return f"{offer.kind}\n{offer.value}\n{offer.help or '_'}"


_FORMATS = {
    "bash": lambda offer: f"{offer.kind},{offer.value}",
    "zsh": _for_zsh,
    "fish": _for_fish,
}
