"""The programs that boot the same guest over the same link, each with the input that suits it."""

from __future__ import annotations

from bench.links import attached, ours, swarm

LOCAL = attached.LOCAL
"""The control: no link at all. Always runs."""

PLAIN, WARM = ours.COLD.name, ours.WARM.name
PROFILED = ours.PROFILED.name
"""An optimised image whose manifest carries a profile; boot_figures.py has its bars."""

CONTENDERS = {
    contender.name: contender
    for contender in (
        ours.COLD,
        ours.RECORDED,
        ours.PROFILED,
        ours.WARM,
        swarm.DOWNLOAD,
        attached.NBDKIT_FILE,
        attached.QEMU_CLOOP,
        swarm.NBDKIT_TORRENT,
        swarm.BTFS,
    )
}

RIVALS = tuple(
    contender.name
    for contender in (
        attached.NBDKIT_FILE,
        attached.QEMU_CLOOP,
        swarm.NBDKIT_TORRENT,
        swarm.BTFS,
    )
)
"""Contenders that p2pcloop must beat when it boots a plain cloop."""

FOREIGN = (swarm.DOWNLOAD.name, *RIVALS)
"""Contenders whose reader is a program of others."""
