"""benchmarks/batch_search.py with a device that has a cap and no memory."""

from __future__ import annotations

import sys
from collections.abc import Generator
from contextlib import contextmanager
from dataclasses import replace
from math import inf
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_model import TinyModel

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import batch_search
from benchmarks.batch_search import FITS, Search, limit_memory
from benchmarks.trainer import Workload
from benchmarks.variant_tables import Measured
from benchmarks.variants import PLAIN, Variant
from fxoffload.cli.byte_models import BUILDERS, Shape

SHAPE = Shape(1, 8, 1, 4, 4)
CAPS = [1.0, 0.5, 0.25]


class FakeDevice:
    """Bytes that torch's allocator may take beside what is live."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.allowed_bytes = inf
        self.highest_bytes = 0
        monkeypatch.setattr(batch_search, "limit_memory", self.limit)
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda: 1000)
        monkeypatch.setattr(torch.cuda, "reset_peak_memory_stats", lambda: None)
        monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda: 1000 + self.highest_bytes)

    @contextmanager
    def limit(self, device: torch.device, nbytes: float) -> Generator[None]:
        assert device.type == "cuda"
        self.allowed_bytes = nbytes
        yield
        self.allowed_bytes = inf

    def make_trainer(self, need_bytes: int) -> Any:
        def step() -> None:
            self.highest_bytes = need_bytes
            if need_bytes > self.allowed_bytes:
                raise torch.OutOfMemoryError(f"{need_bytes} of {self.allowed_bytes}")

        model = SimpleNamespace(zero_grad=lambda: None)
        tokens = SimpleNamespace(device=torch.device("cuda"))
        return SimpleNamespace(step=step, model=model, tokens=tokens)


@pytest.fixture
def device(monkeypatch: pytest.MonkeyPatch) -> FakeDevice:
    """What a batch of 1 needs: 120 bytes of the driver for a peak of 100, by moving half of it."""
    device = FakeDevice(monkeypatch)

    def measure_variant(workload: Workload, variant: Variant, plain_bytes: int | None) -> Any:
        batch = workload.shape.batch
        measured = Measured(variant.label, variant.kind, variant.share, peak_bytes=100 * batch)
        if variant.kind == "recompute":
            measured.refused = "does not fit: CUDA out of memory"
            return measured, None
        need_bytes = 120 * batch
        if variant.kind == "fxoffload":
            assert plain_bytes == 400
            need_bytes //= 2
        return measured, device.make_trainer(need_bytes)

    monkeypatch.setattr(batch_search, "measure_variant", measure_variant)
    return device


def test_a_step_must_run_where_there_is_no_more_memory(device: FakeDevice) -> None:
    search = Search(Workload("gpt", SHAPE, "cuda", {}), CAPS, inf)
    plain = search.measure(PLAIN, 4)
    assert (plain.need_bytes, plain.least_cap) == (480, 1.0)
    assert search.measure(PLAIN, 2).least_cap == 0.5
    assert search.measure(Variant("checkpoint"), 8).least_cap is None
    own = search.measure(Variant("fxoffload", 0.5), 4)
    assert (own.label, own.batch, own.least_cap) == ("fxoffload 0.5, batch 4", 4, 0.5)
    # Each budget is for its own cap, also where it would fit a tighter one.
    assert search.measure(Variant("fxoffload", 0.5), 2).least_cap == 0.5
    assert search.measure(Variant("fxoffload", 0.25), 4).least_cap is None
    refused = search.measure(Variant("recompute", 0.5), 4)
    assert refused.refused == "does not fit: CUDA out of memory"
    fitting = ["plain, batch 4", "plain, batch 2", own.label, "fxoffload 0.5, batch 2"]
    assert list(search.trainers) == fitting
    with search.limit(own.label):
        assert device.allowed_bytes == FITS * 0.5 * 480
    assert device.allowed_bytes == inf


def test_nothing_is_begun_without_time(device: FakeDevice) -> None:
    search = Search(Workload("gpt", SHAPE, "cuda", {}), CAPS, -inf)
    refused = search.measure(PLAIN, 4)
    assert (refused.label, refused.refused) == ("plain, batch 4", "no time left")
    assert search.plain is None


def test_the_allocator_is_held_to_a_cap(monkeypatch: pytest.MonkeyPatch) -> None:
    shares: list[float] = []
    for name, value in {"synchronize": None, "empty_cache": None, "memory_reserved": 300}.items():
        monkeypatch.setattr(torch.cuda, name, lambda value=value: value)
    total = SimpleNamespace(total_memory=1000)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: total)
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", shares.append)
    with pytest.raises(torch.OutOfMemoryError), limit_memory(torch.device("cuda"), 200):
        raise torch.OutOfMemoryError
    with limit_memory(torch.device("cuda"), inf):
        pass
    assert shares == [0.5, 1.0, 1.0, 1.0]
    with limit_memory(torch.device("cpu"), 0):
        pass
    assert len(shares) == 4


def test_models_share_parameters_that_no_update_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(BUILDERS, "gpt", TinyModel)
    workload = Workload("gpt", SHAPE, "cpu", {}).add_optimizer()
    (first, tokens), (second, _) = workload.make_inputs(), workload.make_inputs()
    before = {name: x.clone() for name, x in first.named_parameters()}
    second(tokens).backward()
    assert workload.update is not None
    workload.update()
    assert first is not second
    for name, x in first.named_parameters():
        assert x is dict(second.named_parameters())[name]
        assert torch.equal(x, before[name])
    # Ways to run the layers are those of one model.
    second.model.gradient_checkpointing_enable({"use_reentrant": False})
    assert first.model.options is None
    larger = replace(workload, shape=replace(SHAPE, batch=8))
    assert larger.make_inputs()[1].shape == (8, 4)
