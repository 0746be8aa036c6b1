"""Pictures come out as PNG files of the promised width, also from reports that lack some figures."""

from __future__ import annotations

import struct
import sys
from pathlib import Path

import pytest

from semipd.bench.drawing.plots import (
    Curve,
    GapCurve,
    RatePoint,
    ServerMoment,
    draw_comparison,
    draw_gaps_over_time,
    draw_interference,
    draw_rates,
    draw_timeline,
    rounded,
    tail,
)
from semipd.bench.errors import InputError
from semipd.bench.scoring.compare import ComparedMetric
from semipd.bench.scoring.score import Distribution, distribution

SEEN = Distribution(count=100, mean=0.06, p50=0.05, p90=0.1, p99=0.2, max=0.3)


def size(png: Path) -> tuple[int, int]:
    """Width and height, from the header."""
    header = png.read_bytes()[:24]
    assert header[:8] == b"\x89PNG\r\n\x1a\n"
    width, height = struct.unpack(">II", header[16:24])
    return width, height


def gaps(label: str, *seconds: float) -> GapCurve:
    spread = distribution(seconds)
    assert spread is not None
    return GapCurve(label, seconds, spread)


def test_several_systems_over_rate_and_one_that_answered_nothing(tmp_path: Path) -> None:
    points = (RatePoint(1.0, SEEN, SEEN, 1.0, 1.0, (0.9, 1.0)), RatePoint(2.0, None, None, 0.0, 0.0))
    draw_rates(tmp_path / "rates.png", [Curve("ours", points), Curve("theirs", points[:1])], "mixed")
    assert size(tmp_path / "rates.png") == (1200, 900)


def test_a_timeline(tmp_path: Path) -> None:
    moments = [ServerMoment(at, 3, 1, 20, 0.4, 60, 40) for at in (0.0, 0.5, 1.0)]
    draw_timeline(tmp_path / "time.png", moments, 0.8, "mixed at 8 requests/s")
    assert size(tmp_path / "time.png") == (1200, 900)


def test_a_timeline_without_samples_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no samples"):
        draw_timeline(tmp_path / "time.png", [], 10.0, "")
    assert not list(tmp_path.iterdir())


def test_a_comparison_where_one_report_lacks_a_metric_and_the_base_is_zero(tmp_path: Path) -> None:
    metrics = [ComparedMetric("queue p90", "ms", (3.0, None)), ComparedMetric("refused", "requests", (0.0, 4.0))]
    draw_comparison(tmp_path / "compared.png", ["A", "B"], metrics, "A and B")
    assert size(tmp_path / "compared.png") == (1200, 420)


def test_interference(tmp_path: Path) -> None:
    halves = [gaps("alone", 0.02, 0.021, 0.02), gaps("with prompts", 0.02, 0.3)]
    draw_interference(tmp_path / "gaps.png", halves, "64 decoding")
    assert size(tmp_path / "gaps.png") == (1200, 560)


def test_the_tail_keeps_all_of_the_longest_and_says_how_many_are_as_long() -> None:
    milliseconds, shares = tail([0.004, 0.001, 0.003, 0.002])
    assert milliseconds == pytest.approx([1, 2, 3, 4])
    assert shares == pytest.approx([1.0, 0.75, 0.5, 0.25])
    milliseconds, shares = tail([i / 1000 for i in range(100_000)])
    assert milliseconds[0] == 0
    assert milliseconds[-5000:] == pytest.approx(range(95_000, 100_000))
    assert len(milliseconds) < 11_000
    assert shares[-1] == pytest.approx(1e-5)


def test_numbers_are_written_without_powers_of_ten() -> None:
    assert [rounded(v) for v in (0.01234, 12.34, 3230.4)] == ["0.0123", "12.3", "3,230"]


def test_without_matplotlib_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(InputError, match=r"pip install 'semipd\[bench\]'"):
        draw_interference(tmp_path / "gaps.png", [gaps("alone", 0.02)], "")


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"missing/gaps\.png"):
        draw_interference(tmp_path / "missing" / "gaps.png", [gaps("alone", 0.02)], "")


def test_gaps_over_time_with_what_happened(tmp_path: Path) -> None:
    seen = [(i / 1000, 0.02 if i % 500 else 0.9) for i in range(12_000)]
    draw_gaps_over_time(tmp_path / "gaps.png", seen, [(4.0, "decode worker killed")], "20 requests/s")
    assert size(tmp_path / "gaps.png") == (1200, 560)
    assert (tmp_path / "gaps.png").stat().st_size < 200_000


def test_no_gaps_at_all_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no gaps"):
        draw_gaps_over_time(tmp_path / "gaps.png", [], [], "")
