from __future__ import annotations

from collections.abc import Mapping

import pytest

from semipd.core.errors import ConfigError
from semipd.core.partition import FULL, Shares
from semipd.core.plan import Chunk
from semipd.core.request import Slo
from semipd.core.snapshot import Limits, PageUse, RunningSequence, Snapshot, WaitingSequence
from semipd.policies.registry import discover, make_policy


def waiting(number: int, prompt: int, computed: int = 0, priority: int = 0, in_flight: int = 0) -> WaitingSequence:
    return WaitingSequence(number, f"r{number}", 0.0, prompt, computed, in_flight, 0, 100, priority, Slo(), None)


def running(number: int) -> RunningSequence:
    return RunningSequence(number, f"r{number}", 0.0, 0.1, 0.2, 50, 5, 100, 0, Slo())


def snapshot(*sequences: WaitingSequence, free: int = 100, run: int = 0, batch: int = 64) -> Snapshot:
    decoding = tuple(running(1000 + n) for n in range(run))
    return Snapshot(1.0, sequences, decoding, PageUse(free, 100, 16), Limits(batch, 8))


@pytest.mark.parametrize("name", ["fcfs", "static"])
class TestFilling:
    def test_prompts_share_a_batch_in_order_and_the_last_is_cut(self, name: str) -> None:
        plan = make_policy(name, {}).plan(snapshot(waiting(1, 40), waiting(2, 40), waiting(3, 40)))
        assert plan.prefill == (Chunk(1, 40), Chunk(2, 24))

    def test_a_prompt_goes_on_where_it_stopped(self, name: str) -> None:
        plan = make_policy(name, {}).plan(snapshot(waiting(1, 40, computed=30)))
        assert plan.prefill == (Chunk(1, 10),)

    def test_what_is_with_the_worker_is_not_planned_again(self, name: str) -> None:
        plan = make_policy(name, {}).plan(snapshot(waiting(1, 40, in_flight=10), waiting(2, 8)))
        assert plan.prefill == (Chunk(2, 8),)

    def test_priority_goes_first(self, name: str) -> None:
        plan = make_policy(name, {}).plan(snapshot(waiting(1, 64), waiting(2, 64, priority=1)))
        assert plan.prefill == (Chunk(2, 64),)

    def test_only_pages_that_are_free_are_planned_and_one_is_left_for_each_running_sequence(self, name: str) -> None:
        plan = make_policy(name, {}).plan(snapshot(waiting(1, 64), free=5, run=2))
        assert plan.prefill == (Chunk(1, 48),)

    def test_a_full_pool_means_no_prefill(self, name: str) -> None:
        assert make_policy(name, {}).plan(snapshot(waiting(1, 64), free=0)).prefill == ()

    def test_chunk_bounds_a_batch(self, name: str) -> None:
        plan = make_policy(name, {"chunk": "16"}).plan(snapshot(waiting(1, 64)))
        assert plan.prefill == (Chunk(1, 16),)

    def test_no_tiny_remainder_is_left(self, name: str) -> None:
        plan = make_policy(name, {"chunk": "40"}).plan(snapshot(waiting(1, 45), waiting(2, 40)))
        assert plan.prefill == (Chunk(1, 45),)

    def test_no_tiny_piece_is_begun(self, name: str) -> None:
        plan = make_policy(name, {}).plan(snapshot(waiting(1, 60), waiting(2, 40)))
        assert plan.prefill == (Chunk(1, 60),)


def test_fcfs_asks_for_no_partition() -> None:
    assert make_policy("fcfs", {}).plan(snapshot()).shares == FULL


def test_static_asks_for_its_shares() -> None:
    assert make_policy("static", {"prefill": "70", "decode": "40"}).plan(snapshot()).shares == Shares(70, 40)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("fcfs", {"colour": "red"}, "no option colour; it has: chunk, order"),
        ("fcfs", {"chunk": "0"}, "option chunk: must be a whole number, at least 1; got '0'"),
        ("static", {"prefill": "101"}, "option prefill: must be a number above 0, at most 100; got '101'"),
        ("static", {"decode": "nan"}, "option decode"),
        ("static", {"order": "random"}, "option order: must be one of fcfs, slack; got 'random'"),
        ("nobody", {}, "no policy is named 'nobody'; installed: .*fcfs.*static"),
    ],
)
def test_bad_options_are_refused_by_name(name: str, options: Mapping[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_policy(name, options)


def test_built_in_policies_are_found_by_entry_point_with_a_summary() -> None:
    found = discover()
    assert {"fcfs", "static"} <= set(found)
    assert found["static"].summary.startswith("Fixed shares (x, y) of the device")
    assert found["fcfs"].distribution == "semipd"
