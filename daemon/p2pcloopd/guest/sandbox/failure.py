"""Why a sandbox did not start: the complaints of the programs that make it, and the remedy."""

from __future__ import annotations

from pathlib import Path

from p2pcloop.errors import GuestError
from p2pcloop.words import tr

_LINES = 3

_SWITCHES = (
    ("kernel/unprivileged_userns_clone", "0", tr("only root may make user namespaces here"), "1"),
    ("user/max_user_namespaces", "0", tr("no user namespaces may be made here"), "10000"),
    (
        "kernel/apparmor_restrict_unprivileged_userns",
        "1",
        tr(
            "AppArmor keeps programs without a profile of their own from using user namespaces here"
        ),
        "0",
    ),
)
"""Settings that keep users from making user namespaces: the file below /proc/sys, the value that
does so, its meaning, and the value that the file should have."""

_CONTAINER = tr(
    "in a chroot user namespaces cannot be made; in a container they must be allowed: "
    "`docker run --security-opt seccomp=unconfined --security-opt systempaths=unconfined`, as root "
    "with `--cap-add SYS_ADMIN`; or run p2pcloop outside of it"
)


def sandbox_failure(complaint: str, root: Path = Path("/")) -> GuestError:
    """Return the error that tells what `complaint`, the output of unshare, mount or bwrap, means.

    Args:
        complaint: some lines of text, or none.
        root: where /proc is.
    """
    lines = [line.strip() for line in complaint.splitlines() if line.strip()]
    said = "; ".join(lines[-_LINES:]) or tr("it ended without a word")
    return GuestError(
        tr("the sandbox round the guest does not start: {said}", said=said),
        hint=_remedy(said, root),
    )


def _remedy(said: str, root: Path) -> str | None:
    if "No space left" in said or "not permitted" in said or "ermission denied" in said:
        for name, value, meaning, better in _SWITCHES:
            switch = root / "proc/sys" / name
            if switch.exists() and switch.read_text().strip() == value:
                return tr(
                    "{meaning}: `sysctl {replace}={better}`, as root",
                    meaning=meaning,
                    replace=name.replace("/", "."),
                    better=better,
                )
        return _CONTAINER
    if "Cannot allocate memory" in said or "temporarily unavailable" in said:
        return tr("the machine is short of memory, or this user has as many processes as it may")
    return None
