"""The values that `adaptive` derives from one sample of the running batch, and from one snapshot: each value is
computed once."""

from __future__ import annotations

from functools import cached_property

from semipd.core.partition import Mode
from semipd.core.snapshot import Snapshot, WaitingSequence
from semipd.policies.builtin.adaptive.batch_cap import DecodeTraffic, best_batch_size
from semipd.policies.builtin.adaptive.modes import ServingLoad
from semipd.policies.builtin.adaptive.tpot_target import TpotTarget, tpot_target
from semipd.policies.builtin.adaptive.tuning import Tuning
from semipd.policies.toolkit.forecast import Forecast, Forecaster
from semipd.policies.toolkit.running_batch import RunningSample, RunningSampler, joining


class DecodeSample(RunningSample):
    """A sample of the running batch, and what decode should do until the next one is taken."""

    def __init__(self, snapshot: Snapshot, forecaster: Forecaster, tuning: Tuning) -> None:
        super().__init__(snapshot)
        self._sizes = snapshot.limits.decode_capture_sizes
        self._forecaster = forecaster
        self._tuning = tuning

    @cached_property
    def tpot_target(self) -> TpotTarget:
        """The TPOT that the next tokens must keep. At least one sequence runs."""
        return tpot_target(self.running, self._tuning)

    @cached_property
    def batch_cap(self) -> int | None:
        """The most sequences that are let into the decode batch, time-sliced; None: as many as there are places.

        It follows from what the forecaster has learned when it is first asked for.
        """
        learned, sizes = self._forecaster.learned, self._sizes
        if not sizes or not learned.prompt_per_token:
            return None
        traffic = DecodeTraffic(self.mean_context_tokens, learned.prompt_per_token, self.tpot_target.lasting_s)
        size = best_batch_size(learned.model, sizes, traffic, self._tuning)
        return None if size == sizes[-1] else size


class Moment:
    """The values that follow from one snapshot. A value is computed when it is first asked for, and then stays."""

    def __init__(
        self, snapshot: Snapshot, forecast: Forecast, running: RunningSampler[DecodeSample], tuning: Tuning
    ) -> None:
        self.snapshot = snapshot
        self.forecast = forecast
        self.tuning = tuning
        self._running = running

    @property
    def sample(self) -> DecodeSample:
        """The latest sample of the running batch."""
        return self._running.sample(self.snapshot)

    @cached_property
    def joining(self) -> list[WaitingSequence]:
        """The sequences that join the running batch next."""
        return joining(self.snapshot)

    @cached_property
    def tight_ttft_s(self) -> float:
        """The TTFT of an SLO that counts as tight, among requests that wait and that got their first token lately."""
        snapshot, most = self.snapshot, self.tuning.ttft_sample
        slos = [w.slo.ttft_s for w in snapshot.waiting[:most]]
        slos += [f.slo.ttft_s for f in snapshot.observed.first_tokens[-most:]]
        named = sorted([s for s in slos if s is not None])
        return named[len(named) // self.tuning.tight_ttft_rank] if named else self.tuning.deadlines.assumed_ttft_s

    @property
    def batch_s(self) -> float:
        """Seconds that a prefill batch is to take."""
        tuning = self.tuning
        if tuning.batch_s is not None:
            return tuning.batch_s
        wanted_s = self.tight_ttft_s * tuning.batch_part_of_ttft
        return min(tuning.longest_batch_s, max(self.forecast.launch_s, wanted_s))

    @cached_property
    def chunk_tokens(self) -> int:
        """Prompt tokens in a prefill batch that takes about `batch_s` under the shares as they are: whole tiles."""
        model, forecast, tuning = self.forecast.model, self.forecast, self.tuning
        probe, tile = tuning.forecast.probe_tokens, model.tile_tokens
        fixed_s = model.fixed_s(share=forecast.prefill_share, other=forecast.decode_share)
        token_s = model.prompt_s(probe, 0, share=forecast.prefill_share, other=forecast.decode_share) / probe
        tokens = round((self.batch_s - fixed_s) / token_s / tile) * tile
        return min(tuning.largest_chunk_tokens, max(tile, tokens))

    @cached_property
    def load(self) -> ServingLoad:
        """The load to be served: the running batch with the sequences that join it, and prompts, of which one waits."""
        snapshot, forecast = self.snapshot, self.forecast
        rows = len(snapshot.running)
        context = round(rows * self.sample.mean_context_tokens) + sum([w.prompt_tokens for w in self.joining])
        return ServingLoad(
            decode_rows=min(rows + len(self.joining), snapshot.limits.max_running),
            context_tokens=context,
            tpot_target_s=self.sample.tpot_target.now_s,
            chunk_tokens=self.chunk_tokens,
            mixed_ttft_s=self.tight_ttft_s * self.tuning.mixed_wait_part_of_ttft,
            prompt_tokens=forecast.prompt_tokens,
            arriving_tokens_per_s=forecast.arriving_tokens_per_s,
            computed_tokens=snapshot.waiting[0].computed_tokens,
            tile_tokens=forecast.model.tile_tokens,
        )

    def places(self, mode: Mode) -> int:
        """Returns for how many more sequences the decode batch has a place.

        A sequence whose first token comes before there is a place has its TPOT to lose. A few wait for theirs, so that
        it is taken at once. Time-sliced, as many are let in as are served best (`DecodeSample.batch_cap`).
        """
        running, most = len(self.snapshot.running), self.snapshot.limits.max_running
        places = most + max(1, most // self.tuning.headroom)
        if running and mode is Mode.TURNS and self.snapshot.limits.decode_capture_sizes:
            places = min(places, self.sample.batch_cap or places)
        return max(0, places - running - len(self.joining))
