"""What a policy expects: a latency model that follows the server, and when its prefill worker will be free."""

from __future__ import annotations

from semipd.core.latency import NOMINAL
from semipd.core.partition import FULL, Mode, Phase, Shares
from semipd.core.snapshot import Observed, Snapshot, WaitingSequence
from semipd.policies.toolkit.deadlines import Work
from semipd.policies.toolkit.fitting import Fit
from semipd.policies.toolkit.latency import LatencyModel
from semipd.policies.toolkit.running_batch import RunningBatch

REFIT_S = 0.1
"""The model is refitted at most so often."""
STEP_TOKENS = 768
RECENT = 64
"""First tokens that say what comes."""
AT_LEAST_S = 0.5
FEWEST_ENDED = 16
"""Sequences that ended, to say how long they are."""


class Forecast:
    """Remembers the fitted model, and when the present batch can have begun. Call `see` with each snapshot."""

    def __init__(self, model: LatencyModel | None = None) -> None:
        """`model`: where to start from; None: from the one of the engine's limits, as the first snapshot has it."""
        self._started = model is not None
        self._fit = Fit(model or NOMINAL)
        self.model = self._fit.model
        self.batch = RunningBatch()
        self.prompt_tokens = 512
        """Of a prompt, on average."""
        self.prompt_per_token: float | None = None
        """Prompt tokens to compute for each token that is sampled; None: too little ended to tell."""
        self._served, self._served_s = 0, 0.0
        self.step_tokens = STEP_TOKENS
        """Prompt tokens to a decode step where the phases take turns or are mixed, about. For a policy that knows to
        set."""
        self._observed: Observed | None = None
        self._stepped: Snapshot | None = None
        """The snapshot that `_step_s` is of: it is asked for more than once."""
        self._step_s = 0.0
        self._refitted_s = float("-inf")
        self._idle_s = float("-inf")
        self._answered_s = float("-inf")

    def see(self, snapshot: Snapshot) -> None:
        now = snapshot.now_s
        if not self._started:
            self._started = True
            self._fit = Fit(snapshot.limits.latency)
            self.model = self._fit.model
        if snapshot.prefill_batches == 0:
            self._idle_s = now
        if snapshot.observed is not self._observed:
            steps = snapshot.observed.steps
            self._answered_s = max((s.end_s for s in steps[-8:] if s.phase is Phase.PREFILL), default=self._answered_s)
            if now >= self._refitted_s + REFIT_S:
                self.model = self._fit.see(steps)
                self._refitted_s = now
                self._count(snapshot)
                self._observed = snapshot.observed

    def _count(self, snapshot: Snapshot) -> None:
        """What prompts came lately, by their first tokens."""
        found = snapshot.observed.first_tokens[-RECENT:]
        if found:
            total = sum([f.prompt_tokens for f in found])
            self.prompt_tokens = max(1, total // len(found))
            self._served, self._served_s = total, snapshot.now_s - found[0].at_s
        self.prompt_per_token = _prompt_per_token(snapshot.observed)

    def arriving(self, snapshot: Snapshot) -> float:
        """Prompt tokens a second: what got its first token lately, and what waits for it."""
        waiting = sum([w.remaining_tokens for w in snapshot.waiting])
        return (self._served + waiting) / max(AT_LEAST_S, self._served_s)

    def in_flight_s(self, snapshot: Snapshot) -> float:
        """Until the prefill worker has computed what it was given."""
        flying = [w for w in snapshot.waiting if w.in_flight_tokens]
        if not flying:
            return 0.0
        shares = effective(snapshot)
        tokens = sum([w.in_flight_tokens for w in flying])
        context = sum([w.computed_tokens for w in flying]) + tokens
        total = self.model.prefill_s(
            tokens, context, share=shares.prefill, other=other_share(snapshot), sequences=len(flying)
        )
        total += max(0, snapshot.prefill_batches - 1) * self.model.batch_s * self.model.scales.prefill(False)
        total += max(snapshot.prefill_batches, tokens / self.step_tokens) * self._between_s(snapshot)
        begun = max(self._idle_s, self._answered_s)
        return max(0.0, total - max(0.0, snapshot.now_s - begun))

    def launch_s(self) -> float:
        """The least that any batch takes."""
        return self.model.floor_s()

    def _between_s(self, snapshot: Snapshot) -> float:
        """What decode adds to every `step_tokens`: where the phases take turns, the step that comes between two; in
        mixed batches, the rows in one."""
        if snapshot.mode is Mode.SPLIT or not snapshot.running:
            return 0.0
        if snapshot.mode is Mode.TURNS:
            if self._stepped is not snapshot:
                self._stepped = snapshot
                self._step_s = self.model.decode_s(len(snapshot.running), self.batch.context_tokens(snapshot))
            return self._step_s
        rows, context = len(snapshot.running), self.batch.context_tokens(snapshot)
        mixed = self.model.mixed_s(self.step_tokens, 0, rows, context)
        return max(0.0, mixed - self.model.mixed_s(self.step_tokens, 0, 0, 0))

    def work(self, snapshot: Snapshot) -> Work:
        """Seconds that the rest of a prompt adds, under the shares as they are."""
        model, share, other = self.model, effective(snapshot).prefill, other_share(snapshot)
        factor = (
            model.prompt_s(1000, 0, share=share, other=other) / model.prompt_s(1000, 0) * (model.scales.prefill(False))
        )
        factor *= 1 + self._between_s(snapshot) / model.prefill_s(self.step_tokens, self.step_tokens)
        token_s, attention_s = model.token_s * factor, model.attention_s * factor

        def seconds(w: WaitingSequence) -> float:
            tokens = w.prompt_tokens - w.computed_tokens - w.in_flight_tokens
            return tokens * (token_s + (w.computed_tokens + w.in_flight_tokens + tokens / 2) * attention_s)

        return seconds


def _prompt_per_token(observed: Observed) -> float | None:
    """Of what came and what ended lately. Sequences that run count with what was sampled of them meanwhile: were it
    those alone that have ended, the short ones would be seen first."""
    prompts, ended = observed.first_tokens, observed.completions
    if not prompts or len(ended) < FEWEST_ENDED:
        return None
    since = max(ended[0].at_s, observed.steps[0].end_s if observed.steps else 0.0)
    ends = sum([c.at_s > since for c in ended])
    sampled = sum([s.tokens for s in observed.steps if s.phase is Phase.DECODE and s.end_s > since])
    if ends < FEWEST_ENDED or not sampled:
        return None
    return sum([p.prompt_tokens for p in prompts]) / len(prompts) * ends / sampled


def effective(snapshot: Snapshot) -> Shares:
    """What prefill works under: all of the device while nothing decodes, and where the phases are not side by side."""
    return snapshot.shares if snapshot.running and snapshot.mode is Mode.SPLIT else FULL


def other_share(snapshot: Snapshot) -> float:
    """Decode's share where it computes at the same time, else 0."""
    return snapshot.shares.decode if snapshot.running and snapshot.mode is Mode.SPLIT else 0.0
