"""Seconds of a decode step and of a prefill pass, as a latency model says them."""

from __future__ import annotations

from semipd.core.latency import LatencyModel


class ModelTimes:
    """The `Times` of a `LatencyModel`, on a device of `sms` multiprocessors. With time slices a step or a pass takes
    what it takes alone."""

    def __init__(self, model: LatencyModel, sms: int) -> None:
        self._model = model
        self._percent = 100 / sms

    def decode_s(self, rows: int, context_tokens: int, sms: int, other_sms: int) -> float:
        share, other = self._percent * sms, self._percent * other_sms
        return self._model.decode_s(rows, context_tokens, share=share, other=other)

    def prefill_s(self, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        share, other = self._percent * sms, self._percent * other_sms
        # The model wants sequences and context: of several prompts of one length it makes as many pairs as these.
        sequences = max(1, round(tokens * tokens / 2 / pairs))
        context = round(sequences * pairs / tokens + tokens / 2)
        return self._model.prefill_s(tokens, context, share=share, other=other, sequences=sequences)

    def mixed_s(self, rows: int, context_tokens: int, tokens: int, pairs: float, sms: int, other_sms: int) -> float:
        return self._model.mixed_s(tokens, round(pairs / tokens - tokens / 2), rows, context_tokens)

    def step_by_turns(self, rows: int) -> float:
        return 1.0

    def pass_by_turns(self, tokens: int) -> float:
        return 1.0
