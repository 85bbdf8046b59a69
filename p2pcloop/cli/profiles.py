"""Profiles for commands: those in files, and those of what a REF or an image file stands for."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from p2pcloop.cli.progress import progress_bar
from p2pcloop.cli.refs import StoredRef, resolve_ref
from p2pcloop.errors import FormatError, NotHereError, UsageError, storage_error
from p2pcloop.formats.manifest import Manifest
from p2pcloop.formats.profile import MAX_PROFILE_SIZE, Profile, is_profile, open_profile
from p2pcloop.image.merged import MergedImage
from p2pcloop.making.local import ImageFile, open_local
from p2pcloop.store.home import Home
from p2pcloop.store.profiles import ancestors, load_profile, look_up_profile


@dataclass(frozen=True, slots=True)
class FoundProfile:
    """A profile, and how it came here.

    Attributes:
        profile: what it says.
        origin: "recorded" here, "kept" here but signed by somebody, "attached" to the manifest by
            its publisher, or a "file".
        of: the version that it is of, where that is not the image that was asked for.
    """

    profile: Profile
    origin: str
    of: Manifest | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """An image whose profile is handled.

    Attributes:
        what: its name, or the file's path.
        image_id: of its content.
        size: bytes of the device.
        ref: where it is a stored image.
        local: where it is a file, opened.
    """

    what: str
    image_id: bytes
    size: int
    ref: StoredRef | None = None
    local: MergedImage | None = None

    @classmethod
    def of(cls, text: str, home: Home, stack: ExitStack, *, quiet: bool) -> Subject:
        """Find what a REF stands for; errors as of `resolve_ref` and `open_local`."""
        target = resolve_ref(text, home)
        if isinstance(target, ImageFile):
            return cls.of_file(target, home, stack, quiet=quiet)
        stack.enter_context(target.client)
        manifest = target.signed.manifest
        return cls(target.name, manifest.image_id, manifest.size, ref=target)

    @classmethod
    def of_file(cls, file: ImageFile, home: Home, stack: ExitStack, *, quiet: bool) -> Subject:
        """Open an image file; errors as of `open_local`."""
        home.create()
        with progress_bar("reading", quiet=quiet) as progress:
            image = open_local(file, home.indexes, progress)
        stack.callback(image.close)
        return cls(str(file.path), image.image_id, image.size, local=image)

    def before(self, home: Home) -> Iterable[Manifest]:
        """What is known here of the manifests that it was made from."""
        return () if self.ref is None else ancestors(home, self.ref.signed.manifest)

    def find(self, home: Home) -> FoundProfile:
        """The profile that serves it best.

        Raises:
            NotHereError: none is known here.
        """
        found = self._look_up(home)
        if found is None:
            raise NotHereError(
                f"no profile of {self.what} is known here",
                hint="boot it once, which records one, or attach one: `p2pcloop profile attach`",
            )
        return found

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
            f"{path} is not a profile", hint="one is written by `p2pcloop profile export`"
        )
    return data, open_profile(data)


def read_if_profile(text: str) -> Profile | None:
    """The profile in a file; None where a text is no file's name, or the file something else.

    Raises:
        FormatError, MismatchError: it begins as a profile does, and is damaged.
    """
    path = Path(text)
    if not path.is_file():
        return None
    data = _read_start(path)
    return open_profile(data) if is_profile(data) else None


def _read_start(path: Path) -> bytes:
    try:
        if not path.is_file():
            if path.exists():
                raise UsageError(f"{path} is not a file: a regular one is needed")
            raise NotHereError(f"there is no file {path}")
        with path.open("rb") as file:
            return file.read(MAX_PROFILE_SIZE + 1)
    except OSError as err:
        raise storage_error(f"cannot read {path}", err) from err


def _kept(profile: Profile) -> str:
    return "recorded" if profile.key is None else "kept"
