"""Measures how fast the simulator is: an hour of chat at 50 requests a second, by policy, on one core.

    python benchmarks/simulator_speed.py [--hours 1] [--policy static:mode=turns,chunk=1024 ...]

Writes benchmarks/results/simulator_speed.json. Times are of the process's CPU clock; scoring and records are included,
the report's JSON is not.
"""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from provenance import save

from semipd.bench.settings import RunSettings
from semipd.profiles.profile import SHIPPED, load_profile
from semipd.sim.run import SimConfig, simulate

POLICIES = ("fcfs", "static:mode=turns,chunk=1024", "static:prefill=64,decode=36", "semi-pd", "chunked", "adaptive")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hours", type=float, default=1.0)
    parser.add_argument("--rate", type=float, default=50.0)
    parser.add_argument("--policy", action="append", default=[], metavar="NAME:OPTION=VALUE,...")
    given = parser.parse_args()
    profile = load_profile(SHIPPED)
    runs = []
    for text in given.policy or POLICIES:
        name, _, options = text.partition(":")
        chosen = dict(pair.split("=", 1) for pair in options.split(",") if pair)
        began = time.process_time()
        report = simulate(
            SimConfig(name, chosen, profile), RunSettings("", "chat", given.rate, 3600 * given.hours, drain_s=60.0)
        )
        took = time.process_time() - began
        tokens = sum(record.tokens for record in report.records)
        runs.append(
            {
                "policy": text,
                "hours": given.hours,
                "rate": given.rate,
                "requests": len(report.records),
                "output_tokens": tokens,
                "cpu_s": round(took, 2),
                "cpu_s_an_hour": round(took / given.hours, 1),
                "attainment": report.score.attainment,
            }
        )
        print(f"{text:32} {took / given.hours:6.1f} s of CPU an hour of traffic, {tokens:,} tokens", flush=True)
    print(save("simulator_speed", {"trace": "chat", "runs": runs}))


if __name__ == "__main__":
    main()
