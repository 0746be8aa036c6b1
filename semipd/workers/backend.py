"""The protocols through which a worker's loop uses the device that it computes on.

`backend_cpu` and `backend_gpu` implement `Backend`. The engine's classes implement `PrefillEngine` and `DecodeBatch`.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Protocol

from semipd.engine.attention import Pages
from semipd.engine.engine import PendingPrefill, PrefillItem, SamplingInput, TokenOutcome
from semipd.engine.pulse import Pulse
from semipd.internal.v1 import worker_pb2 as wk

StepOutcomes = list[tuple[int, TokenOutcome]]
"""The leases of a decode step, each with what was sampled for it."""


class PrefillEngine(Protocol):
    """Computes prompts in chunks; `semipd.engine.engine.CpuEngine` says what each method does."""

    passes_ahead: int

    def begin_prefill(self, items: Sequence[PrefillItem]) -> PendingPrefill: ...
    def prepare_prefill(self, items: Sequence[PrefillItem]) -> PendingPrefill: ...


class DecodeBatch(Protocol):
    """The running batch; `semipd.engine.batch.CpuDecodeBatch` says what each method does."""

    @property
    def flying(self) -> int: ...
    def context_tokens(self) -> int: ...
    def add(self, lease: int, context: int, table: Pages, sampling: SamplingInput) -> None: ...
    def remove(self, lease: int) -> None: ...
    def hold(self, leases: Collection[int]) -> None: ...
    def quiet(self) -> list[int]: ...
    def wanting_pages(self) -> list[int]: ...
    def grow(self, lease: int, pages: Sequence[int] | Pages) -> None: ...
    def prepare(self) -> None: ...
    def step(self, pulse: Pulse, *, ahead: bool = True, prompts: Sequence[PrefillItem] = ()) -> StepOutcomes: ...
    def prompt_outcomes(self) -> list[tuple[Sequence[PrefillItem], list[TokenOutcome | None]]]: ...
    def drain(self, pulse: Pulse) -> StepOutcomes: ...
    def wait(self, pulse: Pulse) -> None: ...


class TurnTaking(Protocol):
    """Shares the device in time slices: while both phases have work, they compute one at a time ("turns").

    Each phase has one. `semipd.workers.turns` implements it over the control block.
    """

    def busy(self, work: bool) -> None:
        """Tells the other phase whether there is work here. While there is none, it has the whole device."""

    def enabled(self) -> bool:
        """Returns whether the phases compute one at a time, each on the whole device, while both are busy."""

    def alternating(self) -> bool:
        """Returns whether they do so now: turns are enabled, and the other phase is busy too."""

    def mine(self) -> bool:
        """Returns whether a pass may be launched now. Always true while the phases do not alternate."""

    def wait(self, pulse: Pulse) -> None:
        """Waits until it is this phase's turn, but not for ever. Calls `pulse.report` again and again meanwhile."""

    def end(self, *, computed: int = 0, following: int = 0) -> bool:
        """Notes that this phase's pass is over, and returns whether the turn is still ours.

        `computed`: prompt tokens of the pass. `following`: prompt tokens of a batch that could come next, with which
        prefill keeps the turn while it may.
        """


class NoTurns:
    """A `TurnTaking` where both phases may always compute."""

    def busy(self, work: bool) -> None: ...

    def enabled(self) -> bool:
        return False

    def alternating(self) -> bool:
        return False

    def mine(self) -> bool:
        return True

    def wait(self, pulse: Pulse) -> None: ...

    def end(self, *, computed: int = 0, following: int = 0) -> bool:
        return False


class Backend(Protocol):
    """A worker's part of the device: its share, and work that can be done when nothing is waiting."""

    @property
    def turns(self) -> TurnTaking: ...

    def choose_share(self) -> None:
        """Takes the share that holds now. To be called before each pass."""

    def set_shares(self, message: wk.SetShares) -> None:
        """Takes the share that a message brings."""

    def has_spare_work(self) -> bool:
        """Returns whether `do_spare_work` has something that makes later work faster."""

    def do_spare_work(self) -> None:
        """Does a little of it. To be called when nothing is waiting."""
