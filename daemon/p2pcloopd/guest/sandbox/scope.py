"""A control group for a sandbox, where systemd keeps one for us: it bounds all processes together.

systemd-run(1) asks systemd for it (systemd.scope(5)), since only systemd may write its tree of
groups (https://systemd.io/CGROUP_DELEGATION). Root asks the system's systemd. Other users ask their
own, but only if they already run below it: in a desktop's terminal, and not in a login by SSH. For
the groups of a user's systemd end with the user's last login, and a guest in tmux must not.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path


def scope_words(memory: int, processes: int, root: Path = Path("/")) -> list[str]:
    """Return the words before a command that give it a control group; none if it cannot have one.

    Args:
        memory: bytes that all its processes may take together, and as many of swap.
        processes: how many it may have at once; threads count.
        root: where /run and /proc are.
    """
    program = shutil.which("systemd-run")
    # As sd_booted(3) finds out whether systemd runs this system.
    if program is None or not (root / "run/systemd/system").is_dir():
        return []
    manager = "--system"
    if os.geteuid() != 0:
        manager = "--user"
        groups = (root / "proc/self/cgroup").read_text(errors="replace")
        if f"/user@{os.getuid()}.service/" not in groups:
            return []
    limits = {"MemoryMax": memory, "MemorySwapMax": memory, "TasksMax": processes}
    properties = [f"--property={name}={value}" for name, value in limits.items()]
    return [program, manager, "--scope", "--quiet", "--collect", *properties, "--"]
