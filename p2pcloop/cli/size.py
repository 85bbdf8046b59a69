"""Sizes on the command line: `512M`, `1G`, plain bytes."""

from __future__ import annotations

import click

from p2pcloop.units import parse_size


class _Size(click.ParamType[int]):
    """A number of bytes with K, M, G or T (of 1024) behind it."""

    name = "size"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """See `click.ParamType.convert`."""
        try:
            return parse_size(str(value))
        except ValueError as err:
            self.fail(str(err), param, ctx)


class _Fill(_Size):
    """A size is that many bytes a second, `full` is 0 for as many as come, `off` is -1."""

    name = "fill"

    def convert(
        self, value: object, param: click.Parameter | None, ctx: click.Context | None
    ) -> int:
        """See `click.ParamType.convert`."""
        if value in ("off", "full"):
            return -1 if value == "off" else 0
        return max(1, super().convert(value, param, ctx))


SIZE = _Size()
FILL = _Fill()
