"""Metrics as text, read by Prometheus' own parser."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from p2pcloop.formats.exposition import Metric, write_metrics

BYTES = Metric("a_bytes_total", "counter", 'what "came"\\ by\nsource', ("source", "how"))
HERE = Metric("b_seconds", "gauge", "a time")


def test_the_text_of_metrics() -> None:
    text = write_metrics(
        [
            (BYTES, {("peer", 'a "b"\\\n'): 7, ("server", ""): 1 << 60}),
            (HERE, {(): 0.5}),
            (Metric("c", "gauge", "nothing"), {}),
        ]
    )
    assert text == (
        '# HELP a_bytes_total what "came"\\\\ by\\nsource\n'
        "# TYPE a_bytes_total counter\n"
        'a_bytes_total{source="peer",how="a \\"b\\"\\\\\\n"} 7\n'
        'a_bytes_total{source="server",how=""} 1152921504606846976\n'
        "# HELP b_seconds a time\n"
        "# TYPE b_seconds gauge\n"
        "b_seconds 0.5\n"
    )


@given(
    st.dictionaries(
        st.tuples(st.text(), st.text()), st.integers(0, 1 << 53) | st.floats(allow_nan=False)
    )
)
def test_prometheus_reads_what_was_written(samples: dict[tuple[str, ...], float]) -> None:
    found = list(text_string_to_metric_families(write_metrics([(BYTES, samples)])))
    if not samples:
        assert found == []
        return
    [family] = found
    assert (family.name, family.type, family.documentation) == ("a_bytes", "counter", BYTES.about)
    read = [(tuple(each.labels.values()), each.value) for each in family.samples]
    assert read == list(samples.items())
