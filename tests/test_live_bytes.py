"""Live bytes of a device."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from fxoffload.runtime.engines.memory_limit import find_memory_limit
from fxoffload.runtime.program.live_bytes import (
    count_foreign_bytes,
    count_live_bytes,
    find_device_bytes,
    find_peak_bytes,
    restart_peak,
)

CPU = torch.device("cpu")


def test_a_tensor_is_live_until_it_dies() -> None:
    before = count_live_bytes(CPU)
    assert before is not None
    x = torch.empty(8 * 2**20, dtype=torch.uint8)
    during = count_live_bytes(CPU)
    assert during is not None
    assert abs(during - before - x.nbytes) < 2**16
    del x
    after = count_live_bytes(CPU)
    assert after is not None
    assert abs(after - before) < 2**16


def test_nobody_counts_other_devices() -> None:
    assert count_live_bytes(torch.device("meta")) is None


def test_the_peak_of_a_gpu_since_it_was_restarted(monkeypatch: pytest.MonkeyPatch) -> None:
    gpu, peaks = torch.device("cuda", 1), {torch.device("cuda", 1): 700}
    monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda device: peaks.pop(device))
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda device: peaks.get(device, 300))
    assert find_peak_bytes(gpu) == 700
    restart_peak(gpu)
    assert find_peak_bytes(gpu) == 300
    restart_peak(CPU)
    assert find_peak_bytes(CPU) is None


def test_all_memory_of_a_cpu_is_what_the_process_may_use() -> None:
    cpu = torch.device("cpu")
    assert find_device_bytes(cpu) == find_memory_limit()
    assert count_foreign_bytes(cpu) == 0


def test_other_programs_hold_memory_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is neither free nor reserved by torch's allocator."""
    gpu = torch.device("cuda", 0)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (300, 1000))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda device: 450)
    assert count_foreign_bytes(gpu) == 250
    whole = SimpleNamespace(total_memory=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: whole)
    assert find_device_bytes(gpu) == 1000
