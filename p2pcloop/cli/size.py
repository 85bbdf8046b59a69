"""Sizes on the command line: `512M`, `1G`, plain bytes."""

from __future__ import annotations

import re

import click

_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class _Size(click.ParamType[int]):
    """A number of bytes with K, M or G (of 1024) behind it."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """See `click.ParamType.convert`."""
        match = re.fullmatch(r"([0-9]{1,9})([KMG]?)(?:i?B)?", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f"{value!r} is not a size like 512M or 1G", param, ctx)
        return int(match[1]) * _UNITS[match[2].upper()]


SIZE = _Size()
