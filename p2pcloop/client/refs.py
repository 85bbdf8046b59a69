"""REF: how the user names an image on the command line.

image.cloop                  a local file
magnet:?…                    a link
@key/label                   a name; the first characters of a known key are enough
label                        a name of the user's own
https://host/dir/@key/label  a name, and the mirror where its record lies
DIR/@key/label               the same, of a mirror in a directory
knoppix                      a short name of the user's own (`p2pcloop name`)

What only some REFs need, and all that is needed only once p2pcloopd answers, is imported in
functions: a boot of a link starts p2pcloopd before it loads the rest.
"""

from __future__ import annotations

import errno
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from p2pcloop.client.control_client import ControlClient, NotRunningError
from p2pcloop.client.daemon import Start, ensure_daemon, spawn_daemon
from p2pcloop.client.invocation import FileChoice
from p2pcloop.client.stored_ref import StoredRef
from p2pcloop.client.terminal import notify
from p2pcloop.errors import FormatError, NotHereError, UsageError
from p2pcloop.formats.link import is_link
from p2pcloop.formats.name import is_label
from p2pcloop.formats.pasted import clean_pasted, parse_pasted_link
from p2pcloop.formats.place import is_url, parse_place
from p2pcloop.protocol.waiting import describe_waiting
from p2pcloop.store.home import Home
from p2pcloop.words import tr

if TYPE_CHECKING:
    from p2pcloop.formats.manifest import Manifest
    from p2pcloop.making.image_file import ImageFile

_MAX_LINE = 1 << 16
_LINK_HINT = "take the link that `p2pcloop seed` printed, whole and in quotes"
_FORMS_HINT = "a name is written @key/label, a link magnet:?…"
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*")
_IN_DIRECTORY = re.compile(r"/@[^/]*/[^/]*$")


def resolve_ref(
    ref: str,
    home: Home,
    *,
    at: int = 0,
    look: bool = False,
    withdrawn: bool = False,
    meanwhile: Callable[[], object] | None = None,
    start: Start = spawn_daemon,
    unpack: bool = True,
    late: bool = False,
) -> ImageFile | StoredRef:
    """Find the image that a REF stands for. Except for files, this starts p2pcloopd.

    Args:
        at: the version that is wanted; 0 for that of a link, or the newest known of a name.
        look: ask all sources for the newest version of a name, even if one is known here.
        withdrawn: return a withdrawal, too.
        meanwhile, start: see `ensure_daemon`.
        unpack: unpack the content of a container; False for commands that refuse files.
        late: p2pcloopd may start later: see whole.py.

    Raises:
        UsageError: the REF is not of the right form, or has two meanings.
        NotHereError: there is no such file, or no source has an image of that name or version.
        FormatError: the manifest cannot be read.
        MismatchError: the manifest does not fit the REF or its key, is older than a version that
            was seen, or is a fork.
    """
    with words_of_the_user(_LINK_HINT if is_link(clean_pasted(ref)) else None):
        asked = read_ref(ref, home)
    if isinstance(asked, Path):
        if at:
            raise UsageError(
                tr("{ref} is a file: it has no versions", ref=ref), hint="leave out --at"
            )
        from p2pcloop.client.image_file import open_image_file  # noqa: PLC0415  see above
        from p2pcloop.making.local import inspect_file  # noqa: PLC0415

        if not unpack:
            return inspect_file(asked, raw=True)  # this checks only that it is there
        return open_image_file(asked, home)
    if unpack and FileChoice.current() != FileChoice():
        raise UsageError("--partition and --raw are for files", hint="leave them out")
    if late and (found := _find_late(asked, home, at)) is not None:
        return found
    client = ensure_daemon(home, meanwhile, start=start)
    answer = client.call(
        "resolve", report_waiting, ref=asked, at=at, look=look, withdrawn=withdrawn
    )
    from p2pcloop.formats.manifest import open_manifest  # noqa: PLC0415  see above

    return StoredRef(open_manifest(answer["manifest"]), answer["name"], answer["link"], client)


def _find_late(asked: str, home: Home, at: int) -> StoredRef | None:
    """`find_whole`, if no p2pcloopd runs."""
    if not home.names.exists():
        return None
    try:
        ControlClient.connect(home).close()
    except NotRunningError:
        from p2pcloop.client.whole import find_whole  # noqa: PLC0415  see above

        found = find_whole(asked, home, at)
        if found is not None:
            notify(
                tr(
                    "p2pcloopd starts on {root} once the guest is up (log: {log}); it seeds until"
                    " `p2pcloop daemon stop`",
                    root=home.root,
                    log=home.log.name,
                )
            )
        return found
    return None


def typed_ref(ref: str) -> str:
    """A REF, or for `-` the line that comes on standard input: a link with a secret is for no other
    user's eyes, who may list the words of commands.

    Raises:
        UsageError: no line comes.
    """
    if ref != "-":
        return ref
    line = sys.stdin.readline(_MAX_LINE).strip()
    if not line:
        raise UsageError("no REF came on standard input", hint="give it as one line")
    return line


def resolve_stored(
    ref: str, home: Home, *, why_no_file: str, hint: str, at: int = 0, withdrawn: bool = False
) -> StoredRef:
    """Find the stored image of a REF that must not be a file.

    Args:
        why_no_file: for the error: "it has no versions".
        hint: for the error, too.
        at, withdrawn: as for `resolve_ref`.

    Raises:
        UsageError: it is a file.
        P2pcloopError: as for `resolve_ref`.
    """
    target = resolve_ref(ref, home, at=at, withdrawn=withdrawn, unpack=False)
    if not isinstance(target, StoredRef):
        raise UsageError(
            tr("{ref} is a file: {why_no_file}", ref=ref, why_no_file=why_no_file), hint=hint
        )
    return target


def read_ref(ref: str, home: Home) -> Path | str:
    """Read a REF: return the path of a file, or the words that p2pcloopd resolves.

    Raises:
        FormatError, UsageError: it is not of the form of a REF, or has two meanings.
        NotHereError: there is no such file or directory, and no image of that label.
    """
    if not ref:
        raise UsageError(
            "REF is empty",
            hint="give a file, a link or @key/label; is a variable of the shell unset?",
        )
    path = Path(ref)
    pasted = clean_pasted(ref)
    _check_words(pasted, path)
    if is_link(pasted):
        try:
            return str(parse_pasted_link(ref))
        except (UsageError, FormatError) as err:
            if "…" in ref:  # at its end it may be of the text that the link stood in
                raise _shortened(ref) from err
            raise
    if is_url(pasted):
        return str(parse_place(pasted))
    from p2pcloop.store.known_names import find_name  # noqa: PLC0415  see above

    if pasted.startswith("@"):
        return str(find_name(pasted, home))
    if _IN_DIRECTORY.search(ref):
        place = parse_place(ref)
        if not Path(place.base).is_dir():
            raise NotHereError(
                tr("{base} is not a directory that is here", base=place.base),
                hint="the URL of a mirror begins with https:// or http://",
            )
        return f"{Path(place.base).absolute()}/{place.name}"
    return _file_or_label(ref, path, home)


def _file_or_label(ref: str, path: Path, home: Home) -> Path | str:
    """Return the path of a file, or the name that a label of the user's stands for."""
    from p2pcloop.store.known_names import own_name  # noqa: PLC0415  see above
    from p2pcloop.store.names import ShortNames  # noqa: PLC0415

    short = ShortNames(home).find(ref) if is_label(ref) else None
    try:
        is_file = path.exists() and not path.is_dir()  # a directory is never an image
    except OSError as err:
        if err.errno == errno.ENAMETOOLONG:
            raise NotHereError(
                tr("there is no file {ref}…: a name has 255 bytes at most", ref=ref[:60]),
                hint=_FORMS_HINT,
            ) from err
        raise
    if short is not None and is_file:
        raise UsageError(
            tr("{ref} is a file here, and a short name of {short}", ref=ref, short=short),
            hint=tr("write ./{ref} for the file, or the name itself", ref=ref),
        )
    if is_file:
        _tell_image(ref, home)
    if short is None and not is_file:
        short = own_name(ref, home)
        if short is None and not path.exists():
            raise _not_here(ref, home)
    return path if short is None else str(short)


def _tell_image(ref: str, home: Home) -> None:
    """Say so if a file that is taken has the label of an image of the user's."""
    from p2pcloop.store.known_names import own_name, short_key  # noqa: PLC0415  see above

    with suppress(UsageError):  # several images have that label
        own = own_name(ref, home)
        if own is not None:
            notify(
                tr(
                    "{ref} is a file here, and is taken; your image is {own}",
                    ref=ref,
                    own=short_key(own),
                )
            )


def _check_words(pasted: str, path: Path) -> None:
    """Refuse links and names that documents have shortened with `…`, and URLs of no mirror."""
    if pasted.startswith("@") and "…" in pasted:
        raise _shortened(pasted)
    scheme, _, rest = pasted.partition("://")
    if not rest or is_url(pasted) or not _SCHEME.fullmatch(scheme) or path.exists():
        return
    hint = tr(
        "an image on the web is written https://HOST/DIR/@<key>/<label>, or as a link magnet:?…"
    )
    if scheme.lower() == "file":
        hint = tr("give the path: {rest}", rest=rest)
    raise UsageError(
        tr("{pasted}: p2pcloop does not read {scheme}:// URLs", pasted=pasted, scheme=scheme),
        hint=hint,
    )


def _shortened(pasted: str) -> UsageError:
    return UsageError(
        tr("{pasted} is shortened: `…` stands for what was left out", pasted=pasted),
        hint="give all of it; of a key its first characters do, as in @kbth/debian",
    )


def _not_here(ref: str, home: Home) -> NotHereError:
    """The error for a REF that is neither a file nor a label or short name of the user's."""
    from p2pcloop.client.guests import describe_guest  # noqa: PLC0415  see above
    from p2pcloop.store.guests import list_guests  # noqa: PLC0415  see above
    from p2pcloop.store.known_names import known_names, short_key  # noqa: PLC0415  see above

    if not is_label(ref):
        return NotHereError(tr("there is no file {ref}", ref=ref), hint=_FORMS_HINT)
    others = [short_key(name) for name in known_names(home) if name.label == ref]
    if others:
        return NotHereError(
            tr("there is no file {ref}, and you have published no image as {ref}", ref=ref),
            hint=tr("another publisher has: write {others}", others=" or ".join(others)),
        )
    guest = next((each for each in list_guests(home) if each.record.name == ref), None)
    return NotHereError(
        tr("there is no file {ref}, and no image of that name is known here", ref=ref),
        hint=tr("`p2pcloop images` lists what is known; {forms_hint}", forms_hint=_FORMS_HINT)
        if guest is None
        else describe_guest(guest),
    )


def made_on(overlay: Path, home: Home) -> StoredRef:
    """Return the image that an overlay names, which must be known here.

    Raises:
        NotHereError: it names none, or one that is not known.
        FormatError: it is no overlay, or is damaged.
    """
    from p2pcloop.formats.overlay import Overlay  # noqa: PLC0415  see above

    info = Overlay.inspect(overlay)
    manifest = None if info.manifest_id is None else _known_manifest(info.manifest_id, home)
    if manifest is None:
        what = (
            tr("a version of {info} that is", info=info.name)
            if info.name
            else tr("an image that is")
        )
        raise NotHereError(
            tr("{overlay} was made on {what} not known here", overlay=overlay, what=what),
            hint="name it with --base: a link, or @key/label",
        )
    known = resolve_ref(str(manifest.name), home, at=manifest.version)
    assert isinstance(known, StoredRef)
    return known


def _known_manifest(manifest_id: bytes, home: Home) -> Manifest | None:
    from p2pcloop.store.records import Records  # noqa: PLC0415  see above

    try:
        return Records(home).manifest(manifest_id).manifest
    except NotHereError:
        return None


@contextmanager
def words_of_the_user(hint: str | None = None) -> Iterator[None]:
    """Turn a `FormatError` into a `UsageError`: the user typed what is wrong.

    Args:
        hint: for errors that have none.
    """
    try:
        yield
    except FormatError as err:
        raise UsageError(err.message, hint=err.hint or hint) from err


_told: set[str] = set()
"""The lines of `report_waiting`: a command that waits for several layers says each once."""


def tell_state(target: ImageFile | StoredRef, what: str) -> None:
    """Tell the user of a command that takes an image for its disk that it is more, if it is.

    Args:
        what: what the command does with the disk, a sentence of which the disk is the subject.
    """
    if isinstance(target, StoredRef) and target.signed.manifest.machine is not None:
        notify(
            tr(
                "p2pcloop: {target} is a state of a guest that ran; its disk {what}. `p2pcloop"
                " resume` goes on where the guest stopped",
                target=target.name,
                what=what,
            )
        )


def report_waiting(event: str, fields: dict[str, Any]) -> None:
    """Say on stderr, once, that no peer answers, which peers were tried, and what to do."""
    if event != "waiting":
        return
    told = describe_waiting(fields | {"seconds": 0})
    if told not in _told:
        notify(describe_waiting(fields))
        if not _told:
            notify("  hint: see that p2pcloopd runs there, or take a newer link; Ctrl-C gives up")
        _told.add(told)
