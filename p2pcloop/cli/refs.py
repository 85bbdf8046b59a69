"""REF, as commands take it: a local file, a link, or `@key/label` once known here."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from p2pcloop.cli.control_client import ControlClient
from p2pcloop.cli.daemon_control import ensure_daemon
from p2pcloop.errors import FormatError, UsageError
from p2pcloop.formats.link import is_link, parse_link
from p2pcloop.formats.manifest import SignedManifest, open_manifest
from p2pcloop.formats.name import parse_name
from p2pcloop.formats.seal import check_secret
from p2pcloop.image.local import ImageFile, inspect_file
from p2pcloop.protocol.waiting import describe_waiting
from p2pcloop.store.home import Home

_LINK_HINT = "take the link that `p2pcloop seed` printed, whole and in quotes"


@dataclass(frozen=True, slots=True)
class StoredRef:
    """An image that p2pcloopd knows, with the connection over which it was asked."""

    signed: SignedManifest
    name: str
    link: str
    client: ControlClient

    @property
    def secret(self) -> bytes | None:
        """What opens a private image, as the link has it."""
        return parse_link(self.link).secret

    def check_secret(self) -> None:
        """Compare the link's secret with the manifest, before anything is made or started.

        Raises:
            UsageError: the image is private, and the link has no secret.
            MismatchError: it is another image's secret.
        """
        check_secret(self.signed.manifest.key_check, self.secret)

    @property
    def stored(self) -> int:
        """Bytes of all its layers, indexes included."""
        layers = self.signed.manifest.layers
        return sum(layer.index_length + layer.pack_length for layer in layers)

    def here(self) -> int:
        """Ask how many bytes of its layers are here, verified and durable."""
        wanted = {layer.torrent for layer in self.signed.manifest.layers}
        torrents = self.client.call("status")["torrents"]
        return sum(known["have_bytes"] for known in torrents if known["info_hash"] in wanted)


def is_local(ref: str) -> bool:
    """Whether a REF is a file: anything that is neither a link nor a name."""
    return not is_link(ref) and not ref.startswith("@")


def resolve_ref(ref: str, home: Home) -> ImageFile | StoredRef:
    """Find what a REF stands for; links and names start p2pcloopd where it does not run.

    Raises:
        UsageError: not a file, link or name of the right form.
        NotHereError: no such file, or a name that is not known here.
        FormatError: what the link leads to is no manifest.
        MismatchError: a manifest that is not what the link or its key says.
    """
    if not ref:
        raise UsageError(
            "REF is empty",
            hint="give a file, a link or @key/label; is a variable of the shell unset?",
        )
    if is_local(ref):
        return inspect_file(Path(ref))
    # Told apart from a daemon's error before one is started for nothing.
    with words_of_the_user(_LINK_HINT if is_link(ref) else None):
        _ = parse_link(ref) if is_link(ref) else parse_name(ref)
    client = ensure_daemon(home)
    answer = client.call("resolve", report_waiting, ref=ref)
    return StoredRef(open_manifest(answer["manifest"]), answer["name"], answer["link"], client)


@contextmanager
def words_of_the_user(hint: str | None = None) -> Iterator[None]:
    """A `FormatError` of what stands on the command line is a `UsageError`.

    Args:
        hint: for those errors that have none.
    """
    try:
        yield
    except FormatError as err:
        raise UsageError(str(err), hint=err.hint or hint) from err


def report_waiting(event: str, fields: dict[str, Any]) -> None:
    """Tell on stderr that no peer answers, and which ones were tried."""
    if event == "waiting":
        click.echo(describe_waiting(fields), err=True)
