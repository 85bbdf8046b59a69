"""The table of commands, in the sections of `p2pcloop --help`."""

from __future__ import annotations

SECTIONS = {
    "Get and run images": {
        "boot": ("p2pcloopd.commands.boot", "Boot an image in User-Mode Linux while it arrives."),
        "run": ("p2pcloopd.commands.run", "Run one command in a guest; its output, its exit code."),
        "fetch": ("p2pcloop.cli.fetch", "Bring all of an image here."),
        "info": ("p2pcloop.cli.info", "Tell what an image, a link or a file is."),
        "images": ("p2pcloop.cli.images", "List the images that are known here."),
        "log": ("p2pcloop.cli.log", "Tell the versions of an image."),
        "update": ("p2pcloop.cli.update", "Find the newest version of an image."),
        "verify": ("p2pcloop.cli.verify", "Compare what is here with its hashes."),
    },
    "Guests": {
        "ps": ("p2pcloop.cli.ps", "List the guests that run here, and what they wait for."),
        "attach": ("p2pcloopd.commands.attach", "Connect the terminal to a guest's console."),
        "exec": ("p2pcloopd.commands.exec", "Run a command in a guest that runs."),
        "cp": ("p2pcloopd.commands.cp", "Copy files into a guest or an overlay, and out of it."),
        "logs": ("p2pcloopd.commands.logs", "Show what a guest has printed."),
        "display": ("p2pcloop.cli.display", "Tell how to open the display of a guest."),
        "stop": ("p2pcloop.cli.stop", "Shut guests down in order."),
        "start": ("p2pcloopd.commands.start", "Boot a guest that has ended once more."),
        "suspend": ("p2pcloop.cli.suspend", "Keep a guest that runs as a state: disk and memory."),
        "resume": ("p2pcloopd.commands.resume", "Let a suspended guest go on, here or elsewhere."),
        "migrate": ("p2pcloop.cli.migrate", "Move a guest that runs to another machine."),
    },
    "Make and pass on images": {
        "seed": ("p2pcloop.cli.seed", "Serve an image to peers; prints its name and link."),
        "publish": ("p2pcloop.cli.publish", "Serve what was changed of an image as a new version."),
        "unpublish": ("p2pcloop.cli.unpublish", "Withdraw an image that was published from here."),
        "squash": ("p2pcloop.cli.squash", "Publish an image again, in fewer layers."),
        "optimize": ("p2pcloop.cli.optimize", "Publish an image so that it boots sooner."),
        "profile": ("p2pcloop.cli.profile", "Show, export, attach and forget what boots read."),
        "diff": ("p2pcloop.cli.diff", "Tell how much two images differ."),
        "rebase": (
            "p2pcloopd.commands.rebase",
            "Move a files overlay to a newer version of its image.",
        ),
        "import": (
            "p2pcloopd.commands.import_layer",
            "Make an overlay of what a live system keeps beside its CD.",
        ),
        "export": ("p2pcloop.cli.export", "Write an image, with an overlay or not, to a file."),
        "mirror": ("p2pcloop.cli.mirror", "Write an image as static files, for any web server."),
    },
    "Images for other programs": {
        "block": (
            "p2pcloopd.commands.block",
            "Serve an image as a block device (NBD, vhost-user).",
        ),
        "mount": ("p2pcloopd.commands.mount", "Show the known images as files below a directory."),
        "umount": ("p2pcloopd.commands.umount", "End a mount."),
        "netboot": (
            "p2pcloopd.commands.netboot",
            "Let bare machines boot an image over the network.",
        ),
    },
    "The node": {
        "doctor": ("p2pcloopd.commands.doctor", "Look whether this machine has what it needs."),
        "status": ("p2pcloop.cli.status", "Show what the node has, fetches and serves."),
        "web": ("p2pcloop.cli.web", "Show the node in a browser on this machine."),
        "picture": ("p2pcloop.cli.picture", "Draw which blocks of an image are here, as an SVG."),
        "metrics": ("p2pcloop.cli.metrics", "Print what the node counts, for Prometheus."),
        "daemon": ("p2pcloop.cli.daemon", "Start, stop or run p2pcloopd, the node's daemon."),
        "config": ("p2pcloop.cli.config", "Show and change the settings of the node."),
        "limit": ("p2pcloop.cli.limit", "Show and set the limits of the node's rates."),
        "key": ("p2pcloop.cli.key", "Make, list, show, export and import keys."),
        "name": ("p2pcloop.cli.name", "List, add and forget short names of your own."),
        "rm": ("p2pcloop.cli.rm", "Remove an image, or a guest that has ended."),
        "pin": ("p2pcloop.cli.pin", "Let nothing of an image be evicted."),
        "unpin": ("p2pcloop.cli.unpin", "Let a pinned image be evicted again."),
        "gc": ("p2pcloop.cli.gc", "Give back room on the disk, down to a quota."),
    },
}
"""By title: name of the command: the module that has it as `command`, and one line of help."""

COMMANDS = {name: entry for section in SECTIONS.values() for name, entry in section.items()}
"""All of them, by name."""

ALIASES = {"ls": "images"}
"""What users of other programs type first, and the command that is meant."""
