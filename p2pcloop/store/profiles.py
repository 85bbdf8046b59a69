"""The profiles of a home, `profiles/<image id hex>`: recorded by its boots, or attached."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from pathlib import Path

from p2pcloop.errors import FormatError, MismatchError, P2pcloopError, storage_error
from p2pcloop.formats.manifest import Manifest, ManifestRef, SignedManifest, open_manifest
from p2pcloop.formats.named import read_file
from p2pcloop.formats.profile import Profile, Touch, fit_touches, open_profile, unpack_touches
from p2pcloop.frozen import dataclass
from p2pcloop.store.home import Home, replace_file
from p2pcloop.units import BLOCK_SIZE
from p2pcloop.words import tr

MAX_ANCESTORS = 64
"""How many older manifests are searched for a profile."""

_log = logging.getLogger(__name__)


def profile_path(home: Home, image_id: bytes) -> Path:
    """The path of an image's profile."""
    return home.profiles / image_id.hex()


def load_profile(home: Home, image_id: bytes) -> Profile | None:
    """The profile that is kept for an image; None if there is none, or it is damaged.

    Raises:
        StorageError: the system refused.
    """
    path = profile_path(home, image_id)
    try:
        profile = open_profile(read_file(path))
    except FileNotFoundError:
        return None
    except (FormatError, MismatchError) as err:
        _log.warning("%s is not used: %s", path, err)
        return None
    except OSError as err:
        raise storage_error(tr("cannot read {path}", path=path), err) from err
    return profile if profile.image_id == image_id else None


def keep_profile(home: Home, data: bytes) -> Profile:
    """Keep a profile for its image; it replaces an older one.

    Raises:
        FormatError, MismatchError: the bytes are no valid profile.
        StorageError: the system refused; the old one is still there.
    """
    profile = open_profile(data)
    home.create()
    replace_file(profile_path(home, profile.image_id), data)
    return profile


def forget_profile(home: Home, image_id: bytes) -> bool:
    """Delete the profile of an image; False if there was none.

    Raises:
        StorageError: the system refused.
    """
    try:
        profile_path(home, image_id).unlink()
    except FileNotFoundError:
        return False
    except OSError as err:
        raise storage_error(
            tr("cannot delete {home}", home=profile_path(home, image_id)), err
        ) from err
    return True


@dataclass(frozen=True, slots=True)
class Found:
    """A profile that fits an image.

    Attributes:
        profile: the touches of a boot.
        of: the image that it belongs to: the one that was asked for, or one that it was made from.
        kept: by this home; else the publisher attached it to `of`.
    """

    profile: Profile
    of: Manifest
    kept: bool


def look_up_profile(home: Home, manifest: Manifest, *, boots: bool = False) -> Found | None:
    """Find the profile that fits an image best: its own, or that of an image it was made from.

    For each of these, a profile that this home keeps is preferred to an attached one: the user's
    machine recorded it, or the user chose it.

    Args:
        boots: find one of a boot. Else one of a resume is found for a state, which reads other
            blocks.

    Raises:
        StorageError: the system refused.
    """
    resumes = manifest.machine is not None and not boots
    for each in (manifest, *ancestors(home, manifest)):
        if not (_is_earlier(each, manifest) if resumes else each.machine is None):
            continue
        profile = load_profile(home, each.image_id)
        if profile is not None:
            return Found(profile, each, kept=True)
        if each.profile:
            attached = Profile(each.image_id, each.size, each.created, each.profile, each.key)
            return Found(attached, each, kept=False)
    return None


def _is_earlier(one: Manifest, state: Manifest) -> bool:
    """Whether one manifest is of the same guest's memory as a state: packed otherwise, or of the
    state that it came from. The memory of another boot has other things at each place."""
    if one.machine is None or state.machine is None:
        return False
    return one.machine == state.machine or (
        one.machine.memory == state.machine.memory and state.layers[: len(one.layers)] == one.layers
    )


def find_profile(home: Home, manifest: Manifest, *, boots: bool = False) -> Profile | None:
    """The profile that `look_up_profile` finds."""
    found = look_up_profile(home, manifest, boots=boots)
    return None if found is None else found.profile


def expected_touches(home: Home, manifest: Manifest, *, boots: bool = False) -> tuple[Touch, ...]:
    """The touches that a boot, or the resume of a state, is expected to make; empty if no profile
    is known.

    Args:
        boots: see `look_up_profile`.

    Raises:
        StorageError: the system refused.
    """
    found = find_profile(home, manifest, boots=boots)
    return () if found is None else tuple(unpack_touches(found.touches))


def fit_profile(
    profile: Profile, image_id: bytes, size: int, before: Iterable[Manifest] = ()
) -> tuple[bytes, str]:
    """Fit a profile to an image.

    Args:
        image_id, size: of the image.
        before: the manifests that it was made from (`ancestors`).

    Returns:
        The packed touches, and a remark for the user: "" if the profile is of this image.

    Raises:
        MismatchError: it is of another image, and names blocks that this one does not have, or
            no touch is left.
    """
    blocks = size // BLOCK_SIZE
    touches = fit_touches(profile.touches, blocks)
    remark = ""
    if profile.image_id != image_id:
        older = next((each for each in before if each.image_id == profile.image_id), None)
        if older is None and touches != profile.touches:
            raise MismatchError(
                "the profile is of another image: it names blocks that this one does not have",
                hint="take one of this image, or of an older version",
            )
        what = (
            tr("another image")
            if older is None
            else tr("{older}, version {version}", older=older.name, version=older.version)
        )
        remark = tr(
            "the profile is of {what}; it names blocks, so it helps where those are alike",
            what=what,
        )
    if not unpack_touches(touches):
        raise MismatchError("the profile names no block that the image has")
    return touches, remark


def ancestors(home: Home, manifest: Manifest) -> Iterator[Manifest]:
    """The manifests that one was made from, as far as they are known here, nearest first."""
    seen: set[bytes] = set()
    ahead = [manifest.previous, manifest.parent]
    while ahead and len(seen) < MAX_ANCESTORS:
        ref = ahead.pop(0)
        if not isinstance(ref, ManifestRef) or ref.id in seen:
            continue
        seen.add(ref.id)
        known = _read_manifest(home, ref.id)
        if known is not None:
            yield known.manifest
            ahead += [known.manifest.previous, known.manifest.parent]


def _read_manifest(home: Home, manifest_id: bytes) -> SignedManifest | None:
    try:
        signed = open_manifest(read_file(home.manifests / manifest_id.hex()))
    except (OSError, P2pcloopError):
        return None  # not known here, or damaged: it would only have been a hint
    return signed if signed.id == manifest_id else None
