"""The commands that go on with what a guest has left: typed as they are shown, they do so."""

from __future__ import annotations

import shlex
from collections.abc import Iterable, Sequence
from pathlib import Path

import click
from click.core import ParameterSource

from p2pcloop.client.overlay_base import base_of
from p2pcloop.formats.overlay import OverlayInfo
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home
from p2pcloopd.commands.guest_options import GuestOptions, ResumeOptions

_OF_ONE_BOOT = frozenset(
    {"at", "console", "detach", "home", "name", "overlay", "quiet", "replace", "report", "verbose"}
)
"""Options of `boot` that are of that boot alone, or that these commands give themselves."""


@dataclass(frozen=True, slots=True)
class Again:
    """How a guest was booted, for the commands that go on with its overlay.

    Attributes:
        ref: the image, as the user named it.
        at: its version, as the user gave it; 0 for none.
        kept: the guest's name if its record stays when it has ended, so that `start` boots it.
        options: the words of `boot` for its machine.
        file_options: the words that say what of a file is the image.
        home: where the node is.
        home_options: the words that say so, if the user gave any.
    """

    ref: str
    at: int
    kept: str | None
    options: tuple[str, ...]
    file_options: tuple[str, ...]
    home: Home
    home_options: tuple[str, ...]

    @classmethod
    def of(
        cls,
        boot: click.Command,
        ref: str,
        options: GuestOptions | ResumeOptions,
        words: Sequence[str],
    ) -> Again:
        """How the running command was called.

        Args:
            boot: the command.
            words: behind `p2pcloop boot`, by which such a guest is booted; options of one boot
                alone are left out.
        """
        given = _options(boot, words)
        file_options = [*given.pop("partition", ()), *given.pop("raw", ())]
        kept = [word for name, each in given.items() if name not in _OF_ONE_BOOT for word in each]
        typed = click.get_current_context().get_parameter_source("home")
        home = ("--home", str(options.home.root)) if typed is ParameterSource.COMMANDLINE else ()
        return cls(
            ref,
            options.at,
            options.name,
            tuple(kept),
            tuple(file_options),
            options.home,
            home,
        )

    def boot(self, overlay: Path, info: OverlayInfo) -> str:
        """The command that boots the guest again."""
        if self.kept is not None:
            return self._command("start", self.kept)
        base = base_of(info, self.home)
        if base is None:
            image, at, file_options = self.ref, self.at, self.file_options
        else:  # by its name, which takes no options of files
            image, at, file_options = str(base.name), 0 if base.is_newest else base.version, ()
        version = ["--at", str(at)] if at else []
        words = [image, *version, "--overlay", str(overlay), *file_options, *self.options]
        return self._command("boot", *words)

    def publish(self, overlay: Path, info: OverlayInfo) -> list[str]:
        """The commands that publish the changes; LABEL and REF are for the user to choose."""
        words = ["publish", str(overlay), "--name", "LABEL"]
        if base_of(info, self.home) is not None:
            return [self._command(*words)]
        if not Path(self.ref).exists():
            return [self._command(*words, "--base", self.ref)]
        # Others need the image, too.
        seed = self._command("seed", self.ref, *self.file_options)
        return [seed, self._command(*words, "--base", "REF")]

    def _command(self, *words: str) -> str:
        return shlex.join(["p2pcloop", *words, *self.home_options])


def _options(command: click.Command, words: Sequence[str]) -> dict[str, list[str]]:
    """The options among the words of a command line, as they were typed, by parameter."""
    with click.Context(command) as context:
        values, _, _ = command.make_parser(context).parse_args(list(words))
    return {
        each.name: list(_typed(each, values[each.name]))
        for each in command.params
        if isinstance(each, click.Option) and each.name in values
    }


def _typed(option: click.Option, value: object) -> Iterable[str]:
    name = option.opts[0]
    if option.is_flag:
        yield name
        return
    for each in value if isinstance(value, list) else [value]:
        text = str(each)
        yield from [f"{name}={text}"] if text.startswith("-") else [name, text]
