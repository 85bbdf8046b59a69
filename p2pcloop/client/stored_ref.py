"""An image that p2pcloopd knows, and what it tells of it."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from p2pcloop.client.control_client import ControlClient
from p2pcloop.formats.link import parse_link
from p2pcloop.frozen import dataclass

if TYPE_CHECKING:
    from p2pcloop.formats.manifest import SignedManifest


@dataclass(frozen=True, slots=True)
class StoredRef:
    """An image that p2pcloopd knows, with the connection over which it was asked."""

    signed: SignedManifest
    name: str
    link: str
    client: ControlClient

    @property
    def secret(self) -> bytes | None:
        """The secret of a private image, from the link."""
        return parse_link(self.link).secret

    def check_secret(self) -> None:
        """Compare the link's secret with the manifest.

        Raises:
            UsageError: the image is private, and the link has no secret.
            MismatchError: it is another image's secret.
        """
        from p2pcloop.formats.seal import check_secret  # noqa: PLC0415  it loads AES

        check_secret(self.signed.manifest.key_check, self.secret)

    @property
    def stored(self) -> int:
        """Bytes of all its layers, indexes included."""
        layers = self.signed.manifest.all_layers
        return sum(layer.index_length + layer.pack_length for layer in layers)

    def here(self) -> int:
        """Ask how many bytes of its layers are here, in whatever form."""
        return sum(each["have_bytes"] + each["provisional_bytes"] for each in self._torrents())

    def verified(self) -> int:
        """Ask how many bytes of its layers are here in whole pieces."""
        return sum(each["have_bytes"] for each in self._torrents())

    def _torrents(self) -> list[dict[str, Any]]:
        wanted = {layer.torrent for layer in self.signed.manifest.all_layers}
        torrents = self.client.call("status")["torrents"]
        return [each for each in torrents if each["info_hash"] in wanted]
