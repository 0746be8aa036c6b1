"""A whole server on the GPU, through its public door: with an MPS daemon of its own, with somebody else's, without."""

from __future__ import annotations

import os
import subprocess
import tempfile
import threading
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest
import torch
import transformers

import semipd.models
from semipd.coordinator.mps import LOGS, PIPES, is_there
from semipd.coordinator.mps_guard import MPS_CONTROL
from support.server import RunningServer, until

pytestmark = pytest.mark.gpu

MODEL = semipd.models.BUNDLED
OPTIONS = ("--device", "cuda", "--dtype", "float32", "--kv-memory-gb", "0.5", "--max-batch-tokens", "256")
LENGTHS = (1, 16, 63, 150, 300)
TOKENS = 48


@pytest.fixture(scope="module")
def prompts() -> list[list[int]]:
    generator = torch.Generator().manual_seed(3)
    return [[int(t) for t in torch.randint(10, 500, (length,), generator=generator)] for length in LENGTHS]


@pytest.fixture(scope="module")
def expected(prompts: list[list[int]]) -> list[list[int]]:
    model = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # goes on past the end, as ignore_eos does
    found = []
    for prompt in prompts:
        ids = torch.tensor([prompt])
        with torch.inference_mode():
            out = model.generate(
                ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=TOKENS, pad_token_id=0
            )
        found.append([int(t) for t in out[0, len(prompt) :]])
    return found


def answers(server: RunningServer, prompts: list[list[int]]) -> list[list[int]]:
    """Returns the answers to all prompts, asked for at once, greedily."""
    found: dict[int, list[int]] = {}

    def ask(place: int) -> None:
        with server.client() as client:
            answer = client.generate(prompts[place], max_tokens=TOKENS, temperature=0.0, ignore_eos=True)
        found[place] = list(answer.samples[0].token_ids)

    threads = [threading.Thread(target=ask, args=(place,)) for place in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [found[place] for place in range(len(prompts))]


@pytest.fixture
def daemon() -> Iterator[Path]:
    """The pipe directory of an MPS daemon that is not the server's."""
    with tempfile.TemporaryDirectory(prefix="mps-") as name:
        pipes = Path(name)
        environment = {**os.environ, PIPES: name, LOGS: name}
        process = subprocess.Popen([MPS_CONTROL, "-f"], env=environment)
        try:
            until(lambda: is_there(name))
            yield pipes
        finally:
            subprocess.run([MPS_CONTROL], input=b"quit -t 2\n", env=environment, check=False, timeout=10)
            process.kill()
            process.wait()


def clients_of(pipes: Path) -> set[int]:
    """Processes of the daemon's servers' clients."""

    def ask(said: str) -> list[int]:
        answer = subprocess.run(
            [MPS_CONTROL], input=said.encode(), env={**os.environ, PIPES: str(pipes)}, capture_output=True, check=True
        )
        return [int(line) for line in answer.stdout.split() if line.isdigit()]

    return {client for server in ask("get_server_list\n") for client in ask(f"get_client_list {server}\n")}


def test_with_a_daemon_of_its_own(prompts: list[list[int]], expected: list[list[int]]) -> None:
    with RunningServer(*OPTIONS, "--mps", "own", "--partition", "green") as server:
        assert answers(server, prompts) == expected
        with server.client() as client:
            client.set_partition(prefill=40.0, decode=60.0)
        assert answers(server, prompts) == expected
        family = server.family()
    until(lambda: not any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family))


def test_with_a_daemon_that_is_there_which_stays_there(
    daemon: Path, prompts: list[list[int]], expected: list[list[int]]
) -> None:
    with RunningServer(*OPTIONS, "--mps", "adopt", environment={PIPES: str(daemon)}) as server:
        assert answers(server, prompts) == expected
        workers = {server.pid("prefill"), server.pid("decode")}
        seen = clients_of(daemon)
        assert workers <= seen, "the workers compute through the daemon that was there"
        assert server.pid("resident") not in seen, "memory outlives whatever kills the daemon's clients"
        server.kill("decode")
        assert answers(server, prompts) == expected
    assert is_there(str(daemon)), "it is somebody else's"
    until(lambda: not clients_of(daemon))


def test_without_mps_there_is_a_warning_and_the_same_answers(
    prompts: list[list[int]], expected: list[list[int]]
) -> None:
    with RunningServer(*OPTIONS, "--mps", "off") as server:
        assert answers(server, prompts) == expected
        warnings = [r for r in server.records() if r.get("level") == "warning"]
    assert any(warning.get("choice") == "off" for warning in warnings), warnings
