"""Make a CD with the layout of KNOPPIX's, as a stand-in for one.

Of the remastering guides of KNOPPIX 3 to 5: the options of mkisofs for the file system in the cloop
and for the CD, and where things lie on the CD. Usage:

    python -m tools.knoppix_cd fill-tiny ROOT         a busybox root, as an old KNOPPIX has it
    python -m tools.knoppix_cd root ROOT OUT.iso      the file system for the cloop
    python -m tools.knoppix_cd cd OUT.iso CLOOP...    the CD: KNOPPIX/KNOPPIX, KNOPPIX/KNOPPIX2, ...
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.tiny_image import fill_root

ISOLINUX = Path("/usr/lib/ISOLINUX/isolinux.bin")
"""Of the package isolinux."""

_CUSTOMISE = Path(__file__).with_name("customise-knoppix")
_ROOT_OPTIONS = ("-R", "-l", "-D", "-hide-rr-moved", "-cache-inodes", "-pad", "-V", "KNOPPIX_FS")
_CD_OPTIONS = (
    *("-pad", "-l", "-r", "-J", "-V", "KNOPPIX", "-hide-rr-moved"),
    *("-no-emul-boot", "-boot-load-size", "4", "-boot-info-table"),
    *("-b", "boot/isolinux/isolinux.bin", "-c", "boot/isolinux/boot.cat"),
)
_FILES = {
    "boot/isolinux/isolinux.cfg": """\
DEFAULT linux
APPEND ramdisk_size=100000 init=/etc/init lang=us initrd=minirt.gz quiet BOOT_IMAGE=knoppix
TIMEOUT 300
PROMPT 1
DISPLAY boot.msg
""",
    "boot/isolinux/boot.msg": "A stand-in for KNOPPIX. Boot it with: p2pcloop boot\n",
    "boot/isolinux/linux": "p2pcloop takes no kernel from an image\n",
    "boot/isolinux/minirt.gz": "nor an initial RAM disk\n",
    "KNOPPIX/KNOPPIX-FAQ-EN.txt": "A stand-in for KNOPPIX.\n",
    "autorun.inf": "[autorun]\nopen=index.html\n",
    "index.html": "<title>A stand-in for KNOPPIX</title>\n",
}  # fmt: skip


def fill_tiny(root: Path) -> None:
    """Fill a new folder with a busybox root with an init like KNOPPIX's."""
    fill_root(root)
    subprocess.run([_CUSTOMISE, root], check=True)


def make_root(root: Path, out: Path) -> None:
    """Write the file system that is in the cloop: ISO 9660 with Rock Ridge."""
    _genisoimage(root, out, _ROOT_OPTIONS)


def make_cd(out: Path, images: Sequence[Path], *, options: Sequence[str] = _CD_OPTIONS) -> None:
    """Write a CD to boot from, with images as `KNOPPIX/KNOPPIX`, `KNOPPIX/KNOPPIX2` and so on.

    Args:
        out: the CD image.
        images: cloops, or other files.
        options: of genisoimage.
    """
    with tempfile.TemporaryDirectory(prefix="knoppix-", dir=out.parent) as scratch:
        cd = Path(scratch)
        for name, text in _FILES.items():
            (cd / name).parent.mkdir(parents=True, exist_ok=True)
            (cd / name).write_text(text)
        shutil.copy(ISOLINUX, cd / "boot/isolinux")
        for number, image in enumerate(images, 1):
            (cd / f"KNOPPIX/KNOPPIX{number if number > 1 else ''}").hardlink_to(image.absolute())
        _genisoimage(cd, out, options)


def _genisoimage(folder: Path, out: Path, options: Sequence[str]) -> None:
    subprocess.run(
        ["genisoimage", "-quiet", "-input-charset", "utf-8", *options, "-o", out, folder],
        check=True,
    )


def main() -> None:
    """Run the command line."""
    match sys.argv[1:]:
        case ["fill-tiny", root]:
            fill_tiny(Path(root))
        case ["root", root, out]:
            make_root(Path(root), Path(out))
        case ["cd", out, *images] if images:
            make_cd(Path(out), [Path(image) for image in images])
        case _:
            sys.exit(__doc__)


if __name__ == "__main__":
    main()
