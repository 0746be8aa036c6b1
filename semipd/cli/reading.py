"""Reads an answer aloud, with a stopwatch: TTFT and TPOT as the person at the terminal has them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from semipd.cli.terminal import Voice
from semipd.core.request import mean_tpot_s
from semipd_client import Finish, Stream, Token


@dataclass(frozen=True, slots=True)
class TokenTimings:
    """Measured here, from sending the request; seconds. None: too few tokens to say."""

    ttft_s: float | None
    tpot_s: float | None
    """Mean seconds between the tokens after the first."""
    total_s: float


def read_aloud(
    start: Callable[[], Stream], voice: Voice | None = None, clock: Callable[[], float] = time.perf_counter
) -> tuple[Stream, TokenTimings]:
    """Sends the request, says its first sample as it comes, and returns the stream, read to its end, with its pace."""
    began_s = clock()
    first_s = last_s = None
    tokens = 0
    with start() as stream:
        try:
            for event in stream.events():
                if isinstance(event, Token) and event.index == 0:
                    last_s = clock()
                    if first_s is None:
                        first_s = last_s
                        # What came along with the first token took no time of its own.
                        tokens = 1 - len(event.token_ids)
                    tokens += len(event.token_ids)
                    if voice is not None:
                        voice.say(event.text)
        finally:
            if voice is not None:
                voice.end_line()
    ttft_s = None if first_s is None else first_s - began_s
    tpot_s = None if first_s is None or last_s is None else mean_tpot_s(last_s - first_s, tokens)
    return stream, TokenTimings(ttft_s, tpot_s, clock() - began_s)


def summary_line(stream: Stream, pace: TokenTimings) -> str:
    """ "TTFT 12.3 ms · TPOT 4.5 ms (222 tok/s) · 7 + 64 tokens · end: length" """
    parts = []
    if pace.ttft_s is not None:
        parts.append(f"TTFT {1000 * pace.ttft_s:.1f} ms")
    if pace.tpot_s:
        parts.append(f"TPOT {1000 * pace.tpot_s:.2f} ms ({1 / pace.tpot_s:.0f} tok/s)")
    if stream.usage is not None:
        parts.append(f"{stream.usage.prompt_tokens} prompt + {stream.usage.output_tokens} output tokens")
    if stream.finish is not None:
        parts.append(f"end: {ending(stream.finish)}")
    return " · ".join(parts)


def ending(finish: Finish) -> str:
    if finish.stop is not None:
        return f"stop text {finish.stop!r}"
    if finish.stop_token_id is not None:
        return f"stop token {finish.stop_token_id}"
    return str(finish.reason)
