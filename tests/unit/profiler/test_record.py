from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

import support
from semipd.core.clock import ManualClock
from semipd.core.config import MIXED_TOKENS
from semipd.core.errors import InputError, RunFailed
from semipd.profiler.measurements import (
    MOST_TOKENS,
    MOST_TURN_TOKENS,
    Alternating,
    Beside,
    Measurement,
    MixedPass,
    PassAlone,
    StepAlone,
    schedule,
)
from semipd.profiler.phase_process import PhaseProcess, TwoProcesses, open_both
from semipd.profiler.record import leave_for_servers, read_model, record, save
from semipd.profiler.recording import Recording, Unfit, carry_out
from semipd.profiles.cache import cache_file
from semipd.profiles.profile import Buckets, ModelShape, ProfiledGpu, read_profile
from semipd.sim.execution_times import ProfileTimes

SHAPE = ModelShape("Shape", "bfloat16", 128_256, 8192, 16 * 10**9, 131_072)
GPU = ProfiledGpu("GPU", 132, 139 << 30)
STAND_IN = "support.profiling_stand_in"
MODEL = Path("semipd/models/bundled")


class Fake:
    """Takes a second for each measurement; times from the sizes."""

    def __init__(self, clock: ManualClock) -> None:
        self._clock = clock
        self.unfit: type[Measurement] | None = None

    def _second(self, asked: Measurement) -> None:
        self._clock.advance(1.0)
        if self.unfit is not None and isinstance(asked, self.unfit):
            raise Unfit("too large")

    def step_alone(self, asked: StepAlone) -> float:
        self._second(asked)
        return 132 / asked.sms * (4 + 0.02 * asked.rows + 30e-6 * asked.rows * asked.context)

    def pass_alone(self, asked: PassAlone) -> float:
        self._second(asked)
        return 132 / asked.sms * (1 + asked.tokens * (0.023 + 1e-6 * asked.start))

    def mixed_pass(self, asked: MixedPass) -> float:
        self._second(asked)
        return 5 + 0.025 * (asked.rows + asked.tokens) + 1e-6 * asked.tokens * asked.start

    def beside(self, asked: Beside) -> tuple[float, float]:
        self._second(asked)
        return asked.rows * 0.3 + asked.decode_sms * 1e-3, asked.tokens * 0.05

    def alternating(self, asked: Alternating) -> tuple[float, float]:
        """Steps take a tenth more than alone, passes a twentieth."""
        self._second(asked)
        return 1.1 * (4 + 0.02 * asked.rows + 30e-6 * asked.rows * asked.context), 1.05 * (1 + asked.tokens * 0.023)


def recorded(
    seconds: float, *, quick: bool = False, unfit: type[Measurement] | None = None
) -> tuple[Recording, list[Measurement]]:
    clock = ManualClock()
    machine, recording, todo = Fake(clock), Recording(SHAPE, GPU), schedule(132, 8192, quick=quick)
    machine.unfit = unfit
    carry_out(todo, machine, recording, clock, seconds, lambda _asked, _so_far: None)
    return recording, todo


def test_the_plan_fits_the_device_and_has_nothing_twice() -> None:
    for quick in (False, True):
        todo = schedule(132, 8192, quick=quick)
        assert len(set(todo)) == len(todo)
        for asked in todo:
            match asked:
                case StepAlone(sms, rows, context):
                    assert sms <= 132
                    assert rows * context <= MOST_TOKENS
                case PassAlone(sms, tokens, start):
                    assert sms <= 132
                    assert tokens + start <= 8192
                case MixedPass(sms, rows, context, tokens, start):
                    assert sms == 132
                    assert rows * context <= MOST_TOKENS
                    assert 0 < tokens <= MIXED_TOKENS
                    assert tokens + start <= 8192
                case Alternating(rows, context, tokens):
                    assert rows * context <= MOST_TOKENS
                    assert 0 < tokens <= MOST_TURN_TOKENS
                case Beside(decode_sms, prefill_sms, _, _, _):
                    assert decode_sms + prefill_sms == 132 or decode_sms == 132
        assert max(asked.tokens for asked in todo if isinstance(asked, Alternating)) == MOST_TURN_TOKENS
    assert 2 * len(schedule(132, 8192, quick=True)) < 240 > len(schedule(132, 8192, quick=False)) * 1.5


def test_a_model_of_short_contexts_is_measured_within_them() -> None:
    for asked in schedule(132, 512, quick=False):
        match asked:
            case StepAlone(_, _, context):
                assert context <= 512
            case PassAlone(_, tokens, start) | MixedPass(_, _, _, tokens, start):
                assert tokens + start <= 512
            case Beside(_, _, _, context, tokens) | Alternating(_, context, tokens):
                assert max(context, tokens) <= 512


def test_a_whole_recording_is_a_profile_that_reads_its_points_off_again(tmp_path: Path) -> None:
    recording, todo = recorded(1e9)
    assert recording.done == len(todo)
    out = tmp_path / "mine.json"
    assert save(recording, out)
    profile = read_profile(out)
    assert profile.source.recorded
    times = ProfileTimes(profile)
    found = {(p.rows, p.context, p.tokens, p.start): p.ms for p in profile.mixed}
    assert found[64, 512, 512, 3584] == pytest.approx(5 + 0.025 * 576 + 1e-6 * 512 * 3584)
    assert len(found) == sum(isinstance(asked, MixedPass) for asked in todo)
    assert times.decode_s(64, 64 * 1024, 132, 0) * 1e3 == pytest.approx(4 + 0.02 * 64 + 30e-6 * 65536, rel=1e-4)
    assert times.decode_s(64, 64 * 1024, 32, 100) * 1e3 == pytest.approx(64 * 0.3 + 0.032, rel=1e-4)
    assert times.prefill_s(2048, 2048**2 / 2, 100, 32) * 1e3 == pytest.approx(2048 * 0.05, rel=1e-4)
    assert list(tmp_path.iterdir()) == [out]
    assert len(profile.turns) == sum(isinstance(asked, Alternating) for asked in todo)
    for rows in (16, 64, 100, 512):
        assert times.step_by_turns(rows) == pytest.approx(1.1, rel=1e-3)
    for tokens in (16, 256, 700, 2048):
        assert times.pass_by_turns(tokens) == pytest.approx(1.05, rel=1e-3)


def test_what_is_known_early_is_enough_for_a_profile() -> None:
    """A recording that is cut short after a dozen of measurements is still worth a file."""
    recording, _ = recorded(11.0)
    assert recording.profile() is not None
    assert "for want of time" in recording.left_out[-1]


def test_too_little_is_no_profile(tmp_path: Path) -> None:
    recording, _ = recorded(5.0)
    assert not save(recording, tmp_path / "mine.json")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("quick", [False, True])
def test_mixed_passes_are_known_before_the_last_pairs_side_by_side(quick: bool) -> None:
    """The recording may be cut short: each kind has its most telling points by then."""
    todo = schedule(132, 8192, quick=quick)
    kinds = [type(asked) for asked in todo]
    half = kinds[: len(kinds) // 2]
    assert half.count(MixedPass) > kinds.count(MixedPass) / 2
    assert half.count(Beside) > kinds.count(Beside) / 3
    assert half.count(Alternating) == kinds.count(Alternating)


def test_a_recording_without_mixed_passes_or_turns_is_a_profile_all_the_same(tmp_path: Path) -> None:
    out = tmp_path / "mine.json"
    recording, _ = recorded(1e9, unfit=MixedPass)
    assert save(recording, out)
    assert read_profile(out).mixed == ()
    recording, _ = recorded(1e9, unfit=Alternating)
    assert save(recording, out)
    assert read_profile(out).turns == ()


def test_what_does_not_fit_is_left_out_and_said() -> None:
    recording, todo = recorded(1e9, unfit=Beside)
    assert recording.done + len(recording.left_out) == len(todo)
    assert recording.profile() is None  # nothing side by side
    assert "too large" in recording.left_out[0]


@pytest.fixture
def processes() -> Iterator[tuple[PhaseProcess, PhaseProcess]]:
    environment = {"PYTHONPATH": str(Path(next(iter(support.__path__))).parent)}
    with ExitStack() as stack:
        one, two = (stack.enter_context(PhaseProcess(role, environment, STAND_IN)) for role in ("decode", "prefill"))
        yield one, two


def test_two_processes_are_told_what_to_measure_and_begin_together(
    processes: tuple[PhaseProcess, PhaseProcess],
) -> None:
    decode, prefill = processes
    assert open_both(decode, prefill, {}, "bfloat16", 8192) == 132
    machine = TwoProcesses(decode, prefill)
    assert machine.step_alone(StepAlone(66, 64, 1000)) == pytest.approx(2 * (4 + 64 * 0.05))
    assert machine.pass_alone(PassAlone(132, 1000, 0)) == pytest.approx(24.0)
    assert machine.mixed_pass(MixedPass(132, 64, 1000, 936, 500)) == pytest.approx(30.5)
    assert machine.alternating(Alternating(64, 1000, 500)) == pytest.approx((128.0, 1050.0))
    assert machine.beside(Beside(66, 66, 64, 1000, 1000)) == pytest.approx((4 * (4 + 64 * 0.05), 4 * 24.0))
    assert machine.buckets() == Buckets((64, 128), (512, 1024), (256,))


def test_an_error_of_one_measurement_leaves_the_others_their_turn(processes: tuple[PhaseProcess, PhaseProcess]) -> None:
    machine = TwoProcesses(*processes)
    with pytest.raises(Unfit, match="unlucky"):
        machine.step_alone(StepAlone(132, 13, 10))
    with pytest.raises(Unfit, match="unlucky"):
        machine.beside(Beside(66, 66, 64, 1000, 13))
    assert machine.pass_alone(PassAlone(132, 1000, 0)) == pytest.approx(24.0)
    assert machine.step_alone(StepAlone(132, 1, 0)) == pytest.approx(4.02)


def test_a_process_that_ends_is_told_by_name_and_code(processes: tuple[PhaseProcess, PhaseProcess]) -> None:
    with pytest.raises(RunFailed, match="the decode process ended with code 3"):
        TwoProcesses(*processes).step_alone(StepAlone(132, 666, 10))


def test_the_shape_is_read_from_config_json() -> None:
    config, shape = read_model(MODEL, "bfloat16")
    assert shape.vocab_size == config["vocab_size"]
    assert shape.weight_bytes > 0
    assert shape.kv_token_bytes > 0


def test_a_machine_without_a_gpu_says_so(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="cuda"):
        record(MODEL, tmp_path / "out.json", quick=True, seconds=10, dtype="bfloat16", mps="own")
    with pytest.raises(InputError, match="--dtype"):
        record(MODEL, tmp_path / "out.json", quick=True, seconds=10, dtype="int3", mps="own")
    with pytest.raises(InputError, match=r"config\.json"):
        record(tmp_path, tmp_path / "out.json", quick=True, seconds=10, dtype="bfloat16", mps="own")
    assert not (tmp_path / "out.json").exists()


def test_a_whole_recording_is_left_where_the_next_start_of_a_server_finds_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    recording, _ = recorded(1e9)
    out = tmp_path / "mine.json"
    assert save(recording, out) == out
    leave_for_servers(recording, out)
    file = cache_file(recording.gpu, recording.model)
    assert read_profile(file) == read_profile(out)
    assert str(file) in capsys.readouterr().out


def test_without_a_file_to_write_the_profile_grows_in_the_cache(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    early, _ = recorded(11.0)
    file = save(early, None)
    assert file == cache_file(early.gpu, early.model)
    first = read_profile(file)
    whole, _ = recorded(1e9)
    assert save(whole, None) == file
    assert len(read_profile(file).decode) > len(first.decode)


def test_a_cache_that_can_not_be_written_to_is_a_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    recording, _ = recorded(1e9)
    leave_for_servers(recording, tmp_path / "mine.json")
    said = capsys.readouterr()
    assert "won't find the profile" in said.err
    assert said.out == ""
