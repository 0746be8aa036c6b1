"""A profile of few points, about what an H200 takes for Llama-3-8B: for tests of the code that reads times off one."""

from __future__ import annotations

from semipd.profiles.profile import (
    DecodePoint,
    DecodeTable,
    ModelShape,
    Overheads,
    PrefillPoint,
    PrefillTable,
    Profile,
    ProfiledGpu,
    Source,
)

MODEL = ModelShape(
    "small", "bfloat16", vocab_size=128_256, max_context=8192, weight_bytes=16_000_000_000, kv_token_bytes=131_072
)
GPU = ProfiledGpu("made up", sms=132, memory_bytes=150_000_000_000)
STEPS = {
    (132, 0): [
        *((1, 512, 4.7), (16, 1024, 5.5), (64, 1024, 7.4), (64, 4096, 13.1)),
        *((128, 1024, 9.8), (256, 340, 10.6), (400, 340, 16.5)),
    ],
    (64, 0): [(64, 1024, 8.7)],
    (32, 0): [(64, 1024, 14.5)],
    (16, 0): [(64, 1024, 24.6)],
    (16, 116): [(64, 1024, 30.0), (64, 4096, 58.0)],
    (32, 100): [(64, 1024, 17.8), (64, 4096, 33.1)],
    (48, 84): [(64, 1024, 13.9), (64, 4096, 25.8)],
    (64, 68): [(64, 1024, 11.4), (64, 4096, 20.1)],
    (132, 132): [(64, 1024, 30.0)],
}
"""The points of decode by its SMs and those of prefill: rows, context of each, milliseconds."""
PASSES = {
    (132, 0): [
        *((64, 0, 5.0), (128, 0, 5.4), (256, 0, 7.3), (512, 0, 11.7), (512, 3500, 14.7)),
        *((1024, 0, 23.9), (2048, 0, 47.1), (4096, 0, 98.2), (8192, 0, 209.7)),
    ],
    (100, 0): [(256, 0, 10.5), (2048, 0, 63.5)],
    (68, 0): [(256, 0, 11.3), (2048, 0, 71.9)],
    (116, 16): [(2048, 0, 65.8)],
    (100, 32): [(2048, 0, 73.8)],
    (68, 64): [(2048, 0, 94.5)],
    (132, 132): [(2048, 0, 60.0)],
}
"""The points of prefill by its SMs and those of decode: tokens, start, milliseconds."""


def small_profile() -> Profile:
    """Makes the profile; it has no mixed passes."""
    return Profile(
        source=Source(recorded=False, how="Made up for tests.", sources=(), made=None),
        model=MODEL,
        gpu=GPU,
        overheads=Overheads(arrive_s=0.0005, turnaround_s=0.0008, prepare_s=0.0008, deliver_s=0.002, handover_s=0.0003),
        decode=tuple(DecodeTable(*pair, tuple(DecodePoint(*p) for p in points)) for pair, points in STEPS.items()),
        prefill=tuple(PrefillTable(*pair, tuple(PrefillPoint(*p) for p in points)) for pair, points in PASSES.items()),
    )
