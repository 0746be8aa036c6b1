"""Tests what a policy is and what must hold for its answers."""

from __future__ import annotations

import subprocess
import sys

import pytest

import semipd.policies as door
from semipd.core.errors import ConfigError
from semipd.policies import (
    FULL,
    Admission,
    Broken,
    Chunk,
    Limits,
    Mode,
    PageUse,
    Plan,
    Policy,
    PolicyOptions,
    RunningSequence,
    Slo,
    Snapshot,
    WaitingSequence,
    fill_batch,
    option,
)
from semipd.policies.contract import ask_admission, ask_plan, check_plan


def waits(number: int, tokens: int = 40, flying: int = 0) -> WaitingSequence:
    return WaitingSequence(number, f"r{number}", 0.0, tokens, 0, flying, 0, 100, 0, Slo(), None)


def runs(number: int) -> RunningSequence:
    return RunningSequence(number, f"r{number}", 0.0, 0.1, 0.2, 50, 5, 100, 0, Slo())


WAITING = (waits(1), waits(2), waits(3, 40, flying=10))
SNAPSHOT = Snapshot(1.0, WAITING, (runs(11), runs(12), runs(13)), PageUse(9, 10, 16), Limits(64, 8))


class Says(Policy):
    """Answers as the test says."""

    name = "says"

    def __init__(self, plan: Plan, admission: Admission | None = None) -> None:
        super().__init__()
        self._plan, self._admission = plan, admission

    def admit(self, snapshot: Snapshot, sequence: WaitingSequence) -> Admission:
        return self._admission or super().admit(snapshot, sequence)

    def plan(self, snapshot: Snapshot) -> Plan:
        return self._plan


def test_all_that_an_author_needs_is_at_the_door() -> None:
    assert all(hasattr(door, name) for name in door.__all__)


def test_the_door_opens_without_torch() -> None:
    code = "import sys, semipd.policies; print([m for m in ('torch', 'numpy', 'grpc') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


@pytest.mark.parametrize(
    "plan",
    [
        Plan(),
        Plan(prefill=(Chunk(2, 24), Chunk(1, 40)), shares=FULL),
        Plan(hold=frozenset({11, 13}), preempt=(12,)),
        Plan(preempt=(13, 11)),
    ],
    ids=["nothing", "prefill", "hold and preempt", "preempt"],
)
def test_a_plan_that_keeps_the_contract_is_returned_as_it_is(plan: Plan) -> None:
    assert ask_plan(Says(plan), SNAPSHOT) is plan


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        (Plan(prefill=(Chunk(99, 1),)), "prefill names sequence 99, which does not wait"),
        (Plan(prefill=(Chunk(11, 1),)), "prefill names sequence 11, which does not wait"),
        (Plan(prefill=(Chunk(1, 1), Chunk(1, 1))), "prefill names sequence 1 2 times"),
        (Plan(prefill=(Chunk(3, 1),)), "with the prefill worker"),
        (Plan(prefill=(Chunk(1, 41),)), "41 tokens for sequence 1, which has 40 left"),
        (Plan(prefill=(Chunk(1, 40), Chunk(2, 40))), "80 prompt tokens in one batch; at most 64"),
        (Plan(hold=frozenset({1})), "hold names sequence 1, which does not run"),
        (Plan(preempt=(1,)), "preempt names sequence 1, which does not run"),
        (Plan(preempt=(11, 12, 11)), "preempt names sequence 11 2 times"),
        (Plan(hold=frozenset({12}), preempt=(11, 12)), "sequence 12 is to be held back and to be preempted"),
        ("nonsense", "plan returned str, not Plan"),
    ],
)
def test_a_plan_that_breaks_the_contract_is_refused(plan: Plan, said: str) -> None:
    with pytest.raises(Broken, match=said):
        ask_plan(Says(plan), SNAPSHOT)


def test_pages_that_a_preempted_sequence_gives_up_are_not_free_yet() -> None:
    full = Snapshot(1.0, (waits(1),), (runs(11),), PageUse(0, 10, 16), Limits(64, 8))
    with pytest.raises(Broken, match="needs 3 pages and 0 are free"):
        ask_plan(Says(Plan(prefill=(Chunk(1, 40),), preempt=(11,))), full)


@pytest.mark.parametrize("mode", [Mode.TURNS, Mode.MIXED])
def test_a_mode_that_the_engine_does_not_have_becomes_a_split(mode: Mode) -> None:
    asked = ask_plan(Says(Plan(shares=FULL, mode=mode, step_tokens=100)), SNAPSHOT)
    assert asked == Plan(shares=FULL, mode=Mode.SPLIT, step_tokens=100)


def test_a_mode_that_the_engine_has_stays() -> None:
    limits = Limits(64, 8, modes=frozenset(Mode))
    for mode in Mode:
        asked = ask_plan(Says(Plan(mode=mode)), Snapshot(1.0, (), (), PageUse(9, 10, 16), limits))
        assert asked.mode is mode


def test_check_plan_itself_knows_the_engines_modes() -> None:
    with pytest.raises(Broken, match="'turns' is not one of the engine's"):
        check_plan(Plan(mode=Mode.TURNS), SNAPSHOT)


def test_a_policy_admits_what_comes_unless_it_says_otherwise() -> None:
    assert ask_admission(Says(Plan()), SNAPSHOT, waits(4)) == Admission()
    refusal = Admission(False, "no hope", 2.0)
    assert ask_admission(Says(Plan(), refusal), SNAPSHOT, waits(4)) is refusal
    with pytest.raises(Broken, match="admit returned str"):
        ask_admission(Says(Plan(), "yes"), SNAPSHOT, waits(4))  # type: ignore[arg-type]


class ChunkOptions(PolicyOptions):
    chunk: int = option(16, "Most prompt tokens in one batch.", unit="tokens", low=1)


class InChunks(Policy):
    """Plans by arrival, in chunks."""

    name = "in-chunks"
    Options = ChunkOptions
    options: ChunkOptions

    def plan(self, snapshot: Snapshot) -> Plan:
        return Plan(prefill=fill_batch(snapshot, snapshot.waiting, self.options.chunk))


def test_a_policy_is_made_with_its_defaults_or_with_typed_options() -> None:
    assert InChunks().plan(SNAPSHOT).prefill == (Chunk(1, 16),)
    assert InChunks(InChunks.Options(chunk=24)).plan(SNAPSHOT).prefill == (Chunk(1, 24),)


def test_options_of_another_kind_are_refused() -> None:
    with pytest.raises(ConfigError, match="InChunks takes its options as ChunkOptions"):
        InChunks({"chunk": "24"})  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="not as PolicyOptions"):
        InChunks(PolicyOptions())


def test_with_exact_a_batch_never_has_more_than_it_may() -> None:
    nearly = Snapshot(1.0, (waits(1, 45),), (), PageUse(9, 10, 16), Limits(64, 8))
    assert fill_batch(nearly, nearly.waiting, 40) == (Chunk(1, 45),)
    assert fill_batch(nearly, nearly.waiting, 40, exact=True) == (Chunk(1, 40),)
    assert fill_batch(nearly, nearly.waiting) == (Chunk(1, 45),)
