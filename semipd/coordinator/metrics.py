"""Prometheus metrics. Where vLLM has the metric, it has vLLM's name after `semipd:`. The endpoint is on loopback and
opt-in."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import accumulate

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server
from prometheus_client.metrics_core import HistogramMetricFamily, Metric
from prometheus_client.registry import Collector
from prometheus_client.utils import floatToGoString

from semipd.core.errors import ConfigError, Reason
from semipd.core.partition import Shares

_TTFT_S = (0.005, 0.01, 0.02, 0.04, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 0.75, 1, 2.5, 5, 7.5, 10, 20, 40)
_ITL_S = (0.001, 0.0025, 0.005, 0.01, 0.015, 0.025, 0.04, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2.5)
_SPLIT_S = (1e-4, 5e-4, 1e-3, 2e-3, 4e-3, 6e-3, 8e-3, 0.01, 0.0125, 0.015, 0.02, 0.025, 0.03, 0.05, 0.1, 0.25, 1)
_E2E_S = (0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)


class BatchedHistogram(Collector):
    """A histogram that records one value many times in one call.

    prometheus_client's histogram records each value alone, under two locks. For the tokens of a decode step that would
    be a third of the coordinator's work for them.
    """

    def __init__(self, name: str, documentation: str, buckets: Sequence[float]) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = [*buckets, math.inf]
        self._counts = [0] * len(self._bounds)
        self._sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Records that `value` was seen `times` times."""
        self._counts[bisect_left(self._bounds, value)] += times
        self._sum += value * times

    def collect(self) -> Iterable[Metric]:
        """Yields the histogram. Called by the endpoint's thread."""
        counts = zip(map(floatToGoString, self._bounds), accumulate(list(self._counts)), strict=True)
        yield HistogramMetricFamily(self._name, self._documentation, buckets=list(counts), sum_value=self._sum)


class Metrics:
    """The metrics of one coordinator, with a registry of their own. Recording is cheap even if nobody scrapes them."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        r = self.registry
        self.running = Gauge("semipd:num_requests_running", "Sequences in a worker or ready for one.", registry=r)
        self.waiting = Gauge("semipd:num_requests_waiting", "Sequences that wait for prefill.", registry=r)
        self.page_use = Gauge("semipd:kv_cache_usage_perc", "Pages in use; 1 means all.", registry=r)
        self.ttft = Histogram(
            "semipd:time_to_first_token_seconds", "Arrival to first token.", buckets=_TTFT_S, registry=r
        )
        self.itl = BatchedHistogram("semipd:inter_token_latency_seconds", "Between two tokens of a sequence.", _ITL_S)
        r.register(self.itl)
        self.e2e = Histogram("semipd:e2e_request_latency_seconds", "Arrival to end.", buckets=_E2E_S, registry=r)
        self.prompt_tokens = Counter("semipd:prompt_tokens", "Prompt tokens computed.", registry=r)
        self.generation_tokens = Counter("semipd:generation_tokens", "Tokens generated.", registry=r)
        self.rejections = Counter("semipd:admission_rejections", "Requests refused.", ["reason"], registry=r)
        self.success = Counter("semipd:request_success", "Sequences completed.", ["finished_reason"], registry=r)
        self.failures = Counter("semipd:request_failure", "Accepted requests that failed.", ["reason"], registry=r)
        self.preemptions = Counter("semipd:num_preemptions", "Preemptions of sequences.", registry=r)
        self.restarts = Counter("semipd:worker_restarts", "Workers replaced.", ["role"], registry=r)
        self.policy_failures = Counter("semipd:policy_failures", "Policies replaced.", ["policy"], registry=r)
        self.share = Gauge("semipd:partition_share", "Percent granted.", ["phase"], registry=r)
        self.switches = Counter("semipd:partition_switches", "Changes of the shares.", registry=r)
        self.split_delay = Histogram(
            "semipd:split_delay_seconds", "Decision to first step under it.", ["role"], buckets=_SPLIT_S, registry=r
        )
        self.attainment = Gauge("semipd:slo_attainment", "Share of requests within their SLOs, 30 s.", registry=r)
        self.refused_total = 0
        self.finished_total = 0
        self.restarts_total = 0

    def refused(self, reason: str) -> None:
        """Counts a request that a gateway or the admission refused."""
        self.refused_total += 1
        self.rejections.labels(reason).inc()

    def ended(self, reason: Reason) -> None:
        """Counts an accepted request that ended with an error."""
        self.failures.labels(reason.value).inc()

    def finished(self, reason: str, e2e_s: float) -> None:
        """Counts a sequence that completed; `e2e_s` is the time from the arrival to the end."""
        self.finished_total += 1
        self.success.labels(reason).inc()
        self.e2e.observe(e2e_s)

    def restarted(self, role: str) -> None:
        """Counts a worker that was lost."""
        self.restarts_total += 1
        self.restarts.labels(role).inc()

    def shares(self, granted: Shares) -> None:
        """Shows the granted shares."""
        self.share.labels("prefill").set(granted.prefill)
        self.share.labels("decode").set(granted.decode)

    def serve(self, port: int) -> int:
        """Starts the endpoint on 127.0.0.1 and returns its port (0: any free port). It lives until the process ends."""
        try:
            server, _thread = start_http_server(port, addr="127.0.0.1", registry=self.registry)
        except OSError as error:
            raise ConfigError(f"--metrics-port: can't listen on 127.0.0.1:{port}: {error.strerror}") from error
        return int(server.server_port)
