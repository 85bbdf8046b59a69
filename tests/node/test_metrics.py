"""The metrics of a node: served, printed, and listed in the manual and the dashboard."""

from __future__ import annotations

import json
import re
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from p2pcloopd.node.growing_sum import GrowingSum
from p2pcloopd.node.metrics import METRICS
from tests.support.ports import free_port
from tests.support.programs import Nodes

from .conftest import publish_version

CHECKOUT = Path(__file__).parents[2]


def values(text: str) -> dict[str, dict[tuple[str, ...], float]]:
    """Of each metric its values, by the values of its labels; types and help are compared."""
    found: dict[str, dict[tuple[str, ...], float]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            metric = METRICS[sample.name]
            assert (family.type, family.documentation) == (metric.kind, metric.about)
            assert set(sample.labels) == set(metric.labels)
            labels = tuple(sample.labels[label] for label in metric.labels)
            found.setdefault(sample.name, {})[labels] = sample.value
    return found


def test_metrics_are_served_to_this_machine_and_printed(nodes: Nodes, content: bytes) -> None:
    port = free_port()
    config = f'metrics.listen = ["127.0.0.1:{port}"]\nquota = "1G"\n'
    node = nodes.start(config)
    publish_version(node, content)
    url = f"http://127.0.0.1:{port}/metrics"
    with urllib.request.urlopen(url) as answer:
        assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
        served = values(answer.read().decode())
    assert list(served) == list(METRICS)
    assert served["p2pcloop_images"] == {("complete",): 1, ("partial",): 0, ("withdrawn",): 0}
    assert served["p2pcloop_torrents"][("complete",)] == 2
    assert served["p2pcloop_store_bytes"][("durable",)] > len(content)
    assert served["p2pcloop_store_quota_bytes"][()] == 1 << 30
    assert 0 < served["process_open_fds"][()] < served["process_max_fds"][()]
    printed = values(node.run("metrics").out)
    assert printed.keys() == served.keys()
    network = "p2pcloop_network_sent_bytes_total"
    assert printed[network] == served[network]  # what Prometheus reads is no traffic of the node
    for path in ("", "metrics/x"):
        with pytest.raises(urllib.error.HTTPError, match="404"):
            urllib.request.urlopen(f"http://127.0.0.1:{port}/{path}")
    assert node.call("status")["metrics"] == {"listen": [f"127.0.0.1:{port}"]}


def test_names_follow_prometheus() -> None:
    """https://prometheus.io/docs/practices/naming/ ; the process_ metrics are those of all."""
    for name, metric in METRICS.items():
        assert re.fullmatch(r"(p2pcloop|process)_[a-z_]+", name)
        assert (metric.kind == "counter") == name.endswith("_total")
        assert set(metric.labels) <= {"version", "protocol", "source", "state"}
        if re.search(r"\bbytes\b", metric.about) and metric.kind == "counter":
            assert name.endswith("_bytes_total")


def test_the_manual_lists_each_metric() -> None:
    rows = re.findall(r"^\| `([a-z0-9_]+)` \| (\w+) \|(.*)\| (.+) \|$", manual(), re.MULTILINE)
    told = [
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), says)
        for name, kind, labels, says in rows
    ]
    assert told == [(m.name, m.kind, m.labels, m.about) for m in METRICS.values()]


def manual() -> str:
    return (CHECKOUT / "docs/metrics.md").read_text()


def test_the_dashboard_shows_metrics_that_there_are() -> None:
    dashboard = json.loads((CHECKOUT / "examples/grafana-dashboard.json").read_text())
    shown: set[str] = set()
    for panel in dashboard["panels"]:
        for target in panel["targets"]:
            expression: Any = target["expr"]
            shown |= set(re.findall(r"\b(?:p2pcloop|process)_\w+", expression))
            for name, labels in re.findall(r"by \((\w+)\) \((?:rate\()?(\w+)", expression):
                assert name in METRICS[labels].labels
            for name in re.findall(r"rate\((\w+)", expression):
                assert METRICS[name].kind == "counter"
    assert shown | {"p2pcloop_info"} == set(METRICS)
    variables = {each["name"] for each in dashboard["templating"]["list"]}
    assert set(re.findall(r"\$\{?([a-z]\w+)", json.dumps(dashboard))) <= variables


@given(st.lists(st.dictionaries(st.binary(max_size=1), st.integers(0, 99), max_size=4)))
def test_a_growing_sum_never_falls_nor_counts_twice(looks: list[dict[bytes, int]]) -> None:
    total, told = GrowingSum(), [0]
    told += map(total.of, looks)
    assert told == sorted(told)
    assert total.of(looks[-1] if looks else {}) == told[-1]


def test_what_ended_and_what_began_anew_still_counts() -> None:
    total = GrowingSum()
    assert total.of({b"a": 5, b"b": 7}) == 12
    assert total.of({b"a": 2, b"c": 1}) == 5 + 7 + 2 + 1
