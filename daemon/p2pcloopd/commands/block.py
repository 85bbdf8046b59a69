"""`p2pcloop block`: serve an image as a block device."""

from __future__ import annotations

import logging
from dataclasses import replace
from functools import partial
from pathlib import Path

import click

from p2pcloop.cli.options import (
    REF,
    DirectoryPath,
    FilePath,
    at_option,
    file_options,
    home_option,
    json_option,
)
from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.terminal import log_to_stderr, notify, warn
from p2pcloop.errors import UsageError
from p2pcloop.store.home import Home
from p2pcloop.text import to_json
from p2pcloop.words import tr
from p2pcloopd.block.nbd_listen import check_nbd_address
from p2pcloopd.block.nbd_tls import NbdTls
from p2pcloopd.block.server import serve, serve_until_signal
from p2pcloopd.commands.served_image import served_image
from p2pcloopd.entry import run

_EPILOG = """
\b
Examples:
  p2pcloop block debian.cloop --nbd unix:/tmp/debian.nbd
  nbdcopy 'nbd+unix:///?socket=/tmp/debian.nbd' debian.img
  p2pcloop block debian.cloop --nbd 0.0.0.0:10809 --tls-certificates pki --tls-verify-peer
  p2pcloop block 'magnet:?xt=...' --vhost-user /tmp/disk.sock --overlay mine.delta
"""


@click.command(epilog=_EPILOG)
@click.argument("ref", type=REF)
@click.option(
    "--vhost-user",
    "vhost_user",
    type=FilePath(),
    metavar="SOCKET",
    help="Serve vhost-user-blk at this unix socket.",
)
@click.option(
    "--nbd",
    metavar="unix:PATH|HOST:PORT",
    help="Serve NBD there; HOST:PORT needs --tls-certificates or --insecure.",
)
@click.option(
    "--tls-certificates",
    type=DirectoryPath(),
    metavar="DIR",
    help="NBD clients must use TLS; server-cert.pem, server-key.pem and ca-cert.pem lie in DIR.",
)
@click.option(
    "--tls-verify-peer", is_flag=True, help="Clients must have a certificate of that ca-cert.pem."
)
@click.option(
    "--insecure",
    is_flag=True,
    help="Serve NBD over TCP without TLS, to every client that reaches it.",
)
@click.option(
    "--overlay",
    type=FilePath(),
    metavar="FILE",
    help="Keep writes in this file, made where it does not exist; read-only without.",
)
@click.option(
    "--profile", is_flag=True, help="Read ahead what a boot reads, as `p2pcloop boot` does."
)
@at_option
@file_options
@home_option
@json_option
def command(
    ref: str,
    vhost_user: Path | None,
    nbd: str | None,
    overlay: Path | None,
    at: int,
    home: Home,
    *,
    tls_certificates: Path | None,
    tls_verify_peer: bool,
    insecure: bool,
    profile: bool,
    as_json: bool,
) -> None:
    """Serve the image REF as a block device until Ctrl-C; then all writes are durable."""
    if vhost_user is None and nbd is None:
        raise UsageError("nowhere to serve", hint="give --vhost-user SOCKET or --nbd ADDRESS")
    tls = _check_nbd(nbd, tls_certificates, verify_peer=tls_verify_peer, insecure=insecure)
    log_to_stderr(logging.WARNING, "p2pcloop: %(message)s")
    home.create()
    target = resolve_ref(ref, home, at=at)
    spec = replace(
        served_image(target, home, "block", prefetch=profile),
        overlay=overlay,
        vhost_user=vhost_user,
        nbd=nbd,
        nbd_tls=tls,
    )
    where = " and ".join(str(place) for place in (vhost_user, nbd) if place)
    changes = tr("read-only") if overlay is None else tr("writes go to {overlay}", overlay=overlay)
    ready = partial(
        notify, tr("serving at {where}, {changes}; Ctrl-C ends it", where=where, changes=changes)
    )
    report = run(partial(serve_until_signal, partial(serve, spec, ready)))
    if as_json:
        click.echo(to_json(report))


def _check_nbd(
    nbd: str | None, certificates: Path | None, *, verify_peer: bool, insecure: bool
) -> NbdTls | None:
    """Refuse addresses that would admit unknown clients, and certificates that cannot be used."""
    if certificates is None and verify_peer:
        raise UsageError("--tls-verify-peer needs --tls-certificates DIR")
    if nbd is None:
        if certificates is not None or insecure:
            raise UsageError("--tls-certificates and --insecure are for --nbd")
        return None
    warning = check_nbd_address(nbd, tls=certificates is not None, insecure=insecure)
    if warning is not None:
        warn(tr("p2pcloop: {warning}", warning=warning))
    if certificates is None:
        return None
    tls = NbdTls(certificates, verify_peer)
    tls.context()
    return tls
