"""Writing a mirror: a file is there whole, or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.errors import MismatchError
from p2pcloop.formats.mirror import LayerFilePath
from p2pcloop.store.have import HaveFile, is_whole
from p2pcloop.store.mirror import open_mirror_directory

PATH = LayerFilePath("0" * 32, "pack")


def test_what_lost_a_part_while_it_was_copied_is_not_put_there(tmp_path: Path) -> None:
    source, root = tmp_path / "pack", tmp_path / "mirror"
    source.write_bytes(b"x" * 100_000)
    have = HaveFile.create(tmp_path / "have", bytes(20), 7, complete=True)

    def evicted_meanwhile() -> bool:
        have.drop(3)
        return is_whole(tmp_path / "have")

    with open_mirror_directory(root) as mirror:
        with pytest.raises(MismatchError, match="went away"):
            mirror.copy(PATH, source, 100_000, evicted_meanwhile)
        assert not [path for path in root.rglob("*") if path.is_file()]
        have.add([3])
        mirror.copy(PATH, source, 100_000, lambda: is_whole(tmp_path / "have"))
        with pytest.raises(MismatchError, match="does not have"):
            mirror.copy(PATH, source, 99_999, lambda: True)
    have.close()
    assert (root / str(PATH)).read_bytes() == source.read_bytes()
    assert not is_whole(tmp_path / "nothing")
