"""Kernels run here in Triton's interpreter, on the CPU: slow, and the same code. A whole device can be played, too."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"

pytest.importorskip("triton")
interpreter = pytest.importorskip("triton.runtime.interpreter")

# Kernels are made when they are imported: only now.
from semipd.core.model import ModelConfig, parse_model_config  # noqa: E402
from semipd.engine.cuda import engine as cuda_engine  # noqa: E402
from semipd.engine.cuda import graphs as cuda_graphs  # noqa: E402
from semipd.engine.engine import CpuEngine  # noqa: E402
from semipd.engine.layout import pool_shape, weight_layout  # noqa: E402
from semipd.engine.loading import fill_dummy  # noqa: E402
from support.families import random_model  # noqa: E402

PAGES = 80

_patch_tensor = interpreter._patch_lang_tensor


def _patch_tensor_for_new_numpy(tensor: Any, scope: Any) -> None:
    """The interpreter of Triton 3.6 makes an int of an array of one element, which NumPy 2.4 refuses."""
    _patch_tensor(tensor, scope)
    scope.set_attr(tensor, "__index__", lambda self: int(self.handle.data.reshape(-1)[0]))


interpreter._patch_lang_tensor = _patch_tensor_for_new_numpy


@pytest.fixture
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


class Event:
    def __init__(self, **_: object) -> None:
        self._at_s = 0.0

    def record(self, *_: object) -> None:
        self._at_s = time.perf_counter()

    def query(self) -> bool:
        return True

    def elapsed_time(self, later: Event) -> float:
        return 1e3 * (later._at_s - self._at_s)


class Stream:
    def synchronize(self) -> None: ...
    def wait_event(self, _: Event) -> None: ...


class OneStream:
    """Streams of a device that can't be divided."""

    all = current = 4

    def __init__(self, *_: object, **__: object) -> None:
        self.stream = Stream()

    def choices(self) -> tuple[int, ...]:
        return (self.all,)

    def nearest(self, sms: int) -> int:
        return self.all

    def use(self, sms: int) -> None: ...

    @contextlib.contextmanager
    def on(self) -> Iterator[None]:
        yield


class PlayedGraph:
    """Does again what was recorded; as with a real one, nothing is done while it is."""

    def __init__(self, work: Callable[[], None]) -> None:
        self.replay = work


@pytest.fixture
def played_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its time: every stream is in order and every event is there at once. So what is computed, and in which steps, can
    be shown here, not that streams are ordered; `tests/gpu` is for that."""
    if torch.cuda.is_available():
        pytest.skip("tests/gpu has the real thing")
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "stream", lambda _: contextlib.nullcontext())
    monkeypatch.setattr(torch.cuda, "synchronize", lambda *_: None)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: (9, 0))
    monkeypatch.setattr(cuda_engine, "Streams", OneStream)
    monkeypatch.setattr(cuda_graphs, "record_graph", PlayedGraph)


def _small(family: str) -> tuple[ModelConfig, dict[str, torch.Tensor]]:
    small = random_model(family)
    model = parse_model_config(small.config.to_dict() | {"architectures": [type(small).__name__]})
    weights = {spec.name: torch.empty(spec.shape) for spec in weight_layout(model, "float32")}
    fill_dummy(model, weights, 0)
    return model, weights


@pytest.fixture
def gpu_engine(played_device: None) -> Callable[[str], tuple[cuda_engine.CudaEngine, torch.Tensor]]:
    """Makes a GPU's engine of a family, always with the same weights, and its pool, full of NaN."""

    def make(family: str) -> tuple[cuda_engine.CudaEngine, torch.Tensor]:
        model, weights = _small(family)
        pool = torch.full(pool_shape(model, PAGES), torch.nan)
        engine = cuda_engine.CudaEngine(model, weights, pool, max_batch_tokens=64, max_running=7, max_context=160)
        return engine, pool

    return make


@pytest.fixture
def engines(
    gpu_engine: Callable[[str], tuple[cuda_engine.CudaEngine, torch.Tensor]],
) -> Callable[[str], tuple[CpuEngine, cuda_engine.CudaEngine]]:
    """Makes a CPU's and a GPU's engine of a family, with the same weights; the GPU's pool is full of NaN."""

    def make(family: str) -> tuple[CpuEngine, cuda_engine.CudaEngine]:
        model, weights = _small(family)
        return CpuEngine(model, weights, torch.zeros(pool_shape(model, PAGES))), gpu_engine(family)[0]

    return make
