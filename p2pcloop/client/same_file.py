"""A file that is published again, and the versions that were made of it.

Another file is taken for another image, and a file with the content of an older version for the
image of the newest one, unless the user says that it is the next version.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from p2pcloop.client.publisher import Publisher
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import notify
from p2pcloop.errors import NotHereError, UsageError
from p2pcloop.formats.manifest import Manifest, SignedManifest
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home
from p2pcloop.store.records import Records
from p2pcloop.store.sources import known_source
from p2pcloop.words import tr


def is_other_source(publisher: Publisher, path: Path) -> bool:
    """Whether there is a version under this name that may have been made of another file."""
    return (
        publisher.newest is not None
        and known_source(publisher.home, publisher.name) != path.resolve()
    )


def check_same(publisher: Publisher, size: int, layer_id: bytes | None, path: Path) -> None:
    """Refuse another image under a name that has versions: two files may share a stem.

    Args:
        size: bytes of the device.
        layer_id: of the layer made of the file; None if it is not known yet.
        path: of the file.

    Raises:
        UsageError: it is not the image of the newest version, or that is a withdrawal.
    """
    assert publisher.newest is not None, "asked for only where there is one"
    newest = publisher.newest.signed.manifest
    known = known_source(publisher.home, publisher.name)
    made = (
        tr("was not made of this file here")
        if known is None
        else tr("was made of {known}", known=known)
    )
    if newest.withdrawn:  # it has no layer to compare with
        raise UsageError(
            tr(
                "{name} is withdrawn, by version {version}; before it {made}",
                name=publisher.name,
                version=newest.version,
                made=made,
            ),
            hint="give --name OTHER, or --as-new-version to publish it under this name again",
        )
    may_fit = size == newest.size or len(newest.layers) > 1  # an upper layer may be longer
    if may_fit and layer_id in (None, newest.layers[0].layer_id):
        return
    raise UsageError(
        tr(
            "{name}, version {version}, {made}, and {path} holds another image",
            name=publisher.name,
            version=newest.version,
            made=made,
            path=path,
        ),
        hint="give --name OTHER, or --as-new-version if it is the next version of that image",
    )


def holder_of(publisher: Publisher, layer_id: bytes) -> Manifest | None:
    """The newest of the versions that lie on a layer, which is made of all of a file.

    None if there is none, or if the layer is all of the newest version.
    """
    if publisher.newest is None:
        return None
    newest = publisher.newest.signed
    if [layer.layer_id for layer in newest.manifest.layers] == [layer_id]:
        return None
    for version in versions_of(publisher.home, newest):
        if any(layer.layer_id == layer_id for layer in version.manifest.layers[:1]):
            return version.manifest
    return None


@dataclass(frozen=True, slots=True)
class KeptVersion:
    """The newest version, which stays, where a file has the content of an older one.

    Readers who update would lose the changes since if the content were published again.

    Attributes:
        ref: the newest version.
        holder: the version that lies on the file's content; see `holder_of`.
    """

    ref: StoredRef
    holder: Manifest

    def tell(self, message: str = "") -> None:
        """Tell the user that it stays, and that the `message` for a new version is not used."""
        newest = self.ref.signed.manifest
        facts = {
            "version": newest.version,
            "message": f" ({newest.message})" if newest.message else "",
        }
        notify(
            tr("version {version}{message} lies on this file and stays the newest", **facts)
            if self.holder.version == newest.version
            else tr(
                "version {older} was made of this content;"
                " version {version}{message} stays the newest",
                older=self.holder.version,
                **facts,
            )
        )
        if message:
            notify("the message of -m is not used, since there is no new version")


def keep_newest(
    publisher: Publisher, holder: Manifest, *, append: str | None, private: bool = False
) -> KeptVersion:
    """Refuse, where the newest version cannot stay; nothing is served or told yet.

    Args:
        holder: the version that lies on the file's content; see `holder_of`.
        append: the user's words for the kernel; None for none of the user's.
        private: the user wants a private version.

    Raises:
        UsageError: the newest version is a withdrawal, or its data was removed from here, or it
            is not what the user wants.
    """
    assert publisher.newest is not None, "a holder is this or an ancestor of it"
    newest = publisher.newest.signed.manifest
    if publisher.image is None:
        raise UsageError(
            tr(
                "{name} is withdrawn, by version {version}",
                name=publisher.name,
                version=newest.version,
            )
            if newest.withdrawn
            else tr(
                "{name}, version {version}, was removed from here, and this file is older",
                name=publisher.name,
                version=newest.version,
            ),
            hint="--as-new-version publishes the content of the file again",
        )
    if append not in (None, newest.boot.append):
        raise _for_a_new_version("--append")
    if private and not newest.private:
        raise _for_a_new_version("--private")
    return KeptVersion(publisher.image, holder)


def _for_a_new_version(option: str) -> UsageError:
    return UsageError(
        tr("{option} is for a new version, and there is none", option=option),
        hint=tr(
            "--as-new-version publishes the content of the file again, with {option}", option=option
        ),
    )


def versions_of(home: Home, newest: SignedManifest) -> Iterator[SignedManifest]:
    """A version and those before it under its name, as far as they are known here."""
    yield newest
    records, version = Records(home), newest.manifest
    while version.previous is not None:
        try:
            before = records.manifest(version.previous.id)
        except NotHereError:
            return
        if before.manifest.name != version.name or before.manifest.version >= version.version:
            return  # its history cannot be followed
        yield before
        version = before.manifest
