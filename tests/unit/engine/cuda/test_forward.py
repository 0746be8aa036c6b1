"""The GPU's forward pass, its kernels interpreted, against the CPU's: every family, prompts and what follows them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semipd.core.config import PAGE_SIZE
from semipd.engine.attention import TokenSpan
from semipd.engine.cuda.forward import AttendFunction, ForwardPass, PassInputs, rotation_table
from semipd.engine.cuda.kernels import prefill_attention
from semipd.engine.decoder import Decoder
from semipd.engine.paged_cpu import CpuPagedAttention
from semipd.engine.pulse import SilentPulse
from semipd.engine.rope import Rotary
from support.engine_rig import MakeRig

PROMPTS = [(5, 9, 120, 33, 7), tuple(range(40, 60))]
TABLES = [np.array([3], np.int32), np.array([1, 5], np.int32)]


def fed(spans: list[TokenSpan], tokens: np.ndarray, device: torch.device) -> PassInputs:
    positions = np.concatenate([np.arange(span.start, span.end) for span in spans])
    slots = np.concatenate(
        [
            span.table[(at := np.arange(span.start, span.end)) // PAGE_SIZE] * PAGE_SIZE + at % PAGE_SIZE
            for span in spans
        ]
    )
    return PassInputs(*(torch.from_numpy(a.astype(np.int32)).to(device) for a in (tokens, positions, slots)))


def attention(forward: ForwardPass, spans: list[TokenSpan], device: torch.device) -> AttendFunction:
    tables = torch.zeros((len(spans), 2), dtype=torch.int32)
    blocks, first = [], 0
    for row, span in enumerate(spans):
        tables[row, : len(span.table)] = torch.from_numpy(span.table)
        for at in range(0, span.end - span.start, prefill_attention.QUERY_BLOCK):
            size = min(prefill_attention.QUERY_BLOCK, span.end - span.start - at)
            blocks.append((first + at, size, span.start + at, row, 0))
        first += span.end - span.start
    table = torch.tensor(blocks, dtype=torch.int32).T.contiguous().to(device)
    count = torch.tensor([len(blocks)], dtype=torch.int32, device=device)
    on_device = tables.to(device)

    def attend(index: int, queries: torch.Tensor, out: torch.Tensor) -> None:
        window = forward.model.windows[index]
        pool = forward.pool[index]
        prefill_attention.attend(queries, pool, on_device, table, count, window, len(blocks), out)

    return attend


def test_logits_keys_and_values_are_the_cpus(device: torch.device, family: str, rig: MakeRig) -> None:
    made = rig(family)
    model = made.model
    spans = [TokenSpan(0, len(p), t) for p, t in zip(PROMPTS, TABLES, strict=True)]
    tokens = np.concatenate([np.array(p) for p in PROMPTS])
    weights = {name: tensor.to(device) for name, tensor in made.weights.items()}
    pool = torch.full(made.pool.shape, torch.nan, device=device)
    forward = ForwardPass(model, weights, pool, most_tokens=64, rows=4)
    rotation = rotation_table(model, 64, device)
    last = torch.tensor([4, 24], dtype=torch.int32, device=device)
    with torch.inference_mode():
        found = forward.run(fed(spans, tokens, device), rotation, attention(forward, spans, device), last)

        rotary = Rotary(model.rope, model.head_dim, model.max_position_embeddings, made.pool[:0])
        positions = torch.from_numpy(np.concatenate([np.arange(s.start, s.end) for s in spans]))
        decoder = Decoder(model, made.weights)
        of_prompts = CpuPagedAttention(model, made.pool).prefill(spans)
        expected = decoder.forward(torch.from_numpy(tokens), rotary.at(positions, 19), of_prompts, SilentPulse())
    torch.testing.assert_close(found.cpu(), expected[[4, 24]], rtol=1e-4, atol=1e-4)
    written = torch.zeros(pool.shape[1], PAGE_SIZE, dtype=torch.bool)
    for span in spans:
        for at in range(span.end):
            written[span.table[at // PAGE_SIZE], at % PAGE_SIZE] = True
    by_token = pool.cpu().transpose(2, 3)  # [layers, pages, PAGE_SIZE, 2, kv_heads, head_dim]
    torch.testing.assert_close(by_token[:, written], made.pool.transpose(2, 3)[:, written], rtol=1e-4, atol=1e-5)
    assert by_token[:, ~written].isnan().all(), "nothing else was written"


def test_all_tokens_logits_can_be_asked_for_in_a_buffer_of_ones_own(device: torch.device, rig: MakeRig) -> None:
    made = rig()
    weights = {name: tensor.to(device) for name, tensor in made.weights.items()}
    forward = ForwardPass(made.model, weights, made.pool.to(device), most_tokens=16, rows=1)
    spans, tokens = [TokenSpan(0, 5, TABLES[0])], np.array(PROMPTS[0])
    out = torch.empty(5, made.model.vocab_size, device=device)
    rotation = rotation_table(made.model, 16, device)
    with torch.inference_mode():
        given = fed(spans, tokens, device), rotation, attention(forward, spans, device)
        every = forward.run(*given, logits=out)
        one = forward.run(*given, wanted=torch.tensor([2], dtype=torch.int32, device=device))
    assert every.data_ptr() == out.data_ptr()
    torch.testing.assert_close(one[0], every[2])


def test_refuses_tensors_of_another_shape(rig: MakeRig) -> None:
    made = rig()
    with pytest.raises(ValueError, match="the pool's shape"):
        ForwardPass(made.model, made.weights, made.pool[:1], 4, 4)
    with pytest.raises(ValueError, match=r"layers\.1\.qkv"):
        ForwardPass(made.model, {k: v for k, v in made.weights.items() if k != "layers.1.qkv"}, made.pool, 4, 4)
