"""The constants of `adaptive`, each with its unit and its reason, in one immutable value."""

from __future__ import annotations

from dataclasses import dataclass

from semipd.policies.toolkit.deadlines import DEADLINES, DeadlineTuning
from semipd.policies.toolkit.forecast import FORECAST, ForecastTuning
from semipd.policies.toolkit.running_batch import SAMPLING, SamplingTuning


@dataclass(frozen=True, slots=True)
class Tuning:
    """All numbers that the decisions of `adaptive` depend on. The policy's options replace the first four."""

    # --- options ----------------------------------------------------------------------------------------------------

    batch_s: float | None = None
    """Seconds that a prefill batch is to take; None: as the tightest TTFT allows (`batch_part_of_ttft`)."""
    ahead_s: float = 0.008
    """Seconds before the prefill worker is free at which its next batch is given out. Later, the worker would wait for
    it; earlier, a more urgent prompt could still arrive."""
    tpot_margin: float = 0.1
    """Part of each TPOT of an SLO that is kept in reserve for what the latency model does not know."""
    dwell_s: float = 0.25
    """Seconds for which a way to use the device stays before prefill gets more, so that it does not flap."""

    # --- TTFT: how long a prefill batch may take ---------------------------------------------------------------------

    ttft_sample: int = 64
    """Sequences whose TTFT SLOs are looked at: so many that got their first token lately, and so many that wait."""
    tight_ttft_rank: int = 10
    """One in so many of these TTFTs may be tighter than the one that counts as tight: a few prompts in a hurry must not
    make the batches of all small."""
    batch_part_of_ttft: float = 0.25
    """Part of the tight TTFT that a prefill batch takes, so that a short prompt that arrives next never waits long."""
    longest_batch_s: float = 0.06
    """Seconds that a batch takes at most, however loose the TTFTs are."""
    largest_chunk_tokens: int = 2048
    """Prompt tokens in a batch, at most."""

    # --- TPOT: how fast the running batch must be --------------------------------------------------------------------

    warm_up_tokens: int = 32
    """Output tokens from which on a sequence's lag counts. Before, it has no lead to use, and most of its time is left
    to catch up."""
    lag_percentile: float = 0.75
    """Part of the sequences with one SLO that may lag further behind it than the one that sets the TPOT target. They
    are helped all the same, because the target falls as they fall behind. If the last one set it, long time slices,
    which serve most, would be refused to all for its sake."""
    catch_up_tokens: int = 64
    """Output tokens over which a sequence that lags behind its SLO is to catch up."""
    catch_up_limit: float = 0.2
    """Part of its TPOT by which such a sequence is made faster at most: one that can't be helped must not slow down all
    prompts."""
    burst_tokens: int = 32
    """Output tokens over which a sequence that is ahead of its SLO may use up its lead."""
    burst_limit: float = 2.0
    """Multiple of its TPOT that such a sequence takes for a token at most."""

    # --- places in the decode batch ----------------------------------------------------------------------------------

    headroom: int = 32
    """One sequence for each so many places in the decode batch may wait for a place with its first token sampled, so
    that a place is taken at once. More would lose their TPOT while they wait."""
    nearly: float = 0.05
    """Part by which a larger batch may serve less and still counts as good: then nobody is held back."""

    # --- ways to use the device --------------------------------------------------------------------------------------

    time_slice_tokens: tuple[int, ...] = (
        128, 256, 384, 512, 640, 768, 896, 1024, 1280, 1536, 1792, 2048, 2560, 3072, 4096,
    )  # fmt: skip
    """Prompt tokens between two decode steps that are tried, time-sliced, ascending: whole tiles."""
    mixed_tokens: tuple[int, ...] = (256, 384, 512, 768, 1024, 1536, 2048)
    """Prompt tokens in a mixed batch that are tried, ascending: whole tiles."""
    first_split: int = 2
    """Index, among the splits, of the one that is presumed to be in force before the first choice."""
    mixed_wait_part_of_ttft: float = 0.5
    """Part of the tight TTFT that a short prompt may take to its first token in mixed batches."""
    mixed_batches_to_first_token: int = 3
    """Mixed batches until a prompt's first token: the one that runs, the one that was launched behind it, and its
    own."""
    mixed_batches_before: float = 1.5
    """Mixed batches that a prompt waits for on average: half of the one that runs, and the one that was launched behind
    it."""
    pass_left: float = 0.5
    """Part of a pass or step that is left on average when a prompt arrives."""
    saturated: float = 0.9
    """Utilization of prefill from which on the mean wait of a queue says little. From there the wait goes on as a
    straight line."""
    length_variation: float = 0.75
    """Half of one plus the squared coefficient of variation of prompt lengths, about: the factor of the
    Pollaczek-Khinchine formula. 0.5 is for equal prompts, 1 for exponential lengths."""
    gain: float = 0.03
    """Part by which first tokens must come sooner for a change of the device's use. As large a part of the TPOT target
    must be left under the new use."""

    # --- admission ---------------------------------------------------------------------------------------------------

    certain: float = 0.8
    """Part of the estimated time to a first token that must fit before a deadline. Below, the deadline counts as
    lost."""
    least_retry_s: float = 0.1
    """Seconds that a refused client is asked to wait, at least."""

    # --- what other policies use, too --------------------------------------------------------------------------------

    deadlines: DeadlineTuning = DEADLINES
    """The order of prompts."""
    forecast: ForecastTuning = FORECAST
    """Constants of what is learned from observations, and how the latency model is fitted."""
    sampling: SamplingTuning = SAMPLING
    """Constants of how often the running batch is sampled."""


TUNING = Tuning()
