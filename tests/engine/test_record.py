"""What the store keeps of a torrent besides its content."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

import pytest

from p2pcloop.formats import named
from p2pcloop.formats.link import MAX_LINK_LENGTH
from p2pcloopd.engine.disk import record as disk_record
from p2pcloopd.engine.disk.content import Content
from p2pcloopd.engine.disk.metainfo import TorrentLayout
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


def test_the_directories_are_durable_before_a_bit_can_say_that_content_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[tuple[Path, bool]] = []
    torrent = Record(tmp_path / "torrent")

    def sync(path: Path) -> None:
        synced.append((path, (torrent.directory / "have").exists()))
        named.sync_names(path)

    monkeypatch.setattr(disk_record, "sync_names", sync)
    torrent.create()
    assert synced == []
    layout = TorrentLayout("layer", ((PurePosixPath("layer/pack"), 5),), 16384, 5)
    content = Content(torrent.data, layout)
    torrent.open_have(b"t" * 20, layout, content).close()
    assert synced == [(torrent.directory, False), (tmp_path, False)]
    torrent.open_have(b"t" * 20, layout, content).close()
    assert len(synced) == 2
