from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from unit.sim.small import small_profile

from semipd.core.errors import InputError
from semipd.core.plain import to_plain
from semipd.profiles import profile
from semipd.profiles.profile import SHIPPED, Buckets, MixedPoint, load_profile, read_profile
from semipd.sim.execution_times import ProfileTimes


@pytest.fixture
def plain() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(json.dumps(to_plain(small_profile())))
    return found


def test_what_is_saved_is_read_again(tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    small_profile().save(file)
    assert read_profile(file) == load_profile(str(file)) == small_profile()


def test_every_measured_point_is_read_off_again() -> None:
    small = small_profile()
    times = ProfileTimes(small)
    for table in small.decode:
        for p in table.points:
            got = times.decode_s(p.rows, p.rows * p.context, table.sms, table.other_sms)
            assert got * 1000 == pytest.approx(p.ms, rel=1e-6), (table.sms, table.other_sms, p)
    for batch in small.prefill:
        for q in batch.points:
            pairs = q.tokens * (q.start + q.tokens / 2)
            got = times.prefill_s(q.tokens, pairs, batch.sms, batch.other_sms)
            assert got * 1000 == pytest.approx(q.ms, rel=1e-6), (batch.sms, batch.other_sms, q)


def test_more_work_never_takes_less_time_and_fewer_sms_never_less() -> None:
    times = ProfileTimes(small_profile())
    for other in (0, 68):
        steps = [times.decode_s(rows, rows * 500, 64, other) for rows in range(1, 513, 7)]
        assert steps == sorted(steps)
        passes = [times.prefill_s(n, n * n / 2, 68, other) for n in range(1, 8192, 97)]
        assert passes == sorted(passes)
    alone = [times.decode_s(64, 64 * 800, sms, 0) for sms in (132, 96, 64, 48, 32, 16, 8)]
    assert alone == sorted(alone)


def test_a_context_that_was_computed_before_costs_its_pairs() -> None:
    times = ProfileTimes(small_profile())
    fresh = times.prefill_s(512, 512 * 256, 132, 0)
    later = times.prefill_s(512, 512 * (3500 + 256), 132, 0)
    assert later - fresh == pytest.approx(0.003, rel=1e-6)  # 14.7 ms after 3500 tokens, 11.7 without


def test_below_and_beyond_what_was_measured() -> None:
    times = ProfileTimes(small_profile())
    assert times.prefill_s(1, 0.5, 132, 0) == pytest.approx(0.005)  # the launch floor
    assert times.prefill_s(16384, 16384**2 / 2, 132, 0) > 0.4
    assert times.decode_s(512, 512 * 340, 132, 0) > times.decode_s(400, 400 * 340, 132, 0)
    assert times.decode_s(64, 64 * 100, 8, 0) == pytest.approx(2 * times.decode_s(64, 64 * 100, 16, 0))


def test_a_split_that_was_not_measured_is_between_its_neighbours() -> None:
    times = ProfileTimes(small_profile())
    wide, between, narrow = (times.decode_s(64, 65536, sms, 132 - sms) for sms in (48, 40, 32))
    assert wide < between < narrow


def mixed_point(**changed: float) -> dict[str, float]:
    return {"rows": 64, "context": 512, "tokens": 512, "start": 0, "ms": 20.0} | changed


def test_mixed_passes_may_be_there_or_not(plain: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    plain.pop("mixed")  # as files were before they were measured
    file.write_text(json.dumps(plain))
    assert read_profile(file).mixed == ()
    file.write_text(json.dumps(plain | {"mixed": [mixed_point()]}))
    assert read_profile(file).mixed == (profile.MixedPoint(64, 512, 512, 0, 20.0),)


def turns_point(**changed: float) -> dict[str, float]:
    return {"rows": 64, "context": 1024, "tokens": 512, "step_ms": 8.88, "pass_ms": 11.7} | changed


def test_turns_may_be_there_or_not(plain: dict[str, Any], tmp_path: Path) -> None:
    file = tmp_path / "mine.json"
    plain.pop("turns")  # as files were before they were measured
    file.write_text(json.dumps(plain))
    found = read_profile(file)
    assert found.turns == ()
    times = ProfileTimes(found)
    assert (times.step_by_turns(64), times.pass_by_turns(512)) == (1.0, 1.0)
    file.write_text(json.dumps(plain | {"turns": [turns_point()]}))
    assert read_profile(file).turns == (profile.TurnsPoint(64, 1024, 512, 8.88, 11.7),)


def test_passes_are_padded_to_their_buckets_and_beyond_them_to_nothing() -> None:
    points = tuple(MixedPoint(64, 512, tokens, 0, 5 + 0.02 * tokens) for tokens in (256, 1024))
    mixing = replace(small_profile(), mixed=points)
    exact = ProfileTimes(mixing)
    buckets = Buckets((1, 16, 64, 128, 256, 400), (64, 128, 256, 512, 1024), (320, 1088))
    padded = ProfileTimes(replace(mixing, buckets=buckets))
    for rows, bucket in ((1, 1), (65, 128), (128, 128), (257, 400), (450, 450)):
        assert padded.decode_s(rows, 5000, 132, 0) == pytest.approx(exact.decode_s(bucket, 5000, 132, 0))
    for tokens, bucket in ((1, 64), (513, 1024), (1025, 1025)):
        assert padded.prefill_s(tokens, 800.0, 132, 0) == exact.prefill_s(bucket, 800.0, 132, 0)
    least, at_256, beyond, at_1024 = (padded.mixed_s(64, 5000, n, 0.0, 132, 0) for n in (1, 256, 257, 1024))
    assert least == at_256 < min(beyond, at_1024)
    assert padded.mixed_s(64, 5000, 1025, 0.0, 132, 0) == exact.mixed_s(64, 5000, 1025, 0.0, 132, 0) > at_1024


def test_what_was_measured_between_buckets_was_padded_then_and_is_read_off_again() -> None:
    points = (MixedPoint(64, 512, 200, 0, 9.0), MixedPoint(64, 512, 1000, 0, 26.0))
    buckets = Buckets((1, 16, 64, 128, 256, 512), (64, 128, 256, 512, 1024), (320, 1088))
    times = ProfileTimes(replace(small_profile(), mixed=points, buckets=buckets))
    for rows in (400, 512):  # in the bucket of 512 rows
        assert times.decode_s(rows, 400 * 340, 132, 0) * 1000 == pytest.approx(16.5, rel=1e-3)
    for p in points:
        assert times.mixed_s(64, 64 * 512, p.tokens, p.tokens**2 / 2, 132, 0) * 1000 == pytest.approx(p.ms)


def test_by_turns_what_was_measured_is_read_off_and_between_it_is_between() -> None:
    """Alone, 64 rows take 7.4 ms and 256 rows 10.6; 512 tokens 11.7 ms and 2048 tokens 47.1."""
    points = (
        profile.TurnsPoint(64, 1024, 512, step_ms=1.2 * 7.4, pass_ms=11.7),
        profile.TurnsPoint(256, 340, 512, step_ms=1.1 * 10.6, pass_ms=1.1 * 11.7),
        profile.TurnsPoint(256, 340, 2048, step_ms=10.6, pass_ms=1.2 * 47.1),
    )
    times = ProfileTimes(replace(small_profile(), turns=points))
    assert [times.step_by_turns(rows) for rows in (1, 64, 128, 256, 512)] == pytest.approx(
        [1.2, 1.2, 1.125, 1.05, 1.05]
    )
    assert [times.pass_by_turns(n) for n in (1, 512, 1024, 2048, 8192)] == pytest.approx([1.05, 1.05, 1.125, 1.2, 1.2])


Change = Callable[[dict[str, Any]], object]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda p: p.update(kind="else"), "not a profile of `semipd profile`"),
        (lambda p: p.update(format=2), "format: this version reads 1, not 2"),
        (lambda p: p.pop("gpu"), "gpu is missing"),
        (lambda p: p["gpu"].pop("sms"), "gpu: sms is missing"),
        (lambda p: p["gpu"].update(sms="many"), "gpu: sms: not of the expected type"),
        (lambda p: p["gpu"].update(sm=132), "gpu: sm: no such field"),
        (lambda p: p["model"].update(kv_token_bytes=0), "model: kv_token_bytes: must be above 0"),
        (lambda p: p["overheads"].update(arrive_s=-1.0), "overheads: arrive_s: must be 0 to 1 second"),
        (lambda p: p["decode"][1].update(sms=200), "decode[1]: sms: must be 1 to 132, not 200"),
        (lambda p: p["decode"][1].update(sms=132), "decode[1]: a second table of sms 132 and other_sms 0"),
        (lambda p: p["decode"][0]["points"][2].update(ms=0.0), "decode[0]: points[2]: ms: must be above 0"),
        (lambda p: p["decode"][0]["points"][1].update(rows=0), "decode[0]: points[1]: rows: must be above 0"),
        (lambda p: p["prefill"][0]["points"][0].update(tokens=128), "prefill[0]: points: one is there twice"),
        (lambda p: p["prefill"][0]["points"][0].update(start=-1), "prefill[0]: points: start: must be at least 0"),
        (lambda p: p["prefill"][0].update(points=[]), "prefill[0]: points: there are none"),
        (lambda p: p.update(decode=p["decode"][1:]), "there must be a table of all 132 SMs with other_sms 0"),
        (lambda p: p.update(prefill=p["prefill"][:1]), "there must be a table with other_sms above 0"),
        (
            lambda p: p["prefill"][0].update(points=[q for q in p["prefill"][0]["points"] if not q["start"]]),
            "there must be a point with a start above 0",
        ),
        (
            lambda p: p["decode"][0].update(points=[q for q in p["decode"][0]["points"] if q["context"] != 4096]),
            "one number of rows must be there at two contexts or more",
        ),
        (lambda p: p.update(mixed=[mixed_point(rows=0)]), "mixed: points[0]: rows: must be above 0"),
        (lambda p: p.update(mixed=[mixed_point(start=-1)]), "mixed: points: start: must be at least 0"),
        (lambda p: p.update(mixed=[mixed_point(), mixed_point(ms=2.0)]), "mixed: points: one is there twice"),
        (lambda p: p.update(mixed=[mixed_point(seconds=1)]), "mixed[0]: seconds: no such field"),
        (
            lambda p: p.update(buckets={"decode": [8, 4], "prefill": [], "mixed": []}),
            "buckets: decode: must be above 0",
        ),
        (lambda p: p["buckets"].update(mixed=[0]), "buckets: mixed: must be above 0"),
        (lambda p: p.update(turns=[turns_point(tokens=0)]), "turns: points[0]: tokens: must be above 0"),
        (
            lambda p: p.update(turns=[turns_point(), turns_point(rows=1, pass_ms=0.0)]),
            "turns: points[1]: pass_ms: must",
        ),
        (lambda p: p.update(turns=[turns_point(), turns_point(step_ms=2.0)]), "turns: points: one is there twice"),
        (lambda p: p.update(turns=[turns_point(ms=1.0)]), "turns[0]: ms: no such field"),
    ],
)
def test_a_broken_profile_is_refused_by_file_and_field(
    plain: dict[str, Any], tmp_path: Path, change: Change, said: str
) -> None:
    change(plain)
    file = tmp_path / "mine.json"
    file.write_text(json.dumps(plain))
    with pytest.raises(InputError, match="mine") as raised:
        read_profile(file)
    assert said in str(raised.value)


def test_an_unknown_profile_names_those_that_ship() -> None:
    with pytest.raises(InputError, match=SHIPPED):
        load_profile("nothing")
