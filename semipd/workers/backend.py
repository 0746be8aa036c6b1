"""What a worker computes with, as its loop sees it: `on_cpu` and `on_gpu` fill it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol

from semipd.engine.attention import Pages
from semipd.engine.engine import PendingPrefill, PrefillItem, SamplingInput, TokenOutcome
from semipd.internal.v1 import worker_pb2 as wk

Pulse = Callable[[], None]
Outcomes = list[tuple[int, TokenOutcome]]


class PrefillEngine(Protocol):
    passes_ahead: int

    def begin_prefill(self, items: Sequence[PrefillItem]) -> PendingPrefill: ...
    def prepare_prefill(self, items: Sequence[PrefillItem]) -> PendingPrefill: ...


class Batch(Protocol):
    """A decode batch; `semipd.engine.batch` says what each does."""

    @property
    def flying(self) -> int: ...
    def context_tokens(self) -> int: ...
    def add(self, lease: int, context: int, table: Pages, sampling: SamplingInput) -> None: ...
    def remove(self, lease: int) -> None: ...
    def quiet(self) -> list[int]: ...
    def wanting_pages(self) -> list[int]: ...
    def grow(self, lease: int, pages: Sequence[int] | Pages) -> None: ...
    def prepare(self) -> None: ...
    def step(self, pulse: Pulse, *, ahead: bool = True, prompts: Sequence[PrefillItem] = ()) -> Outcomes: ...
    def prompt_outcomes(self) -> list[tuple[Sequence[PrefillItem], list[TokenOutcome | None]]]: ...
    def drain(self, pulse: Pulse) -> Outcomes: ...
    def wait(self, pulse: Pulse) -> None: ...


class Backend(Protocol):
    """This worker's part of the device."""

    def busy(self, work: bool) -> None:
        """Says to the other phase whether there is work here; it has the whole device while there is none."""

    def choose_share(self) -> None:
        """Before each pass: takes the share that holds now."""

    def takes_turns(self) -> bool:
        """Whether the phases compute one at a time, each on the whole device, while both are busy."""

    def alternates(self) -> bool:
        """Whether they do now: the other one is busy, too."""

    def my_turn(self) -> bool:
        """Whether a pass may be launched now; always where the phases don't alternate."""

    def wait_for_turn(self, glance: Pulse) -> None:
        """Until it is this one's turn, or for too long; `glance` is called again and again."""

    def end_turn(self, *, computed: int = 0, following: int = 0) -> bool:
        """This one's pass is over; whether the turn is still ours. `computed`: prompt tokens in it; `following`: in a
        batch that could come next, with which prefill keeps the turn while it may."""

    def set_shares(self, message: wk.SetShares) -> None:
        """The share came as a message."""

    def has_spare_work(self) -> bool:
        """Whether `do_spare_work` has something that makes later work faster."""

    def do_spare_work(self) -> None:
        """A little of it; to be called when nothing is waiting."""
