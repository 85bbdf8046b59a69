"""Commands whose last arguments are a command for a guest, behind `--`."""

from __future__ import annotations

import click

from p2pcloop.words import tr, translated


class CommandBehindDashes(click.Command):
    """Explains where the `--` belongs, if it is missing before the guest's command."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        given = list(args)  # click takes words out of `args`
        try:
            return super().parse_args(ctx, args)
        except click.NoSuchOption as err:
            if "--" in given:
                raise
            first = self.params[0].make_metavar(ctx)
            told = tr(
                "{format_message} The guest's command stands behind `--`: {first} -- ls -l",
                format_message=err.format_message(),
                first=first,
            )
            raise click.UsageError(translated(told), ctx) from err
