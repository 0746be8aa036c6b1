from __future__ import annotations

import re
import urllib.request

from support.server import RunningServer, until


def test_metrics_are_off_by_default_and_on_loopback_when_asked_for() -> None:
    with RunningServer("--metrics-port", "0", "--no-spare-worker") as server:
        found = until(lambda: re.search(r"http://127\.0\.0\.1:\d+/metrics", server.log()))
        with server.client() as client:
            client.generate("The lighthouse", max_tokens=5, ignore_eos=True)

        def value(name: str) -> float:
            text = urllib.request.urlopen(found.group(0)).read().decode()
            lines = [line for line in text.splitlines() if line.startswith(name)]
            return float(lines[0].split()[-1]) if lines else 0.0

        assert until(lambda: value("semipd:time_to_first_token_seconds_count") == 1)
        assert value("semipd:generation_tokens_total") == 5
        assert value("semipd:inter_token_latency_seconds_count") == 4
        assert value('semipd:partition_share{phase="prefill"}') == 100
