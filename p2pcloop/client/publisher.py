"""Publishing a new version under a name of the user's: its key, its content, its history."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import field, replace
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from p2pcloop.client.control_client import ControlClient
from p2pcloop.client.progress import progress_bar
from p2pcloop.client.refs import words_of_the_user
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import ask_passphrase, notify
from p2pcloop.errors import MismatchError, NotHereError, UsageError
from p2pcloop.formats.boot_parameters import BootParameters
from p2pcloop.formats.index import IndexHeader
from p2pcloop.formats.link import parse_link
from p2pcloop.formats.machine_state import MachineState
from p2pcloop.formats.manifest import (
    MAX_LAYERS,
    LayerRef,
    Manifest,
    ManifestRef,
    SignedManifest,
    open_manifest,
    sign_manifest,
)
from p2pcloop.formats.name import Name, check_label
from p2pcloop.formats.profile import fit_touches
from p2pcloop.formats.record import Record, sign_record
from p2pcloop.formats.seal import key_check, new_secret
from p2pcloop.frozen import dataclass
from p2pcloop.image.stored import check_headers
from p2pcloop.store.home import Home
from p2pcloop.store.keys import (
    DEFAULT_KEY,
    load_key,
    load_or_create_key,
    mark_imported,
    was_imported,
    was_made_here,
)
from p2pcloop.store.profiles import find_profile
from p2pcloop.store.records import Records
from p2pcloop.store.removed import is_removed
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr

WITH_PROFILE = "with a profile"
"""What is said of a version that has nothing else that the one before had not."""


@dataclass(frozen=True, slots=True)
class Content:
    """The content of a version.

    Attributes:
        size: bytes of the device, rounded up to whole blocks.
        layers: base first.
        sources: other layers; the layers refer to chunks in their packs.
        boot: for the guest.
        profile: packed touches of a boot; b"" for the known profile that fits, if any.
        length: bytes of the device if they are no multiple of 4096; else 0.
        machine: of a state; else None.
    """

    size: int
    layers: tuple[LayerRef, ...]
    sources: tuple[LayerRef, ...] = ()
    boot: BootParameters = field(default_factory=BootParameters)
    profile: bytes = b""
    length: int = 0
    machine: MachineState | None = None

    @property
    def disk_length(self) -> int:
        """See `Manifest.disk_length`."""
        return self.length or self.size if self.machine is None else self.machine.disk_length

    @classmethod
    def of(cls, manifest: Manifest) -> Content:
        """The content that a manifest describes."""
        return cls(
            manifest.size,
            manifest.layers,
            manifest.sources,
            manifest.boot,
            manifest.profile,
            manifest.length,
            manifest.machine,
        )


@dataclass(frozen=True, slots=True)
class Publisher:
    """Publishes versions under one name.

    Attributes:
        home: of the node.
        client: a connection to its p2pcloopd, which serves the versions.
        key: signs them.
        name: of the image.
        newest: the newest known version under that name, if there is one.
    """

    home: Home
    client: ControlClient
    key: Ed25519PrivateKey
    name: Name
    newest: StoredRef | None

    @property
    def image(self) -> StoredRef | None:
        """The newest version, unless it is a withdrawal, which has no content, or its data was
        removed from here: it may be nowhere else."""
        newest = self.newest
        if newest is None or newest.signed.manifest.withdrawn:
            return None
        return None if is_removed(self.home, newest.signed.id) else newest

    @classmethod
    @contextmanager
    def of(
        cls,
        home: Home,
        client: ControlClient,
        label: str,
        key_name: str | None,
        *,
        first: bool = False,
    ) -> Iterator[Publisher]:
        """Get the key, and keep other commands of this home from publishing under the label.

        Two commands would sign two manifests with the same version number.

        Args:
            key_name: None for the default key, which is made at its first use.
            first: the user says that nothing was published under that name yet.

        Raises:
            UsageError: the label is not of the right form; the key is protected and there is no
                terminal to ask at; or it was made elsewhere and no version of that name is known.
            NotHereError: there is no key of that name.
            MismatchError: the passphrase is another one.
        """
        with words_of_the_user():
            check_label(label)
        key = signing_key(home, key_name)
        name = Name(key.public_key().public_bytes_raw(), label)
        has_published = home.publishing_path.exists()
        with home.publishing(label, lambda: _tell_waiting(name)):
            newest = newest_of(client, name)
            elsewhere = _signs_elsewhere(home, key_name, name.key, has_published=has_published)
            if newest is None and not first and elsewhere:
                raise UsageError(
                    tr(
                        "the key of {name} was not made in this home, and what it signed under that"
                        " name elsewhere is not known here: two versions of one number would be"
                        " signed",
                        name=name,
                    ),
                    hint="`p2pcloop update LINK` with the link of its newest version; or"
                    " --first-version, where nothing was published under that name",
                )
            yield cls(home, client, key, name, newest)

    def serve_layer(self, staging: Path, header: IndexHeader) -> LayerRef:
        """Have p2pcloopd take over a layer that lies in `staging`, and serve it."""
        with ExitStack() as stack:
            shown: list[Callable[..., None]] = []

            def on_event(event: str, fields: dict[str, Any]) -> None:
                if event == "progress":
                    if not shown:  # it takes more than a second
                        shown.append(stack.enter_context(progress_bar("hashing")))
                    shown[0](fields["hashed"], fields["size"])

            seeded = self.client.call("seed", on_event, staging=str(staging))
        return LayerRef(
            layer_id=header.layer_id,
            torrent=seeded["torrent"],
            index_length=header.index_length,
            header_length=header.length,
            pack_length=header.pack_length,
            piece_length=seeded["piece_length"],
        )

    def check_secret(self, secret: bytes | None) -> None:
        """Refuse to publish under a private name with another secret, or with none.

        A name has one link, with one secret: the secret of the older versions would be lost.

        Raises:
            UsageError: the secret is another one.
        """
        known = None if self.newest is None else self.newest.signed.manifest.key_check
        if known is not None and (secret is None or key_check(secret) != known):
            raise UsageError(
                tr("{name} is private, and this would be for all readers", name=self.name)
                if secret is None
                else tr("{name} is private, and this would be under another key", name=self.name),
                hint="its older versions could not be read any more: choose another --name",
            )

    def check_newest(self, ref: StoredRef, *, hint: str) -> None:
        """Refuse to publish over a version that is not the newest under this name.

        Args:
            hint: for an image of another publisher.

        Raises:
            MismatchError: it is under another name, or another key.
            UsageError: there is a newer one.
        """
        manifest = ref.signed.manifest
        if self.name != manifest.name:
            raise MismatchError(
                tr("{manifest} is not signed by this key", manifest=manifest.name),
                hint=tr("choose the key with --key; {hint}", hint=hint),
            )
        if self.newest is not None and self.newest.signed.id != ref.signed.id:
            raise UsageError(
                tr(
                    "it is version {version}, and there is version {version2}",
                    version=manifest.version,
                    version2=self.newest.signed.manifest.version,
                ),
                hint=tr("give the name: {manifest}", manifest=manifest.name),
            )

    def has(self, content: Content) -> bool:
        """Whether the newest version has exactly that content."""
        return self.newest is not None and Content.of(self.newest.signed.manifest) == content

    def release(
        self,
        content: Content,
        *,
        message: str = "",
        parent: ManifestRef | None = None,
        public: bool = False,
        secret: bytes | None = None,
    ) -> dict[str, Any]:
        """Sign a version and have it served; if nothing changed, serve the newest one again.

        A known profile is attached, but not to a private image: anyone can read its manifest.

        Args:
            content: whose layers are served already.
            message: one line about it.
            parent: the version that it was made from.
            public: announce it as far as the node's settings allow.
            secret: of a private image.

        Returns:
            `name`, `link`, `manifest` (its id), `version` and `changed`.

        Raises:
            UsageError: too many layers, or their headers are too large; the message is no line
                of text; as of `check_secret`.
            P2pcloopError: p2pcloopd could not serve it.
        """
        self.check_secret(secret)
        if len(content.layers) > MAX_LAYERS:
            raise UsageError(
                tr("an image has at most {max_layers} layers", max_layers=MAX_LAYERS),
                hint="join them first: `p2pcloop squash`",
            )
        check_headers(content.layers if secret is None else content.layers + content.sources)
        manifest = self._draft(content, message, parent, secret)
        if self.newest is not None and self.has(Content.of(manifest)):
            return self.serve_again(self.newest, public=public)
        with words_of_the_user():
            signed = open_manifest(sign_manifest(manifest, self.key))
        return self._serve(signed, public=public, secret=secret) | {"changed": True}

    def serve_again(self, version: StoredRef, *, public: bool) -> dict[str, Any]:
        """Have a version served that is signed already; return facts, as of `release`."""
        facts = self._serve(version.signed, public=public, secret=version.secret)
        return facts | {"changed": False}

    def _serve(
        self, signed: SignedManifest, *, public: bool, secret: bytes | None
    ) -> dict[str, Any]:
        answer = serve_version(self.client, signed, self.key, public=public, secret=secret)
        if public and not answer["announced"]:
            notify(
                tr(
                    "it is public, but announced nowhere: `p2pcloop config set discovery.dht true"
                    " {home}` or `p2pcloop config set discovery.announce_trackers URL {home}`, and"
                    " restart p2pcloopd (docs/daemon.md)",
                    home=self.home.option,
                )
            )
        return {
            "name": answer["name"],
            "link": answer["link"],
            "manifest": answer["id"],
            "version": signed.manifest.version,
            "image_id": signed.manifest.image_id,
            "profile": bool(signed.manifest.profile),
        }

    def withdraw(self, message: str) -> dict[str, Any]:
        """Sign a version that takes the image back, and have it served.

        Args:
            message: one line that says why, or "".

        Returns:
            `name`, `manifest`, `version` and `changed`: False where it is withdrawn already.

        Raises:
            NotHereError: nothing is known under this name.
            UsageError: the message is no line of text.
            P2pcloopError: p2pcloopd could not serve it.
        """
        if self.newest is None:
            raise NotHereError(
                tr("{name} was never published, as far as is known here", name=self.name)
            )
        before = self.newest.signed.manifest
        changed = not before.withdrawn
        signed = self.newest.signed
        if changed:
            manifest = Manifest(
                key=self.name.key,
                label=self.name.label,
                version=before.version + 1,
                created=int(time.time()),
                size=before.size,
                layers=(),
                message=message,
                previous=reference(self.newest),
                key_check=before.key_check,
                withdrawn=True,
            )
            with words_of_the_user():
                signed = open_manifest(sign_manifest(manifest, self.key))
        secret = self.newest.secret
        answer = serve_version(self.client, signed, self.key, secret=secret)
        facts = {"manifest": answer["id"], "version": signed.manifest.version, "changed": changed}
        return {"name": answer["name"], **facts}

    def _draft(
        self, content: Content, message: str, parent: ManifestRef | None, secret: bytes | None
    ) -> Manifest:
        """The next version, not signed yet."""
        newest = self.newest
        manifest = Manifest(
            key=self.name.key,
            label=self.name.label,
            version=1 if newest is None else newest.signed.manifest.version + 1,
            created=int(time.time()),
            size=content.size,
            layers=content.layers,
            boot=content.boot,
            message=message,
            previous=None if newest is None else reference(newest),
            parent=parent,
            sources=content.sources,
            key_check=None if secret is None else key_check(secret),
            profile=content.profile,
            length=content.length,
            machine=content.machine,
        )
        if not manifest.profile:
            manifest = replace(manifest, profile=self._profile_for(manifest))
            if manifest.profile and not message and self.has(content):
                return replace(manifest, message=WITH_PROFILE)
        return manifest

    def _profile_for(self, manifest: Manifest) -> bytes:
        """The profile of the newest version if its content is the same, else the one known here."""
        newest = None if self.newest is None else self.newest.signed.manifest
        if newest is not None and newest.profile and newest.image_id == manifest.image_id:
            return newest.profile
        found = None if manifest.private else find_profile(self.home, manifest)
        return b"" if found is None else fit_touches(found.touches, manifest.size // BLOCK_SIZE)


def choose_secret(base: StoredRef | None, publisher: Publisher, *, private: bool) -> bytes | None:
    """The secret of a new version: that of its base, else of the version before; None for none.

    A private image stays private.

    Args:
        base: what the version is made from.
        private: make a secret if there is none.

    Raises:
        UsageError, MismatchError: see `StoredRef.check_secret`.
    """
    for ref in (base, publisher.newest):
        if ref is not None and ref.signed.manifest.private:
            ref.check_secret()
            if not private:
                notify(tr("it is private, as {ref} is", ref=ref.name))
            return ref.secret
    return new_secret() if private else None


def signing_key(home: Home, name: str | None) -> Ed25519PrivateKey:
    """The key that signs; None is the default one, which is made at its first use.

    Raises:
        UsageError: the name is not of the form of a label; or the key is protected and there is no
            terminal to ask at.
        NotHereError: there is no key of that name.
        MismatchError: the passphrase is another one.
    """
    with words_of_the_user():
        check_label(name or DEFAULT_KEY)
    load = load_or_create_key if name is None else load_key
    return load(home.keys, name or DEFAULT_KEY, ask_passphrase)


def serve_version(
    client: ControlClient,
    signed: SignedManifest,
    key: Ed25519PrivateKey,
    *,
    public: bool = False,
    secret: bytes | None = None,
) -> dict[str, Any]:
    """Have p2pcloopd serve a signed manifest and its name record.

    Args:
        signed: its layers are seeded already.
        key: the one that signed it.
        public: announce it to the DHT and to trackers, as far as the node uses these.
        secret: of a private image; it goes into the link that is kept and returned.

    Returns:
        `id`, `name`, `link`, `manifest_torrent` and so on, as of the operation `seed_manifest`.

    Raises:
        MismatchError: another manifest is known under that version, or a newer one.
        P2pcloopError: p2pcloopd could not serve it.
    """
    answer = client.call("seed_manifest", manifest=signed.data, public=public, secret=secret)
    manifest = signed.manifest
    record = Record(
        key=manifest.key,
        label=manifest.label,
        version=manifest.version,
        created=manifest.created,
        manifest_id=signed.id,
        manifest_torrent=answer["manifest_torrent"],
    )
    # p2pcloopd puts a public record into the DHT every hour, and cannot ask for a passphrase.
    handed = key.private_bytes_raw() if answer["public"] else None
    client.call("seed_record", record=sign_record(record, key), key=handed)
    return answer


def reference(ref: StoredRef) -> ManifestRef:
    """The reference by which another manifest names this one."""
    return ManifestRef(ref.signed.id, parse_link(ref.link).manifest_torrent)


def _signs_elsewhere(
    home: Home, key_name: str | None, public: bytes, *, has_published: bool
) -> bool:
    """Whether a key may have signed in another home: it was imported, or its file was copied.

    Args:
        has_published: a command has published in this home before. Else its names of that key are
            those that it was told of.
    """
    key_name = key_name or DEFAULT_KEY
    if was_imported(home.keys, key_name):
        return True
    if was_made_here(home.keys, key_name):
        return False
    if has_published and any(known.name.key == public for known in Records(home).names()):
        return False  # all of a home was copied, or its key was made before there were marks
    mark_imported(home.keys, key_name)  # it counts for the next names, too
    return True


def _tell_waiting(name: Name) -> None:
    notify(tr("waiting for another command that publishes {name}", name=name))


def newest_of(client: ControlClient, name: Name) -> StoredRef | None:
    """The newest version of a name that p2pcloopd knows or finds."""
    try:
        answer = client.call("resolve", ref=str(name), withdrawn=True)
    except NotHereError:
        return None
    return StoredRef(open_manifest(answer["manifest"]), answer["name"], answer["link"], client)
