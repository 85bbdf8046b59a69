"""What the store keeps of a torrent besides its content."""

from __future__ import annotations

from pathlib import Path

import pytest

from p2pcloop.formats.link import MAX_LINK_LENGTH
from p2pcloopd.engine.disk.record import MAX_SOURCES, Record, Sources


def test_all_sources_that_links_can_name_are_read_again(tmp_path: Path) -> None:
    long = [f"http://host{number}/".ljust(MAX_LINK_LENGTH, "x") for number in range(MAX_SOURCES)]
    peers = [(f"host{number}.".ljust(253, "x"), 65535) for number in range(MAX_SOURCES)]
    sources = Sources(tuple(peers), tuple(long), tuple(long))
    record = Record(tmp_path)
    record.save_sources(sources)
    assert record.load_sources() == sources


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x80", b"\x00" * 10])
def test_damaged_sources_are_none(
    tmp_path: Path, data: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "peers").write_bytes(data)
    assert Record(tmp_path).load_sources() == Sources()
    assert "is damaged and not used" in caplog.text
