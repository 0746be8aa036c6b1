"""semipd over gRPC against transformers' `generate`, same model, same machine, one run.

usage: python benchmarks/cpu_vs_transformers.py [--save]

Greedy, float32. Both get the same requests and both are asked for whole answers: transformers for one static batch
(left-padded, as its documentation says), semipd for so many concurrent Generate calls through its gateway. Output
lengths are forced. Only tokens that were asked for count. Rounds alternate, so that a noisy machine hurts both; the
figure is the ratio of output tokens per second, the median of the rounds. Two shapes of load:

* mixed: prompts of 16 to 128 tokens and answers of 16 to 256, as requests are;
* equal: prompts of 64 tokens and answers of 128, the best case of a static batch: nobody waits for the longest.

The exit code judges the mixed shape. Equal lengths as streams, instead of whole answers, are slower than transformers.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
import uvloop
from provenance import save
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from semipd_client import AsyncClient
from support.server import RunningServer, until  # the way that the process tests start a server

WARM_UP = 2
"""Rounds at the start that are not counted, for both."""
MODEL = Path(__file__).resolve().parent.parent / "semipd/models/bundled"


@dataclass(frozen=True, slots=True)
class Question:
    prompt: list[int]
    tokens: int
    """Tokens to generate."""


def questions(shape: str, count: int, vocabulary: int, seed: int) -> list[Question]:
    draw = random.Random(seed)

    def length(low: int, high: int) -> int:
        """Log-uniform: short ones are frequent, long ones not rare."""
        return round(math.exp(draw.uniform(math.log(low), math.log(high))))

    def one() -> Question:
        prompt, tokens = (64, 128) if shape == "equal" else (length(16, 128), length(16, 256))
        return Question([draw.randrange(10, vocabulary) for _ in range(prompt)], tokens)

    return [one() for _ in range(count)]


def through_transformers(model: Any, batch: list[Question]) -> float:
    """Output tokens per second."""
    width = max(len(q.prompt) for q in batch)
    longest = max(q.tokens for q in batch)
    ids = torch.tensor([[0] * (width - len(q.prompt)) + q.prompt for q in batch])
    mask = torch.tensor([[0] * (width - len(q.prompt)) + [1] * len(q.prompt) for q in batch])
    start = time.perf_counter()
    out = model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=longest, pad_token_id=0)
    seconds = time.perf_counter() - start
    assert out.shape[1] == width + longest
    return sum(q.tokens for q in batch) / seconds


async def through_semipd(address: str, batch: list[Question]) -> float:
    """Output tokens per second, from the first submission to the last answer at the client."""
    async with AsyncClient(address) as client:
        await client.model()  # the connection is made before the clock starts
        start = time.perf_counter()
        answers = await asyncio.gather(
            *(client.generate(q.prompt, max_tokens=q.tokens, temperature=0.0, ignore_eos=True) for q in batch)
        )
        seconds = time.perf_counter() - start
    assert [a.usage.output_tokens for a in answers] == [q.tokens for q in batch]
    return sum(q.tokens for q in batch) / seconds


def wait_for_quiet(server: RunningServer) -> None:
    """Waits until the server has ended its start: the spare worker's imports take both cores for some seconds."""
    until(lambda: any(process.role == "spare" for process in server.processes()))
    used = -1.0
    while (now := sum(sum(process.cpu_times()[:2]) for process in server.family())) - used > 0.05:
        used = now
        time.sleep(1.0)


def measure(
    server: RunningServer, model: Any, rounds: int, shape: str, at_a_time: int, tick: Callable[[], None]
) -> Any:
    """Tokens per second of both, and the ratio."""
    ours, theirs = [], []
    for round_ in range(rounds + WARM_UP):
        batch = questions(shape, at_a_time, model.config.vocab_size, seed=1000 * at_a_time + round_)
        with torch.inference_mode():
            theirs.append(through_transformers(model, batch))
        ours.append(uvloop.run(through_semipd(server.address, batch)))
        tick()
    ours, theirs = ours[WARM_UP:], theirs[WARM_UP:]
    return {
        "semipd": statistics.median(ours),
        "transformers": statistics.median(theirs),
        "ratio": statistics.median(a / b for a, b in zip(ours, theirs, strict=True)),
        "rounds": {"semipd": ours, "transformers": theirs},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/cpu_vs_transformers.json")
    parser.add_argument("--rounds", type=int, default=5)
    given = parser.parse_args()
    transformers.logging.set_verbosity_error()
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # forced length, as ignore_eos means
    loads = [(shape, at_a_time) for shape in ("mixed", "equal") for at_a_time in (1, 4, 16)]
    figures: dict[str, Any] = {"mixed": {}, "equal": {}}
    table = Table("load", "requests at a time", "semipd tok/s", "transformers tok/s", "ratio", title="output tokens/s")
    with RunningServer() as server, Progress(transient=True) as progress:
        wait_for_quiet(server)
        bar = progress.add_task("measuring", total=len(loads) * (given.rounds + WARM_UP))
        for shape, at_a_time in loads:
            found = measure(server, model, given.rounds, shape, at_a_time, lambda: progress.advance(bar))
            figures[shape][str(at_a_time)] = found
            rates = (f"{found['semipd']:.0f}", f"{found['transformers']:.0f}", f"{found['ratio']:.2f}")
            table.add_row(shape, str(at_a_time), *rates)
    Console().print(table)
    if given.save:
        print(save("cpu_vs_transformers", {"output_tokens_per_second": figures, "arguments": vars(given)}))
    if figures["mixed"]["16"]["ratio"] <= 1:
        sys.exit("at 16 requests at a time semipd is not faster than transformers")


if __name__ == "__main__":
    main()
