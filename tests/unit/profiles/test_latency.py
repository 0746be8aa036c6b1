"""The latency model that is fitted to a profile, against the profile's own points."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import pytest
from unit.sim.small import small_profile

from semipd.core.latency import LatencyModel
from semipd.profiles.latency import latency_model
from semipd.profiles.profile import SHIPPED, Buckets, DecodePoint, DecodeTable, PrefillTable, Profile, load_profile
from semipd.profiles.roofline import TILE

SHIP = load_profile(SHIPPED)
MODEL = latency_model(SHIP)


def tables_of(profile: Profile) -> tuple[DecodeTable | PrefillTable, ...]:
    return (*profile.decode, *profile.prefill)


def whole(profile: Profile, table: DecodeTable | PrefillTable) -> bool:
    return (table.sms, table.other_sms) == (profile.gpu.sms, 0)


def errors(profile: Profile, model: LatencyModel, table: DecodeTable | PrefillTable) -> Iterator[tuple[str, float]]:
    """Yields each point of the table, and its fitted over its measured time, less 1."""
    share, other = (100 * sms / profile.gpu.sms for sms in (table.sms, table.other_sms))
    for p in table.points:
        if isinstance(p, DecodePoint):
            fitted = model.decode_s(p.rows, p.rows * p.context, share=share, other=other)
        else:
            fitted = model.prefill_s(p.tokens, p.start + p.tokens, share=share, other=other)
        yield f"{table.sms} beside {table.other_sms}: {p}", 1000 * fitted / p.ms - 1


def test_every_point_alone_and_every_mixed_batch_is_met_within_15_percent() -> None:
    found = [e for t in tables_of(SHIP) if whole(SHIP, t) for e in errors(SHIP, MODEL, t)]
    for p in SHIP.mixed:
        fitted = MODEL.mixed_s(p.tokens, p.start, p.rows, p.rows * p.context)
        found.append((f"mixed: {p}", 1000 * fitted / p.ms - 1))
    assert len(found) == 53
    assert [(point, error) for point, error in found if abs(error) > 0.15] == []
    assert max(abs(error) for _, error in found) < 0.10  # docs/simulate.md states both
    assert median(abs(error) for _, error in found) < 0.03


def test_on_fewer_sms_alone_every_point_is_met_within_10_percent() -> None:
    tables = [t for t in tables_of(SHIP) if not t.other_sms and not whole(SHIP, t)]
    found = [e for t in tables for e in errors(SHIP, MODEL, t)]
    assert len(found) == 36
    assert [(point, error) for point, error in found if abs(error) > 0.10] == []


def test_side_by_side_within_10_percent_where_each_phase_has_sms_of_its_own() -> None:
    tables = [t for t in tables_of(SHIP) if t.other_sms]
    apart = [e for t in tables if t.sms + t.other_sms <= SHIP.gpu.sms for e in errors(SHIP, MODEL, t)]
    assert len(apart) == 54
    assert [(point, error) for point, error in apart if abs(error) > 0.10] == []


def test_where_both_may_use_the_same_sms_nothing_takes_much_longer_than_the_model_says() -> None:
    """The hardware decides pass by pass who gets them, and times scatter: the model takes the worst."""
    tables = [t for t in tables_of(SHIP) if t.sms + t.other_sms > SHIP.gpu.sms]
    found = [e for t in tables for e in errors(SHIP, MODEL, t)]
    assert len(found) == 18
    assert [(point, error) for point, error in found if error < -0.10] == []
    for table in tables:
        if table.sms == table.other_sms:
            assert min(error for _, error in errors(SHIP, MODEL, table)) == pytest.approx(0.0, abs=0.08)


def test_the_tile_is_the_widest_step_between_two_sizes_that_passes_are_padded_to() -> None:
    assert MODEL.tile_tokens == 128
    assert latency_model(replace(SHIP, buckets=Buckets(prefill=(32, 64, 128)))).tile_tokens == 64
    assert latency_model(replace(SHIP, buckets=Buckets())).tile_tokens == TILE


def test_a_profile_of_few_points_gives_a_model_too() -> None:
    """One point of each split, no mixed batches, and no split that was measured alone and beside the other phase."""
    small = small_profile()
    model = latency_model(small)
    found = [e for t in tables_of(small) if whole(small, t) for e in errors(small, model, t)]
    assert [(point, error) for point, error in found if abs(error) > 0.15] == []
    assert model.mixed_batch_s == model.batch_s
    times = [model.decode_s(64, 65536, share=share, other=100 - share) for share in (12, 24, 36, 48)]
    assert times == sorted(times, reverse=True)


def test_without_smaller_shares_alone_those_beside_the_other_phase_tell_of_them() -> None:
    def some(tables: tuple[DecodeTable, ...] | tuple[PrefillTable, ...]) -> list[DecodeTable | PrefillTable]:
        return [t for t in tables if t.other_sms or whole(SHIP, t)]

    model = latency_model(replace(SHIP, decode=tuple(some(SHIP.decode)), prefill=tuple(some(SHIP.prefill))))  # type: ignore[arg-type]
    beside = MODEL.decode_s(64, 65536, share=100 * 48 / 132, other=100 * 84 / 132)
    assert model.decode_s(64, 65536, share=100 * 48 / 132) == pytest.approx(beside, rel=0.02)


def test_points_that_make_no_sense_leave_every_cost_above_nothing() -> None:
    """Times that fall as the work grows: no cost is negative, and none is free."""
    odd = tuple(
        replace(t, points=tuple(replace(p, ms=1e5 / (p.tokens + p.start)) for p in t.points)) for t in SHIP.prefill
    )
    model = latency_model(replace(SHIP, prefill=odd))
    assert min(model.token_s, model.batch_s, model.launch_s, model.attention_s) > 0
    assert model.prefill_s(512, 512) > 0
