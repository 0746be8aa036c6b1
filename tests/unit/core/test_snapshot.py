from __future__ import annotations

from semipd.core.request import Slo
from semipd.core.snapshot import Running, RunningSequence


def some(count: int) -> tuple[RunningSequence, ...]:
    return tuple(RunningSequence(n, f"r{n}", 0.0, 0.1, 0.2, 50, 5, 100, 0, Slo()) for n in range(count))


def test_what_runs_is_made_once_and_not_to_be_counted() -> None:
    made = []

    def make() -> tuple[RunningSequence, ...]:
        made.append(some(3))
        return made[-1]

    running = Running(3, make)
    assert len(running) == 3
    assert running
    assert not made
    assert list(running) == list(running) == list(some(3))
    assert len(made) == 1


def test_what_runs_behaves_as_a_tuple() -> None:
    expected = some(3)
    running = Running(3, lambda: expected)
    assert running == expected
    assert (running[1], running[1:]) == (expected[1], expected[1:])
    assert expected[2] in running
