"""The whole system on the CPU, through its public door."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import pytest
import torch
import transformers

import semipd.models
from semipd_client import Client, Token
from support.server import RunningServer, until

MODEL = semipd.models.BUNDLED


@pytest.fixture(scope="module")
def server() -> Iterator[RunningServer]:
    with RunningServer("--max-batch-tokens", "64") as running:
        yield running


@pytest.fixture
def client(server: RunningServer) -> Iterator[Client]:
    with server.client() as made:
        yield made


@pytest.fixture(scope="module")
def reference() -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(MODEL, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None  # goes on past the end, as ignore_eos does
    return model


def expected(reference: Any, prompt: list[int], tokens: int) -> list[int]:
    ids = torch.tensor([prompt])
    with torch.inference_mode():
        out = reference.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            do_sample=False,
            max_new_tokens=tokens,
            pad_token_id=0,
        )
    return [int(t) for t in out[0, len(prompt) :]]


def prompt_of(length: int, seed: int) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return [int(t) for t in torch.randint(10, 500, (length,), generator=generator)]


def test_concurrent_streams_of_mixed_lengths_equal_transformers(client: Client, reference: Any) -> None:
    """Lengths from 1 token to several chunks, all at once; greedy, hence equal token for token."""
    prompts = [prompt_of(length, seed=length) for length in (1, 5, 16, 17, 63, 64, 65, 150, 200)]
    answers: dict[int, list[int]] = {}

    def ask(place: int) -> None:
        answer = client.generate(prompts[place], max_tokens=48, temperature=0.0, ignore_eos=True)
        answers[place] = list(answer.samples[0].token_ids)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(len(prompts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for place, prompt in enumerate(prompts):
        assert answers[place] == expected(reference, prompt, 48), f"a prompt of {len(prompt)} tokens"


def test_a_seeded_request_gives_the_same_tokens_alone_and_among_others(client: Client) -> None:
    def draw(seed: int) -> list[int]:
        answer = client.generate("The lighthouse", max_tokens=40, temperature=0.9, seed=seed, ignore_eos=True)
        return list(answer.samples[0].token_ids)

    alone = draw(5)
    together: dict[int, list[int]] = {}
    threads = [threading.Thread(target=lambda s=seed: together.update({s: draw(s)})) for seed in range(1, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert together[5] == alone
    assert len({tuple(tokens) for tokens in together.values()}) > 1, "different seeds draw differently"


def test_leaving_the_stream_frees_its_pages(server: RunningServer, client: Client) -> None:
    with client.stream("Once upon a time", max_tokens=400, ignore_eos=True) as stream:
        next(iter(stream))
    assert server.free_pages_are_back()


def test_the_partition_changes_under_load_and_no_token_is_lost(client: Client, reference: Any) -> None:
    prompt = prompt_of(20, seed=3)
    got: list[int] = []
    with client.stream(prompt, max_tokens=150, temperature=0.0, ignore_eos=True) as stream:
        for event in stream.events():
            if isinstance(event, Token):
                got.extend(event.token_ids)
                share = 50.0 if len(got) % 20 < 10 else 100.0
                client.set_partition(prefill=share, decode=share)
    assert got == expected(reference, prompt, 150)


def test_the_policy_changes_under_load_and_no_request_is_dropped(client: Client) -> None:
    with client.stream("The harbour", max_tokens=100, temperature=0.0, ignore_eos=True) as stream:
        texts = iter(stream)
        next(texts)
        assert client.set_policy("static", {"prefill": "50", "decode": "50"}) == "adaptive"
        for _ in texts:
            pass
    assert stream.usage is not None
    assert stream.usage.output_tokens == 100
    assert [p.name for p in client.policies() if p.active] == ["static"]
    client.set_policy("fcfs")


def test_a_request_can_be_followed_through_all_processes_and_its_prompt_in_none() -> None:
    with RunningServer("--log-level", "debug", "--no-spare-worker") as server, server.client() as client:
        answer = client.generate("zanzibar marmalade", max_tokens=12, request_id="follow-me", ignore_eos=True)

        def seen() -> bool:
            return {"gateway", "coordinator", "prefill", "decode"} == {
                str(r["process"]).split(".")[0] for r in server.records() if r.get("request_id") == "follow-me"
            }

        assert until(seen)
        for words in ("zanzibar", "marmalade", answer.samples[0].text):
            assert words not in server.log()
