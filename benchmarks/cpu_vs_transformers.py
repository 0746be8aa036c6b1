"""semipd over gRPC against transformers' `generate`, same model, same machine, one run.

usage: python benchmarks/cpu_vs_transformers.py [--save]

Greedy, float32, forced to --output-tokens each. transformers gets all prompts of a round as one static batch, its best
case; semipd gets them as so many concurrent streams through its gateway. Both may use all cores; the rounds alternate,
so that a noisy machine hurts both. The figure is the ratio of output tokens per second (median of the rounds).
"""

from __future__ import annotations

import argparse
import random
import statistics
import sys
import threading
import time
from pathlib import Path
from typing import Any

import torch
import transformers
from provenance import save
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from semipd_client import Client
from support.server import RunningServer, until  # the way that the process tests start a server

WARM_UP = 2
"""Rounds at the start that are not counted, for both."""
MODEL = Path(__file__).resolve().parent.parent / "semipd/models/bundled"


def prompts(count: int, length: int, vocabulary: int, seed: int) -> list[list[int]]:
    draw = random.Random(seed)
    return [[draw.randrange(10, vocabulary) for _ in range(length)] for _ in range(count)]


def through_transformers(model: Any, batch: list[list[int]], tokens: int) -> float:
    """Output tokens per second."""
    ids = torch.tensor(batch)
    start = time.perf_counter()
    out = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        do_sample=False,
        max_new_tokens=tokens,
        pad_token_id=0,
    )
    assert out.shape[1] == len(batch[0]) + tokens
    return len(batch) * tokens / (time.perf_counter() - start)


def through_semipd(client: Client, batch: list[list[int]], tokens: int) -> float:
    """Output tokens per second, from the first submission to the last token at the client."""
    counts = [0] * len(batch)

    def one(place: int) -> None:
        with client.stream(batch[place], max_tokens=tokens, temperature=0.0, ignore_eos=True) as stream:
            for _ in stream:
                pass
            counts[place] = stream.usage.output_tokens

    threads = [threading.Thread(target=one, args=(n,)) for n in range(len(batch))]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    seconds = time.perf_counter() - start
    assert counts == [tokens] * len(batch), counts
    return sum(counts) / seconds


def wait_for_quiet(server: RunningServer) -> None:
    """Until the server has ended its start: the spare worker's imports take both cores for some seconds."""
    until(lambda: any(process.role == "spare" for process in server.processes()))
    used = -1.0
    while (now := sum(sum(process.cpu_times()[:2]) for process in server.family())) - used > 0.05:
        used = now
        time.sleep(1.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/cpu_vs_transformers.json")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--prompt-tokens", type=int, default=64)
    parser.add_argument("--output-tokens", type=int, default=128)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # forced length, as ignore_eos means
    vocabulary = model.config.vocab_size
    rates: dict[int, dict[str, list[float]]] = {n: {"semipd": [], "transformers": []} for n in (1, 4, 16)}
    with (
        RunningServer() as server,
        server.client() as client,
        Progress(transient=True) as progress,
        torch.inference_mode(),
    ):
        wait_for_quiet(server)
        bar = progress.add_task("measuring", total=len(rates) * (given.rounds + WARM_UP))
        for at_a_time, found in rates.items():
            for round_ in range(given.rounds + WARM_UP):
                batch = prompts(at_a_time, given.prompt_tokens, vocabulary, seed=1000 * at_a_time + round_)
                theirs = through_transformers(model, batch, given.output_tokens)
                ours = through_semipd(client, batch, given.output_tokens)
                if round_ >= WARM_UP:
                    found["semipd"].append(ours)
                    found["transformers"].append(theirs)
                progress.advance(bar)
    table = Table("requests at a time", "semipd tok/s", "transformers tok/s", "ratio", title="output tokens per second")
    figures = {}
    for at_a_time, found in rates.items():
        ours, theirs = (statistics.median(found[name]) for name in ("semipd", "transformers"))
        ratio = statistics.median(a / b for a, b in zip(found["semipd"], found["transformers"], strict=True))
        figures[str(at_a_time)] = {"semipd": ours, "transformers": theirs, "ratio": ratio, "rounds": found}
        table.add_row(str(at_a_time), f"{ours:.0f}", f"{theirs:.0f}", f"{ratio:.2f}")
    Console().print(table)
    if given.save:
        print(save("cpu_vs_transformers", {"output_tokens_per_second": figures, "arguments": vars(given)}))
    if figures["16"]["ratio"] <= 1:
        sys.exit("at 16 requests at a time semipd is not faster than transformers")


if __name__ == "__main__":
    main()
