"""The command `p2pcloop`: the table of commands, and how errors are reported.

A command's module is imported only when that command is named, so that `--help` and every other
command stay quick.
"""

from __future__ import annotations

import importlib
import sys

import click

from p2pcloop.client.terminal import open_standard_streams, report_error, report_usage
from p2pcloop.errors import P2pcloopError, storage_error
from p2pcloop.loading import loading

COMMANDS = {
    "seed": ("p2pcloop.cli.seed", "Serve an image to peers; prints its name and link."),
    "publish": ("p2pcloop.cli.publish", "Serve what was changed of an image as a new version."),
    "unpublish": ("p2pcloop.cli.unpublish", "Withdraw an image that was published from here."),
    "squash": ("p2pcloop.cli.squash", "Publish an image again, in fewer layers."),
    "optimize": ("p2pcloop.cli.optimize", "Publish an image so that it boots sooner."),
    "profile": ("p2pcloop.cli.profile", "Show, export, attach and forget what boots read."),
    "diff": ("p2pcloop.cli.diff", "Tell how much two images differ."),
    "boot": ("p2pcloopd.commands.boot", "Boot an image in User-Mode Linux while it arrives."),
    "run": ("p2pcloopd.commands.run", "Run one command in a guest; its output, its exit code."),
    "rebase": (
        "p2pcloopd.commands.rebase",
        "Move a files overlay to a newer version of its image.",
    ),
    "ps": ("p2pcloop.cli.ps", "List the guests that run here, and what they wait for."),
    "attach": ("p2pcloopd.commands.attach", "Connect the terminal to a guest's console."),
    "display": ("p2pcloop.cli.display", "Tell how to open the display of a guest."),
    "exec": ("p2pcloopd.commands.exec", "Run a command in a guest that runs."),
    "cp": ("p2pcloopd.commands.cp", "Copy files into a guest or an overlay, and out of it."),
    "logs": ("p2pcloopd.commands.logs", "Show what a guest has printed."),
    "stop": ("p2pcloop.cli.stop", "Shut guests down in order."),
    "start": ("p2pcloopd.commands.start", "Boot a guest that has ended once more."),
    "info": ("p2pcloop.cli.info", "Tell what an image, a link or a file is."),
    "images": ("p2pcloop.cli.images", "List the images that are known here."),
    "fetch": ("p2pcloop.cli.fetch", "Bring all of an image here."),
    "export": ("p2pcloop.cli.export", "Write an image, with an overlay or not, to a file."),
    "verify": ("p2pcloop.cli.verify", "Compare what is here with its hashes."),
    "log": ("p2pcloop.cli.log", "Tell the versions of an image."),
    "update": ("p2pcloop.cli.update", "Find the newest version of an image."),
    "mirror": ("p2pcloop.cli.mirror", "Write an image as static files, for any web server."),
    "status": ("p2pcloop.cli.status", "Show what the node has, fetches and serves."),
    "block": ("p2pcloopd.commands.block", "Serve an image as a block device (NBD, vhost-user)."),
    "netboot": ("p2pcloopd.commands.netboot", "Let bare machines boot an image over the network."),
    "mount": ("p2pcloopd.commands.mount", "Show the known images as files below a directory."),
    "umount": ("p2pcloopd.commands.umount", "End a mount."),
    "key": ("p2pcloop.cli.key", "Make, list, show, export and import keys."),
    "name": ("p2pcloop.cli.name", "List, add and forget short names of your own."),
    "rm": ("p2pcloop.cli.rm", "Remove an image, or a guest that has ended."),
    "pin": ("p2pcloop.cli.pin", "Let nothing of an image be evicted."),
    "unpin": ("p2pcloop.cli.unpin", "Let a pinned image be evicted again."),
    "gc": ("p2pcloop.cli.gc", "Give back room on the disk, down to a quota."),
    "daemon": ("p2pcloop.cli.daemon", "Start, stop or run p2pcloopd, the node's daemon."),
}
"""Name of the command: the module that has it as `command`, and one line of help."""

_EPILOG = """
\b
Examples:
  p2pcloop seed debian.cloop --name debian
  p2pcloop boot 'magnet:?xt=...' --overlay mine.delta
  p2pcloop status --watch
"""


class _LazyGroup(click.Group):
    """A group whose commands are imported when they are asked for."""

    def list_commands(self, ctx: click.Context) -> list[str]:  # noqa: ARG002  click's signature
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:  # noqa: ARG002
        if cmd_name not in COMMANDS:
            return None
        with loading():
            command: click.Command = importlib.import_module(COMMANDS[cmd_name][0]).command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:  # noqa: ARG002
        with formatter.section("Commands"):
            formatter.write_dl([(name, help_line) for name, (_, help_line) in COMMANDS.items()])


@click.group(
    cls=_LazyGroup,
    epilog=_EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.version_option(package_name="p2pcloop", prog_name="p2pcloop")
def cli() -> None:
    """Boot compressed block images from peers, keep the changes in an overlay, pass them on."""


def _wants_json(words: list[str]) -> bool:
    """Whether errors are written as JSON, too: not if an image goes to the standard output.

    Words behind `--` belong to the guest's command.
    """
    ours = words[: words.index("--")] if "--" in words else words
    return "--json" in ours and not (ours[0] == "export" and "-" in ours)


def main() -> None:
    """Run the command line; every error ends as one line, a hint and its exit code."""
    open_standard_streams()
    as_json = _wants_json(sys.argv[1:])
    try:
        sys.exit(cli.main(standalone_mode=False) or 0)
    except P2pcloopError as err:
        sys.exit(report_error(err, as_json=as_json))
    except click.ClickException as err:
        sys.exit(report_usage(err, as_json=as_json))
    except click.exceptions.Exit as err:
        sys.exit(err.exit_code)
    except (KeyboardInterrupt, click.Abort):
        sys.exit(130)
    except OSError as err:
        # A file that the user named, or output that cannot be written. The interpreter must not
        # flush that output again. (click treats a pipe without a reader: exit code 1.)
        sys.stdout = None
        what = f"cannot use {err.filename}" if err.filename else "the system refused"
        sys.exit(report_error(storage_error(what, err)))  # no JSON: its stream may be what failed
