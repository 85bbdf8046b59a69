"""What the control socket answers: one function an operation (docs/formats/control.md).

Each checks its arguments whole before it does anything.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any

import trio

from p2pcloop.formats.config import SETTINGS, differing, load_config
from p2pcloopd.control_server import Call
from p2pcloopd.node.arguments import fields_of
from p2pcloopd.node.image_operations import (
    manifest,
    resolve,
    seed,
    seed_manifest,
    seed_record,
)
from p2pcloopd.node.metrics import metrics_text
from p2pcloopd.node.mirror_check import check_mirror
from p2pcloopd.node.node import Node
from p2pcloopd.node.removal import remove
from p2pcloopd.node.room_operations import booted, gc, pin, released, unpin
from p2pcloopd.node.status import Changes, describe
from p2pcloopd.node.stream import stream
from p2pcloopd.node.torrent_operations import add, fetch, fill, layout, pieces, read, verify
from p2pcloopd.node.waiting import REPORT_SECONDS


async def status(node: Node, call: Call) -> dict[str, Any]:
    """What the node has and does now."""
    fields_of(call).end()
    return await describe(node)


async def watch(node: Node, call: Call) -> dict[str, Any]:
    """As `status`, as an event a second or more rarely, until it is cancelled."""
    fields = fields_of(call)
    changes = Changes() if "changes" in fields and fields.boolean("changes") else None
    every = fields.integer("every", 1, 3600) if "every" in fields else REPORT_SECONDS
    fields.end()
    while True:
        told = await describe(node)
        await call.emit("status", **(told if changes is None else changes.since_last(told)))
        await trio.sleep(every)


async def metrics(node: Node, call: Call) -> dict[str, Any]:
    """What the node counts, in the text format of Prometheus."""
    fields_of(call).end()
    return {"text": (await metrics_text(node)).encode()}


async def reload(node: Node, call: Call) -> dict[str, Any]:
    """Read config.toml again, and take over what can change while the node runs."""
    fields_of(call).end()
    config = await trio.to_thread.run_sync(load_config, node.home.config)
    changed = differing(node.config, config)
    node.set_up(config)
    return {
        "changed": [key for key in changed if SETTINGS[key].live],
        "later": differing(node.config, config),
    }


async def web(node: Node, call: Call) -> dict[str, Any]:
    """Have the web page served from now on."""
    fields_of(call).end()
    return {"url": await node.web_page.open()}


async def stop(node: Node, call: Call) -> dict[str, Any]:
    """Stop p2pcloopd in order, once this is answered."""
    fields_of(call).end()
    call.then = node.stopping.set
    return {}


OPERATIONS: dict[str, Callable[[Node, Call], Awaitable[dict[str, Any]]]] = {
    operation.__name__: operation
    for operation in (
        add, layout, pieces, read, stream, fetch, fill, verify, seed, seed_manifest, seed_record,
        resolve, manifest, remove, check_mirror, pin, unpin, booted, released, gc, status, watch,
        metrics, reload, web, stop,
    )
}  # fmt: skip
