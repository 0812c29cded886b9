"""The probe of a device's speed: it measures real work, once for each kind of work."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.overrides import TorchFunctionMode

from fxoffload.runtime.measurement import speed
from fxoffload.runtime.measurement.bandwidth import Bandwidth
from fxoffload.runtime.measurement.speed import Speed, measure_exchange, measure_speed, recall_speed

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))


def test_seconds_become_speeds(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each reading of the clock is half a second after the one before."""
    monkeypatch.setattr(speed, "_MATRIX_SIZE", {"cpu": 100})
    monkeypatch.setattr(speed, "_COPY_BYTES", {"cpu": 4000})
    clock = iter(range(1000))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock) / 2)
    # 2 x 100^3 operations, and 4000 bytes there and back, in half a second each.
    assert measure_speed(CPU, torch.float32) == Speed(4e6, 1.6e4)


def test_seconds_become_bytes_per_second(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_EXCHANGE_BYTES", 1000)
    clock = iter(range(1000))
    monkeypatch.setattr(speed.time, "perf_counter", lambda: next(clock) / 4)
    assert measure_exchange(CPU) == Bandwidth(4e3, 4e3)


def test_the_least_of_the_timed_runs_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0
    runs = iter([0.001, 0.03, 0.02, 0.04, 0.06])  # The first one warms up.

    def run() -> None:
        nonlocal now
        now += next(runs)

    monkeypatch.setattr(speed.time, "perf_counter", lambda: now)
    assert speed._find_least_seconds(run, CPU) == pytest.approx(0.02)
    assert list(runs) == [], "it runs until PROBE_SECONDS have passed"


def test_a_run_takes_until_the_gpu_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 0.0

    def advance(seconds: float) -> None:
        nonlocal now
        now += seconds

    monkeypatch.setattr(speed.time, "perf_counter", lambda: now)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda _: advance(0.25))
    assert speed._find_least_seconds(lambda: advance(0.125), torch.device("cuda", 0)) == 0.375


def test_the_work_is_of_the_size_that_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_find_least_seconds", lambda run, _: float(run().nbytes))
    assert speed._measure_copies(4000, CPU) == 2 * 4000 / 4000
    monkeypatch.setattr(speed, "_find_least_seconds", lambda run, _: float(len(run().unique())))
    assert speed._measure_products(8, CPU, torch.float32) == 2 * 8**3 / 8**2, "random numbers"


def test_speeds_have_two_digits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_measure_products", lambda *_: 1234.0)
    monkeypatch.setattr(speed, "_measure_copies", lambda *_: 5678.0)
    assert measure_speed(CPU, torch.float32) == Speed(1200.0, 5600.0)


def test_writes_go_to_the_host_and_reads_come_from_there(monkeypatch: pytest.MonkeyPatch) -> None:
    host = torch.zeros(1000, dtype=torch.uint8)
    seconds = {True: 0.5, False: 0.25}  # By whether the copy goes to the host.
    monkeypatch.setattr(speed, "_EXCHANGE_BYTES", 1000)
    monkeypatch.setattr(speed, "_make_host", lambda *_, **__: host)
    monkeypatch.setattr(speed, "_find_least_seconds", lambda run, _: seconds[run() is host])
    assert measure_exchange(CPU) == Bandwidth(2e3, 4e3)


def test_speeds_are_kept_for_what_may_change_them(monkeypatch: pytest.MonkeyPatch) -> None:
    keys: list[str] = []

    def recall(key: str, _: object) -> tuple[float, float]:
        keys.append(key)
        return 1.0, 1.0

    gpu, version = torch.device("cuda", 0), torch.__version__
    monkeypatch.setattr(speed, "recall_pair", recall)
    monkeypatch.setattr(speed.platform, "node", lambda: "machine")
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda _: "H200")
    recall_speed(gpu, torch.float32)
    recall_speed(gpu, torch.bfloat16)
    recall_speed(CPU, torch.float32)
    speed.recall_exchange(gpu)
    cpu = f"{os.cpu_count()} cores, {torch.get_num_threads()} threads"
    precision = f"{torch.get_float32_matmul_precision()} precision"
    assert keys == [
        f"machine cuda H200 torch.float32 torch {version} {precision}",
        f"machine cuda H200 torch.bfloat16 torch {version}",
        f"machine cpu {cpu} torch.float32 torch {version}",
        f"machine cuda H200 exchange torch {version}",
    ]


def test_the_generator_of_the_program_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speed, "_MATRIX_SIZE", {"cpu": 100})
    torch.manual_seed(0)
    expected = torch.rand(3)
    torch.manual_seed(0)
    measure_speed(CPU, torch.float32)
    assert torch.equal(torch.rand(3), expected)


def test_a_machine_is_within_reason() -> None:
    found = measure_speed(CPU, torch.float32)
    assert 1e8 < found.flops_per_second < 1e15
    assert 1e8 < found.memory_bytes_per_second < 1e13


def test_measured_once_for_each_kind_of_work(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[torch.dtype] = []

    def measure(_: torch.device, dtype: torch.dtype) -> Speed:
        calls.append(dtype)
        return Speed(1e9 * len(calls), 1e9)

    monkeypatch.setattr(speed, "measure_speed", measure)
    first = recall_speed(CPU, torch.float32)
    assert recall_speed(CPU, torch.float32) == first
    assert recall_speed(CPU, torch.bfloat16) != first
    threads = torch.get_num_threads()
    torch.set_num_threads(threads + 1)
    try:
        recall_speed(CPU, torch.float32)
    finally:
        torch.set_num_threads(threads)
    assert calls == [torch.float32, torch.bfloat16, torch.float32]


def test_no_tensor_of_a_probe_is_larger_than_its_matrix(monkeypatch: pytest.MonkeyPatch) -> None:
    """It runs at the first compilation, when a model may nearly fill the device already."""
    largest = 0

    class Watch(TorchFunctionMode):
        def __torch_function__(
            self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
        ) -> Any:
            nonlocal largest
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                largest = max(largest, found.nbytes)
            return found

    # Products of bfloat16 are slow on some CPUs.
    monkeypatch.setattr(speed, "_MATRIX_SIZE", {"cpu": 512})
    monkeypatch.setattr(speed, "_ROWS", 128)
    monkeypatch.setattr(speed, "_COPY_BYTES", {"cpu": 4000})
    with Watch():
        measure_speed(CPU, torch.bfloat16)
    assert largest == 2 * 512**2


def test_a_full_device_is_probed_with_less(monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[int] = []

    def measure(size: int) -> float:
        tried.append(size)
        if size > 1000:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 3.0

    assert speed._with_less_memory(4096, measure) == 3.0
    assert tried == [4096, 2048, 1024, 512]

    def fail(size: int) -> float:
        tried.append(size)
        raise torch.OutOfMemoryError("CUDA out of memory")

    tried.clear()
    with pytest.raises(torch.OutOfMemoryError):
        speed._with_less_memory(4096, fail)
    assert tried == [4096, 2048, 1024, 512, 256], "what is smaller would measure overhead"


def test_refused_pinning_measures_pageable_memory(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    zeros = torch.zeros

    def refuse(*args: Any, pin_memory: bool = False, **kwargs: Any) -> torch.Tensor:
        if pin_memory:
            raise RuntimeError("CUDA error: out of memory")
        return zeros(*args, **kwargs)

    monkeypatch.setattr(torch, "zeros", refuse)
    assert speed._make_host(1000, pinned=True).nbytes == 1000
    assert "pinning is refused: CUDA error" in caplog.text
