"""Finding profiles: of a stored image, of an image file, or in a file of their own."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path

from p2pcloop.client.progress import progress_bar
from p2pcloop.client.refs import resolve_ref
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.errors import FormatError, NotHereError, UsageError, storage_error
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.profile import (
    MAX_PROFILE_SIZE,
    Profile,
    is_profile,
    open_profile,
    unpack_touches,
)
from p2pcloop.frozen import dataclass
from p2pcloop.image.ahead import chunks_in_order, needed_bytes
from p2pcloop.image.api import Missing
from p2pcloop.image.device import ImageDevice
from p2pcloop.image.merged import MergedImage
from p2pcloop.image.stored import StoredImage
from p2pcloop.making.image_file import ImageFile
from p2pcloop.making.local import open_local
from p2pcloop.making.pack import device_size
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import ancestors, load_profile, look_up_profile
from p2pcloop.words import tr


@dataclass(frozen=True, slots=True)
class FoundProfile:
    """A profile, and its origin.

    Attributes:
        profile: the touches of a boot.
        origin: "recorded" here by a boot; "kept" here, signed by a user; "attached" to the
            manifest by its publisher; or "file".
        of: the version that it belongs to, if that is not the image that was asked for.
    """

    profile: Profile
    origin: str
    of: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """An image whose profile a command shows or changes.

    Attributes:
        what: its name, or the file's path.
        image_id: of its content.
        size: bytes of the device.
        ref: the image, if it is stored.
        local: the image, opened, if it is a file.
    """

    what: str
    image_id: bytes
    size: int
    ref: StoredRef | None = None
    local: MergedImage | None = None

    @classmethod
    def of(cls, text: str, home: Home, stack: ExitStack, *, quiet: bool) -> Subject:
        """The image that a REF stands for; errors as of `resolve_ref` and `open_local`."""
        return cls.open(resolve_ref(text, home), home, stack, quiet=quiet)

    @classmethod
    def open(
        cls, target: ImageFile | StoredRef, home: Home, stack: ExitStack, *, quiet: bool
    ) -> Subject:
        """The image that `resolve_ref` found; makes a file's index. Errors as of `open_local`."""
        if isinstance(target, StoredRef):
            stack.enter_context(target.client)
            return cls.of_stored(target)
        home.create()
        with progress_bar("reading", quiet=quiet) as progress:
            progress(0, device_size(target))
            image = open_local(target, home.indexes, progress)
        stack.callback(image.close)
        return cls(str(target.name), image.image_id, image.size, local=image)

    @classmethod
    def of_stored(cls, ref: StoredRef) -> Subject:
        """A stored image; the caller closes its connection."""
        manifest = ref.signed.manifest
        return cls(ref.name, manifest.image_id, manifest.size, ref=ref)

    def before(self, home: Home) -> Iterable[Manifest]:
        """The manifests that it was made from, as far as they are known here."""
        return () if self.ref is None else ancestors(home, self.ref.signed.manifest)

    def find(self, home: Home) -> FoundProfile:
        """The profile that fits it best.

        Raises:
            NotHereError: none is known here.
        """
        found = self._look_up(home)
        if found is None:
            raise NotHereError(
                tr("no profile of {what} is known here", what=self.what),
                hint="boot it once, which records one, or attach one: `p2pcloop profile attach`",
            )
        return found

    def fetched(self, profile: Profile, home: Home) -> int | None:
        """Stored bytes of the chunks that hold a profile's blocks, and of those that these need,
        whether they are here or not; without the pages of a kernel that is here.

        None if maps or chunk tables are not here, or the secret of a private image is not known.
        """
        touches = unpack_touches(profile.touches)
        with ExitStack() as stack:
            try:
                image = self.local or self.open_here(home, stack)
                return needed_bytes(image, chunks_in_order(ImageDevice(image), touches))
            except (Missing, UsageError):
                return None

    def open_here(self, home: Home, stack: ExitStack) -> MergedImage:
        """Open a stored image, if its headers and maps are here.

        Raises:
            Missing: they are not.
            UsageError: a private image whose secret is not here.
        """
        assert self.ref is not None, "what is no file is stored"
        stored = StoredImage.of_home(self.ref.signed.manifest, home, self.ref.secret)
        try:
            image = stored.open()
        except Missing:
            stored.close()
            raise
        stack.callback(image.close)
        return image

    def _look_up(self, home: Home) -> FoundProfile | None:
        if self.ref is None:
            profile = load_profile(home, self.image_id)
            return None if profile is None else FoundProfile(profile, _kept(profile))
        found = look_up_profile(home, self.ref.signed.manifest)
        if found is None:
            return None
        origin = _kept(found.profile) if found.kept else "attached"
        of = None if found.of.image_id == self.image_id else found.of
        return FoundProfile(found.profile, origin, of)


def read_profile(path: Path) -> tuple[bytes, Profile]:
    """Read and check a file that must be a profile; return its bytes, too.

    Raises:
        NotHereError: there is no such file.
        FormatError, MismatchError: it is no profile, or not signed by the key that it names.
        StorageError: it cannot be read.
    """
    data = _read_start(path)
    if not is_profile(data):
        raise FormatError(
            tr("{path} is not a profile", path=path),
            hint="one is written by `p2pcloop profile export`",
        )
    return data, open_profile(data)


def read_if_profile(file: ImageFile) -> Profile | None:
    """The profile in a file, or None if the file is something else.

    Raises:
        FormatError, MismatchError: it begins like a profile, and is damaged.
    """
    data = _read_start(file.path)
    return open_profile(data) if is_profile(data) else None


def _read_start(path: Path) -> bytes:
    try:
        if not path.is_file():
            if path.exists():
                raise UsageError(tr("{path} is not a file: a regular one is needed", path=path))
            raise NotHereError(tr("there is no file {path}", path=path))
        with path.open("rb") as file:
            return file.read(MAX_PROFILE_SIZE + 1)
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=path), err) from err


def _kept(profile: Profile) -> str:
    return "recorded" if profile.key is None else "kept"
