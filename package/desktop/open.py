#!@PYTHON@ -I
"""What a desktop starts for a link of p2pcloop, a cloop or an overlay: boots it in a terminal."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from urllib.parse import unquote, urlsplit

P2PCLOOP = "/usr/bin/p2pcloop"


def words_to_boot(given: str, program: str = P2PCLOOP) -> list[str]:
    """The command line that boots what the desktop hands over: a magnet, a file's URI, a path."""
    if given.startswith("magnet:"):
        return [program, "boot", given]
    url = urlsplit(given)
    path = Path(unquote(url.path) if url.scheme == "file" else given)
    if path.suffix != ".delta":
        return [program, "boot", str(path)]
    told = subprocess.run(
        [program, "info", "--json", str(path)], stdout=subprocess.PIPE, check=True, text=True
    )
    return [program, "boot", json.loads(told.stdout)["made_on"], "--overlay", str(path)]


def main() -> int:
    """Boot it; an error stays on the screen until Enter is pressed."""
    try:
        code = subprocess.run(words_to_boot(sys.argv[1]), check=False).returncode
    except subprocess.CalledProcessError as err:
        code = err.returncode
    if code:
        input(f"p2pcloop ended with exit code {code}. Press Enter to close this window.")
    return code


if __name__ == "__main__":
    sys.exit(main())
