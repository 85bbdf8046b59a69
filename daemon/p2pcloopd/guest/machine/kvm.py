"""Whether this machine's KVM runs a guest: found out by running one.

A /dev/kvm that opens says little. Where this system is itself a guest, KVM may be there and emulate
a guest's kernel, too slowly to boot one, or hang. So `probe_kvm` has a process of its own run a
loop of a guest's kernel mode (kvm_probe.py), and ends it after a second.
"""

from __future__ import annotations

import subprocess
import sys
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from p2pcloop.text import printable
from p2pcloop.words import tr

DEVICE = Path("/dev/kvm")
PROBE_SECONDS = 0.7
"""The loop has 40 million instructions: hundredths of a second where they are executed. At
a million instructions a second, as an emulated one was seen to have, it takes 40 s."""

_PROBE = Path(__file__).with_name("kvm_probe.py")
_WORDS = 200


@dataclass(frozen=True, slots=True)
class Kvm:
    """What was found out.

    Attributes:
        why_not: why it cannot be used, for people; "" if it runs a guest.
    """

    why_not: str = ""

    @property
    def is_usable(self) -> bool:
        """Whether it runs a guest."""
        return not self.why_not


@cache
def probe_kvm() -> Kvm:
    """Find out whether KVM runs a guest, within a second; the answer is kept."""
    return run_probe([sys.executable, "-I", "-S", str(_PROBE), str(DEVICE)])


def run_probe(command: list[str], limit: float = PROBE_SECONDS) -> Kvm:
    """Run the probe, and tell what its end means.

    Args:
        command: ends with 0 if the guest ran; else it says why not.
        limit: seconds that it may take.
    """
    if not DEVICE.exists():
        return Kvm(tr("this machine has no {device}", device=DEVICE))
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=limit, check=False
        )
    except subprocess.TimeoutExpired:
        return Kvm(tr("{device} is there, but runs a guest's kernel too slowly", device=DEVICE))
    except OSError as err:
        return Kvm(tr("{device} cannot be tried: {why}", device=DEVICE, why=err.strerror))
    if done.returncode == 0:
        return Kvm()
    said = printable(done.stdout.decode(errors="replace").strip())[:_WORDS]
    return Kvm(
        said
        or tr(
            "{device} ends the program that tries it (status {returncode})",
            device=DEVICE,
            returncode=done.returncode,
        )
    )
