"""Tests of the metrics that the endpoint exports."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Histogram, generate_latest

from semipd.coordinator.metrics import BatchedHistogram

BUCKETS = (0.1, 1, 2.5)


def test_a_batched_histogram_tells_what_prometheus_own_tells() -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    batched = BatchedHistogram("semipd:seconds", "Some.", BUCKETS)
    ours.register(batched)
    each = Histogram("semipd:seconds", "Some.", buckets=BUCKETS, registry=theirs)
    for value, times in ((0.0625, 3), (0.5, 1), (1.0, 5), (8.0, 2)):  # in between, on a bound, beyond all
        batched.observe(value, times)
        for _ in range(times):
            each.observe(value)
    created = [line for line in generate_latest(theirs).splitlines() if b"_created" in line]
    assert generate_latest(ours).splitlines() == [
        line for line in generate_latest(theirs).splitlines() if line not in created
    ]
