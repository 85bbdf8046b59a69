"""What the tools read from `p2pcloop boot --report`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tools.boot_report import ReportError, read_report

FACTS: dict[str, Any] = {
    "boot_seconds": 7.25,
    "seconds": 9.5,
    "exit": "poweroff",
    "bytes_received": 1234,
    "sources": {"127.0.0.1:6881": 1234},
    "image_size": 1 << 24,
    "image_stored": 1 << 20,
}


def test_a_report_is_read_and_unknown_facts_are_passed_over(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(FACTS | {"more": [1]}))
    report = read_report(path)
    assert report.boot_seconds == 7.25
    assert report.sources == {"127.0.0.1:6881": 1234}
    assert report.boot_text == "login prompt after 7.2 s"


def test_a_boot_without_a_login_prompt_is_said(tmp_path: Path) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps(FACTS | {"boot_seconds": None}))
    assert read_report(path).boot_text == "no login prompt was seen"


@pytest.mark.parametrize("key", sorted(FACTS))
def test_what_is_absent_is_named(tmp_path: Path, key: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(json.dumps({k: v for k, v in FACTS.items() if k != key}))
    with pytest.raises(ReportError, match=key):
        read_report(path)


@pytest.mark.parametrize("text", ["", "[]", "null", '{"boot_seconds": "x"}'])
def test_what_is_no_report_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "report.json"
    path.write_text(text)
    with pytest.raises(ReportError, match=str(path)):
        read_report(path)


def test_no_report_at_all_is_said(tmp_path: Path) -> None:
    with pytest.raises(ReportError, match="wrote no report"):
        read_report(tmp_path / "report.json")
