"""Sampling on the device: the tensors that a sequence's rules need, and the launches that turn logits into tokens."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from semipd.core.request import Logprob
from semipd.engine.counter_rng import uniforms
from semipd.engine.cuda.kernels import sampling as kernels
from semipd.engine.sampling import CERTAIN_TEMPERATURE
from semipd.engine.sampling_result import SamplingInput

FIRST_HISTORIES = 16

SAMPLING_COLUMNS: Mapping[str, type[np.int32] | type[np.float32]] = {
    "temperature": np.float32,
    "top_k": np.int32,
    "top_p": np.float32,
    "min_p": np.float32,
    "point": np.float32,
    "history": np.int32,
    "repetition": np.float32,
    "frequency": np.float32,
    "presence": np.float32,
}
"""The launch arguments of each sampled place, beside its row."""


class SamplingRules:
    """The sampling rules of one sequence on the device.

    `history`: its slot among the histories; -1: it has no penalties.
    """

    __slots__ = ("banned", "bias", "history", "logprobs", "sampling", "top_logprobs", "until")

    def __init__(self, sampling: SamplingInput, vocab: int, device: torch.device, history: int) -> None:
        params, stopping = sampling.params, sampling.stopping
        self.sampling = sampling
        self.history = history
        self.bias: tuple[torch.Tensor, torch.Tensor] | None = None
        if params.logit_bias:
            self.bias = (
                torch.tensor(list(params.logit_bias), dtype=torch.int64, device=device),
                torch.tensor(list(params.logit_bias.values()), dtype=torch.float32, device=device),
            )
        self.banned: torch.Tensor | None = None
        self.until = stopping.min_tokens
        if stopping.min_tokens > 0 and stopping.stop_token_ids:
            ids = [i for i in sorted(stopping.stop_token_ids) if i < vocab]
            self.banned = torch.tensor(ids, dtype=torch.int64, device=device)
        self.logprobs = params.logprobs
        self.top_logprobs = params.top_logprobs

    @property
    def plain(self) -> bool:
        return self.history < 0 and self.bias is None and self.banned is None and not self.logprobs


def columns(sampling: SamplingInput, history: int) -> dict[str, float]:
    """Returns those of SAMPLING_COLUMNS that stay the same from token to token."""
    p = sampling.params
    return {
        "temperature": 0.0 if p.temperature < CERTAIN_TEMPERATURE else p.temperature,
        "top_k": p.top_k,
        "top_p": p.top_p,
        "min_p": p.min_p,
        "history": history,
        "repetition": p.repetition_penalty,
        "frequency": p.frequency_penalty,
        "presence": p.presence_penalty,
    }


def sample_points(
    temperatures: npt.NDArray[np.float32], seeds: npt.NDArray[np.uint64], positions: npt.NDArray[np.int64]
) -> npt.NDArray[np.float32]:
    """Returns the point of its distribution at which each place samples, in [0, 1) also after rounding to float32."""
    if not temperatures.any():
        return np.zeros(len(temperatures), np.float32)
    return np.minimum(uniforms(seeds, positions), 1 - 2.0**-24).astype(np.float32)


@dataclass(slots=True)
class PendingTokens:
    """Sampled tokens on their way to the host. They may be read when the pass's event has come."""

    tokens: torch.Tensor
    """The tokens, pinned, [places] int32; NOT_FINITE where none can be sampled."""
    logprob_places: tuple[int, ...] = ()
    own: torch.Tensor | None = None
    top: tuple[torch.Tensor, torch.Tensor] | None = None

    def values(self) -> list[int | None]:
        """Returns the token of each place; None where none could be sampled."""
        return [None if token == kernels.NOT_FINITE else token for token in self.tokens.tolist()]

    def logprobs(self, rules: Sequence[SamplingRules]) -> dict[int, Logprob]:
        """Returns the log-probabilities by place, of the places that asked for them. `rules`: those of every place."""
        if self.own is None or self.top is None:
            return {}
        own, (values, ids) = self.own.tolist(), [t.tolist() for t in self.top]
        found = {}
        for at, place in enumerate(self.logprob_places):
            count = rules[place].top_logprobs
            best = tuple(zip(ids[at][:count], values[at][:count], strict=True))
            found[place] = Logprob(int(self.tokens[place]), own[at], best)
        return found


class DeviceSampler:
    """Samples for one kind of pass. `fed` [rows]: the token that each row is fed next."""

    def __init__(self, vocab: int, places: int, device: torch.device) -> None:
        self._vocab = vocab
        self._device = device
        self._tokens = torch.zeros(places, dtype=torch.int32, device=device)
        self._work: torch.Tensor | None = None
        self._histories: torch.Tensor | None = None
        self._free: list[int] = []
        self.fed = torch.zeros(places, dtype=torch.int32, device=device)

    # --- histories --------------------------------------------------------------------------------------------------

    def remember(self, sampling: SamplingInput) -> int:
        """Returns a history slot in which prompt and output are counted; -1: no penalty needs one.

        It works on the current stream.
        """
        if not sampling.params.penalised:
            return -1
        if not self._free:
            self._more_histories()
        slot = self._free.pop()
        assert self._histories is not None
        words = np.zeros(self._vocab, np.int32)
        np.add.at(words, np.asarray(sampling.output, np.int64), 1)
        words[np.asarray(sampling.prompt, np.int64)] |= kernels.SEEN_IN_PROMPT
        self._histories[slot].copy_(torch.from_numpy(words))
        return slot

    def forget(self, slot: int) -> None:
        """Frees a history slot. To be called when no pass on the device will use it before its next owner's passes."""
        if slot >= 0:
            self._free.append(slot)

    def _more_histories(self) -> None:
        held = 0 if self._histories is None else len(self._histories)
        more = torch.zeros((max(FIRST_HISTORIES, 2 * held), self._vocab), dtype=torch.int32, device=self._device)
        if self._histories is not None:
            more[:held].copy_(self._histories)
        self._free += range(held, len(more))
        self._histories = more

    # --- sampling ----------------------------------------------------------------------------------------------------

    def sample(
        self,
        logits: torch.Tensor,
        rows: torch.Tensor,
        args: Mapping[str, torch.Tensor],
        special: Sequence[tuple[int, int, SamplingRules]],
        fed: torch.Tensor,
    ) -> PendingTokens:
        """Samples a token for each place, on the current stream.

        `logits` [places, vocab]; `rows` [places]: the row of each place; `args`: SAMPLING_COLUMNS on the device;
        `special`: place, output position and rules of each place that needs more than its columns; `fed`: takes the
        tokens, by row.
        """
        places = len(logits)
        tokens = self._tokens[:places]
        adjusted = logits
        penalised = any(rules.history >= 0 for _, _, rules in special)
        if any(r.history >= 0 or r.bias is not None or (r.banned is not None and at < r.until) for _, at, r in special):
            adjusted = self._adjusted(logits, args, special, penalised=penalised)
        temperature, top_k, top_p, min_p, chance = (
            args[name][:places] for name in ("temperature", "top_k", "top_p", "min_p", "point")
        )
        kernels.sample(adjusted, rows, temperature, top_k, top_p, min_p, chance, tokens, fed)
        if penalised and self._histories is not None:
            kernels.count(self._histories, args["history"][:places], tokens)
        sampled = PendingTokens(self._to_host(tokens))
        wanting = [(place, rules) for place, _, rules in special if rules.logprobs]
        if wanting:
            self._logprobs(logits, tokens, wanting, sampled)
        return sampled

    def _adjusted(
        self,
        logits: torch.Tensor,
        args: Mapping[str, torch.Tensor],
        special: Sequence[tuple[int, int, SamplingRules]],
        *,
        penalised: bool,
    ) -> torch.Tensor:
        """Returns the logits after bias, penalties and the ban on stop tokens, in this order, in float32."""
        places = len(logits)
        work = torch.empty((places, self._vocab), dtype=torch.float32, device=self._device)
        biased = logits
        if any(rules.bias is not None for _, _, rules in special):
            work.copy_(logits)
            biased = work
            for place, _, rules in special:
                if rules.bias is not None:
                    ids, amounts = _used(rules.bias)
                    work[place].index_add_(0, ids, amounts)
        if penalised and self._histories is not None:
            slots, repetition, frequency, presence = (
                args[name][:places] for name in ("history", "repetition", "frequency", "presence")
            )
            kernels.penalise(biased, self._histories, slots, repetition, frequency, presence, work)
        elif biased is logits:
            work.copy_(logits)
        for place, position, rules in special:
            if rules.banned is not None and position < rules.until:
                [ids] = _used([rules.banned])
                work[place].index_fill_(0, ids, -torch.inf)
        return work

    def _logprobs(
        self,
        logits: torch.Tensor,
        tokens: torch.Tensor,
        wanting: Sequence[tuple[int, SamplingRules]],
        sampled: PendingTokens,
    ) -> None:
        sampled.logprob_places = tuple(place for place, _ in wanting)
        at = torch.tensor(sampled.logprob_places, dtype=torch.int64)
        at = (at.pin_memory() if self._device.type == "cuda" else at).to(self._device, non_blocking=True)
        logprobs = logits.index_select(0, at).float().log_softmax(-1)
        own = logprobs.gather(1, tokens.index_select(0, at).long().clamp_(min=0)[:, None])[:, 0]
        top = logprobs.topk(min(max(1, *(rules.top_logprobs for _, rules in wanting)), self._vocab), -1)
        sampled.own = self._to_host(own)
        sampled.top = self._to_host(top.values), self._to_host(top.indices)

    def _to_host(self, tensor: torch.Tensor) -> torch.Tensor:
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=self._device.type == "cuda")
        return host.copy_(tensor, non_blocking=True)


def _used(tensors: Any) -> Any:
    """Tells the allocator that the current stream uses the tensors."""
    for tensor in tensors:
        if tensor.is_cuda:
            tensor.record_stream(torch.cuda.current_stream())
    return tensors
