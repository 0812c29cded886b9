"""Loss and gradients are bitwise equal to those with nothing moved, and values did move."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import torch._inductor.config
from torch import Tensor, nn
from waiting import wait_for_writes
from zoo import CASES

import fxoffload

pytestmark = pytest.mark.usefixtures("one_thread")

NUM_STEPS = 3


def train(case: str, *, drain: bool = True, **options: Any) -> list[tuple[Tensor, ...]]:
    """Loss and gradients of some optimizer steps of a freshly seeded model."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, inputs = CASES[case]()
    compiled = fxoffload.compile(module, min_bytes=1, **options)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01, momentum=0.9)
    history: list[tuple[Tensor, ...]] = []
    for step in range(NUM_STEPS):
        torch.manual_seed(step)
        loss = compiled(*inputs)
        if drain:
            wait_for_writes()
        loss.backward()
        history.append((loss.detach(), *collect_gradients(module)))
        optimizer.step()
        optimizer.zero_grad()
    return history


@cache
def train_unmoved(case: str) -> list[tuple[Tensor, ...]]:
    """The same with nothing moved, run by eager ops."""
    return train(case, enabled=False, compiler="eager")


def collect_gradients(module: nn.Module) -> list[Tensor]:
    return [p.grad.clone() for p in module.parameters() if p.grad is not None]


def assert_same(left: list[tuple[Tensor, ...]], right: list[tuple[Tensor, ...]]) -> None:
    for step, (expected, actual) in enumerate(zip(left, right, strict=True)):
        for index, (a, b) in enumerate(zip(expected, actual, strict=True)):
            assert torch.equal(a, b), f"step {step}, tensor {index} differs"


def assert_moved_and_freed() -> None:
    """Every offloaded byte was written and read back, and nothing is left behind."""
    statistics = fxoffload.statistics()
    assert statistics.offloaded_bytes > 0
    assert statistics.written_bytes == statistics.offloaded_bytes
    assert statistics.read_bytes == statistics.offloaded_bytes
    assert statistics.forwarded_bytes == 0
    assert_nothing_left()


def assert_nothing_left() -> None:
    wait_for_writes()
    statistics = fxoffload.statistics()
    assert statistics.live_bytes == 0
    assert statistics.inflight_bytes == 0
    assert statistics.write_errors == statistics.read_errors == 0


@pytest.mark.parametrize("ioengine", ["posix", "memory"])
@pytest.mark.parametrize("case", CASES)
def test_parity_eager(case: str, ioengine: str, spill_directory: Path) -> None:
    options = {"compiler": "eager", "directory": spill_directory, "memory_budget": "min"}
    expected = train_unmoved(case)
    fxoffload.reset_statistics()
    assert_same(expected, train(case, ioengine=ioengine, **options))
    assert_moved_and_freed()


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_parity_inductor(case: str, spill_directory: Path) -> None:
    """With scalar kernels: a moved value may divide a fused loop, and vectorised reductions then
    add up in another order (differences of 1e-8, in neither graph more right than in the other).
    """
    options = {"directory": spill_directory, "memory_budget": "min"}
    with torch._inductor.config.patch({"cpp.simdlen": 1}):
        expected = train(case, enabled=False, **options)
        fxoffload.reset_statistics()
        actual = train(case, **options)
    assert_same(expected, actual)
    assert_moved_and_freed()


@pytest.mark.parametrize("case", ["attention", "views"])
def test_forwarded_values_keep_parity(case: str, spill_directory: Path) -> None:
    """A backward that follows at once takes what is still in memory."""
    options = {"compiler": "eager", "directory": spill_directory, "memory_budget": "min"}
    expected = train_unmoved(case)
    fxoffload.reset_statistics()
    assert_same(expected, train(case, drain=False, **options))
    statistics = fxoffload.statistics()
    assert statistics.forwarded_bytes + statistics.read_bytes == statistics.offloaded_bytes
    assert_nothing_left()


@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_one_transfer_for_each_storage(spill_directory: Path, compiler: str) -> None:
    """q, k and v are three saved views of one projection, which is written once."""
    options = {"compiler": compiler, "directory": spill_directory, "memory_budget": "min"}
    torch._dynamo.reset()
    torch.manual_seed(0)
    module, inputs = CASES["attention"]()
    (graph,) = fxoffload.explain(module, *inputs, options={"min_bytes": 1, **options}).graphs
    moved = [value for value, _ in graph.plan.offloads]
    shared = [value for value in moved if len(value.members) == 3]
    assert [value.nbytes for value in shared] == [2 * 16 * 96 * 4]
    fxoffload.reset_statistics()
    train("attention", **options)
    statistics = fxoffload.statistics()
    assert statistics.offloads == NUM_STEPS * len(moved)
    assert statistics.written_bytes == NUM_STEPS * sum(value.nbytes for value in moved)


def test_alternating_lengths(spill_directory: Path) -> None:
    """Symbolic sizes: each call moves and restores its own number of bytes."""
    options = {"compiler": "eager", "directory": spill_directory, "memory_budget": "min"}

    def run(**more: Any) -> list[tuple[Tensor, ...]]:
        torch._dynamo.reset()
        torch.manual_seed(0)
        module, _ = CASES["attention"]()
        compiled = fxoffload.compile(module, min_bytes=1, dynamic=True, **options, **more)
        history: list[tuple[Tensor, ...]] = []
        for length in (16, 24, 16, 40):
            loss = compiled(torch.linspace(-1, 1, 2 * length * 32).view(2, length, 32))
            wait_for_writes()
            loss.backward()
            history.append((loss.detach(), *collect_gradients(module)))
            module.zero_grad()
        return history

    expected = run(enabled=False)
    fxoffload.reset_statistics()
    assert_same(expected, run())
    assert_moved_and_freed()
