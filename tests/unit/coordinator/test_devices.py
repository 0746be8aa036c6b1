"""Tests which device, MPS and partition are chosen, and the reasons given."""

from __future__ import annotations

import ctypes

import pytest

from semipd.coordinator.devices import Choice, ChosenDevice, choose_backend, choose_device, choose_mps, missing_packages
from semipd.core.errors import ConfigError
from semipd.memory.nvml import Driver, Gpu, Nvml, survey_driver, visible

H200 = Gpu("NVIDIA H200", 141 * 2**30, (9, 0), "GPU-aaaa-1")
V100 = Gpu("Tesla V100", 16 * 2**30, (7, 0), "GPU-bbbb-2")
ONE = Driver("580.1", (13, 0), (H200,))
NONE = Driver(None, None, ())
CPU = ChosenDevice("cpu", "asked for")
CUDA = ChosenDevice("cuda", "there is a GPU", H200, (13, 0))
OWN = Choice("own", "it is there")
OFF = Choice("off", "it is not there", degraded=True)
CONTROL = "/usr/bin/nvidia-cuda-mps-control"


@pytest.fixture(autouse=True)
def nothing_is_hidden(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


class FakeNvml(Nvml):
    """One H200, as the driver would say it."""

    def __init__(self) -> None: ...

    def call(self, name: str, *arguments: object) -> None:
        numbers: dict[str, tuple[int, ...]] = {
            "nvmlSystemGetCudaDriverVersion_v2": (13000,),
            "nvmlDeviceGetCount_v2": (1,),
            "nvmlDeviceGetCudaComputeCapability": (9, 0),
        }
        texts = {"nvmlSystemGetDriverVersion": "580.1", "nvmlDeviceGetName": "NVIDIA H200"}
        texts["nvmlDeviceGetUUID"] = "GPU-aaaa-1"
        targets = [a for a in arguments if not isinstance(a, int | ctypes.c_void_p)]
        if name in texts:
            targets[0].value = texts[name].encode()  # type: ignore[attr-defined]
        for target, number in zip(targets, numbers.get(name, ()), strict=False):
            target._obj.value = number  # type: ignore[attr-defined]
        if name == "nvmlDeviceGetMemoryInfo":
            targets[0]._obj.total = H200.memory_bytes  # type: ignore[attr-defined]


def test_the_driver_is_asked_without_opening_the_device() -> None:
    assert survey_driver(FakeNvml) == ONE


def test_auto_takes_the_gpu_where_everything_is_there() -> None:
    device = choose_device("auto", ONE, {})
    assert (device.kind, device.gpu, device.cuda, device.pin) == ("cuda", H200, (13, 0), "")


@pytest.mark.parametrize(
    ("driver", "missing", "setting", "why"),
    [
        (NONE, {}, None, "no NVIDIA GPU"),
        (Driver("580.1", None, (), "version mismatch"), {}, None, "version mismatch"),
        (Driver("580.1", (13, 0), (V100,)), {}, None, "compute capability 7.0"),
        (ONE, {"cupy": "pip install 'semipd[cuda]'"}, None, "cupy; pip install 'semipd.cuda.'"),
        (ONE, {}, "", "hides every GPU"),
        (ONE, {}, "-1", "hides every GPU"),
    ],
)
def test_what_is_missing_means_the_cpu_or_where_cuda_is_asked_for_a_refusal_that_names_it(
    driver: Driver, missing: dict[str, str], setting: str | None, why: str
) -> None:
    assert choose_device("auto", driver, missing, setting).kind == "cpu"
    with pytest.raises(ConfigError, match=f"--device cuda: .*{why}"):
        choose_device("cuda", driver, missing, setting)


def test_the_cpu_is_not_argued_with() -> None:
    assert choose_device("cpu", ONE, {}).kind == "cpu"


def test_this_environment_lacks_what_it_lacks() -> None:
    assert set(missing_packages()) <= {"cupy", "cuda-bindings", "triton", "a CUDA build of torch"}


def test_visible_devices_are_as_cuda_reads_them() -> None:
    both = (H200, V100)
    assert visible(both, None) == both
    assert visible(both, "1") == (V100,)
    assert visible(both, "1,0") == (V100, H200)
    assert visible(both, "GPU-bbbb") == (V100,)
    assert visible(both, "0,7,1") == (H200,), "the first that isn't there hides the rest"
    assert visible(both, "") == ()


def test_among_several_gpus_all_processes_are_told_the_same_one() -> None:
    assert choose_device("auto", Driver("580.1", (13, 0), (V100, H200)), {}, "1").pin == "GPU-aaaa-1"


@pytest.mark.parametrize(
    ("asked", "program", "kind"),
    [("auto", CONTROL, "own"), ("auto", None, "off"), ("own", CONTROL, "own"), ("off", CONTROL, "off")],
)
def test_mps_is_our_own_where_it_can_be(asked: str, program: str | None, kind: str) -> None:
    chosen = choose_mps(asked, CUDA, program, None)
    assert (chosen.name, chosen.degraded) == (kind, kind == "off")


def test_mps_that_cannot_be_had_is_refused() -> None:
    with pytest.raises(ConfigError, match="--mps own"):
        choose_mps("own", CUDA, None, None)
    with pytest.raises(ConfigError, match="--mps adopt: CUDA_MPS_PIPE_DIRECTORY"):
        choose_mps("adopt", CUDA, CONTROL, None)
    assert choose_mps("adopt", CUDA, None, "/tmp/mps").name == "adopt"
    assert choose_mps("own", CPU, None, None) == Choice("off", "only a GPU has it")


@pytest.mark.parametrize(
    ("asked", "cpus", "chosen"),
    [("auto", 2, "cores"), ("auto", 1, "none"), ("none", 8, "none"), ("cores", 2, "cores")],
)
def test_on_a_cpu_auto_divides_what_can_be_divided(asked: str, cpus: int, chosen: str) -> None:
    assert choose_backend(asked, CPU, OFF, range(cpus)).name == chosen


@pytest.mark.parametrize(("asked", "cpus"), [("cores", 1), ("green", 8), ("mps", 8)])
def test_what_a_cpu_cannot_have_is_refused_by_the_options_name(asked: str, cpus: int) -> None:
    with pytest.raises(ConfigError, match=f"--partition {asked}"):
        choose_backend(asked, CPU, OFF, range(cpus))


OLD = ChosenDevice("cuda", "there is a GPU", H200, (12, 3))


@pytest.mark.parametrize(
    ("asked", "device", "mps", "chosen", "less"),
    [
        ("auto", CUDA, OWN, "green", False),
        ("auto", OLD, OWN, "mps", True),
        ("auto", CUDA, OFF, "none", True),
        ("green", CUDA, OWN, "green", False),
        ("mps", OLD, OWN, "mps", False),
        ("none", CUDA, OWN, "none", False),
    ],
)
def test_on_a_gpu_green_comes_first(asked: str, device: ChosenDevice, mps: Choice, chosen: str, less: bool) -> None:
    found = choose_backend(asked, device, mps, range(8))
    assert (found.name, found.degraded) == (chosen, less)


@pytest.mark.parametrize(
    ("asked", "device", "mps", "why"),
    [
        ("green", CUDA, OFF, "take turns"),
        ("mps", CUDA, OFF, "take turns"),
        ("green", OLD, OWN, "12.3"),
        ("cores", CUDA, OWN, "computes on a GPU"),
    ],
)
def test_what_a_gpu_cannot_have_is_refused_by_the_options_name(
    asked: str, device: ChosenDevice, mps: Choice, why: str
) -> None:
    with pytest.raises(ConfigError, match=f"--partition {asked}: .*{why}"):
        choose_backend(asked, device, mps, range(8))
