"""The host name of a guest whose user gave it a name."""

from __future__ import annotations

from p2pcloopd.guest.system.initramfs import Part


def hostname_part(name: str) -> Part:
    """Return the part of a first root that gives the guest a host name, for this boot."""
    return Part(
        steps=("programs", "hostname"),
        applets=("hostname", "ls", "readlink"),
        settings={"NAME": name},
    )


def hostname_words(name: str) -> str:
    """Return the words for the kernel by which systemd takes that name (systemd(1))."""
    return f"systemd.hostname={name}"
