"""A small model that trains with a real spill file, and the expected results of its steps."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from waiting import wait_for_writes

import fxoffload
from fxoffload.runtime import stores
from fxoffload.runtime.store.store import OffloadStore

WIDTH = 64
BATCH = 512
VALUE_BYTES = BATCH * WIDTH * 4


@dataclass
class Job:
    """A compiled model, its store, and the results of a step without a fault."""

    model: nn.Module
    compiled: Callable[[Tensor], Tensor]
    x: Tensor
    store: OffloadStore
    gradients: list[Tensor]
    calls: int  # Writes of a step, and reads too.

    def forward(self) -> Tensor:
        """Run the forward and wait for all writes, so that the backward reads everything."""
        self.model.zero_grad()
        loss = self.compiled(self.x).sum()
        wait_for_writes()
        return loss

    def begin(self) -> Tensor:
        """Reset the statistics, then run `forward`."""
        fxoffload.reset_statistics()
        return self.forward()

    def step(self) -> fxoffload.StoreStatistics:
        """Run a step, check its gradients bit by bit, and return its statistics."""
        self.begin().backward()
        self.check_gradients()
        gc.collect()
        return fxoffload.statistics()

    def overfill(self) -> None:
        """Run forwards until a write fails; then run their backwards and check the gradients."""
        fxoffload.reset_statistics()
        losses: list[Tensor] = []
        while not fxoffload.statistics().write_errors:
            assert len(losses) < 1000, "there is room for everything"
            losses.append(self.forward())
        while losses:
            self.model.zero_grad()
            losses.pop().backward()
            self.check_gradients()

    def check_gradients(self) -> None:
        for parameter, expected in zip(self.model.parameters(), self.gradients, strict=True):
            assert parameter.grad is not None
            assert torch.equal(parameter.grad, expected)


@contextmanager
def open_job(directory: Path, *, batch: int = BATCH, **options: Any) -> Iterator[Job]:
    """Compile a model with its spill file in `directory` and run a step; closes the store."""
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    model = nn.Sequential(*layers)
    torch._dynamo.reset()
    options = {
        "compiler": "eager", "min_bytes": 1, "memory_budget": "min",
        "directory": directory, "ioengine": "posix", **options,
    }  # fmt: skip
    x = torch.randn(batch, WIDTH)
    reference = fxoffload.compile(model, enabled=False, **options)
    reference(x).sum().backward()
    gradients = [
        parameter.grad.clone() for parameter in model.parameters() if parameter.grad is not None
    ]
    known = set(stores._stores)
    compiled = fxoffload.compile(model, **options)
    (key,) = set(stores._stores) - known
    job = Job(model, compiled, x, stores._stores[key], gradients, 0)
    try:
        done = job.step()
        assert done.offloaded_bytes == done.written_bytes == done.read_bytes > 3 * x.nbytes
        job.calls = done.offloads
        yield job
    finally:
        stores._stores.pop(key).close()
