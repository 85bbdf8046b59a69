"""What a contender is; `contenders` has the table of them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from bench.links.rig import Boot, Rig


@dataclass(frozen=True, slots=True)
class Contender:
    """A way to boot over a link.

    Attributes:
        about: what it was given, for the report.
        serve: enters what all of its boots share (servers on the seeder) and gives its boot;
            takes the rig and an empty directory.
    """

    name: str
    about: str
    serve: Callable[[Rig, Path], AbstractContextManager[Boot]]
