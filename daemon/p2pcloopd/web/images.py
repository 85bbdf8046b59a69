"""The facts of one image that the page shows when it is opened."""

from __future__ import annotations

from typing import Any

from p2pcloop.formats.name import parse_name
from p2pcloop.store.home import Home
from p2pcloop.store.keys import our_keys
from p2pcloop.store.overlays import overlaid_manifests
from p2pcloop.store.profiles import look_up_profile
from p2pcloop.store.records import Records
from p2pcloop.text import printable
from p2pcloop.words import tr
from p2pcloopd.web.words import said


def image_facts(home: Home, name: str, language: str) -> dict[str, Any]:
    """Facts of the newest known version of a name, for a viewer of a language.

    Raises:
        FormatError: it is no name.
        NotHereError: it is not known here.
    """
    records = Records(home)
    record = records.name(parse_name(name))
    signed = records.manifest(record.manifest_id)
    manifest = signed.manifest
    profile = None if manifest.withdrawn else look_up_profile(home, manifest)
    source = profile and (tr("recorded here") if profile.kept else tr("published"))
    overlays = [str(path) for path, ids in overlaid_manifests(home) if signed.id in ids]
    return {
        "name": str(record.name),
        "version": manifest.version,
        "manifest": signed.id,
        "created": manifest.created,
        "message": printable(manifest.message),
        "size": manifest.disk_length,
        "layers": len(manifest.layers),
        "private": manifest.private,
        "withdrawn": manifest.withdrawn,
        "state": manifest.machine is not None,
        "ours": manifest.key in our_keys(home.keys),
        "profile": source and said(source, language),
        "overlays": overlays,
        # Of a private image the link has the secret; it is for the page of the home's owner alone.
        "link": str(record.link),
    }
