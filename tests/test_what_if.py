"""What-if: forecasts of toy models, compared with numbers that are computed by hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import make_hardware
from zoo import CASES

import fxoffload
from fxoffload import BudgetError, ConfigError, largest_batch, simulate
from fxoffload.inspection.what_if import find_largest

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

WIDTH = 64
WEIGHT_BYTES = 4 * WIDTH * WIDTH
ROW_BYTES = 4 * WIDTH  # Of one sample, in any layer.
OPTIONS: dict[str, Any] = {"compiler": "eager", "min_bytes": 1}
# One operation a second, so that seconds count them; and one byte a second.
COUNTS_FLOPS = make_hardware(flops=1.0, memory=1e30, transfers=1e30)
COUNTS_BYTES = make_hardware(flops=1e30, memory=1.0, transfers=1e30)


class Chain(nn.Module):
    """Matrix products one behind the other; each result but the last is saved."""

    def __init__(self, layers: int, device: str = "meta") -> None:
        super().__init__()
        make: Callable[[], nn.Module] = lambda: nn.Linear(WIDTH, WIDTH, bias=False, device=device)  # noqa: E731
        self.layers = nn.ModuleList(make() for _ in range(layers))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x)
        return x.sum()


def make_inputs(batch: int) -> tuple[Tensor, ...]:
    return (torch.ones(batch, WIDTH),)


def flops(layers: int, batch: int) -> int:
    """Operations of the forward, of weight gradients, and of all but the first input gradient."""
    return (3 * layers - 1) * 2 * batch * WIDTH * WIDTH


def traffic_bytes(batch: int) -> int:
    """Of three layers: eight products, each between a weight and two activations, and the sum.

    The gradient of the result, which two products read, is one number repeated.
    """
    products = 8 * (2 * batch * ROW_BYTES + WEIGHT_BYTES)
    return products + batch * ROW_BYTES + 4 - 2 * (batch * ROW_BYTES - 4)


def test_seconds_are_the_operations() -> None:
    found = simulate(Chain(4), *make_inputs(32), hardware=COUNTS_FLOPS, options=OPTIONS)
    assert found.step_seconds == flops(4, 32)
    assert found.exposed_seconds == 0.0
    assert found.resident_bytes == 4 * WEIGHT_BYTES


def test_seconds_are_the_bytes_where_memory_is_slower() -> None:
    found = simulate(Chain(3), *make_inputs(32), hardware=COUNTS_BYTES, options=OPTIONS)
    assert found.step_seconds == traffic_bytes(32)


def test_everything_that_may_move_is_written() -> None:
    found = simulate(
        Chain(4), *make_inputs(32), hardware=COUNTS_FLOPS, memory_budget="min", options=OPTIONS
    )
    assert found.written_bytes == 3 * 32 * ROW_BYTES
    assert not found.keeps_all


def test_host_tier_is_not_written_to_a_drive() -> None:
    options = {**OPTIONS, "host_budget": 2 * 32 * ROW_BYTES}
    found = simulate(
        Chain(4), *make_inputs(32), hardware=COUNTS_FLOPS, memory_budget="min", options=options
    )
    assert found.written_bytes == 32 * ROW_BYTES


def test_a_slow_drive_is_exposed() -> None:
    """The write hides behind the second product; the read stands before the first backward one."""
    slow = dataclasses.replace(
        COUNTS_FLOPS, drive_write_bytes_per_second=1.0, drive_read_bytes_per_second=1.0
    )
    found = simulate(
        Chain(2), *make_inputs(32), hardware=slow, memory_budget="min", options=OPTIONS
    )
    # A plan counts on 0.95 of a link.
    assert found.exposed_seconds == pytest.approx(32 * ROW_BYTES / 0.95)
    assert found.step_seconds == pytest.approx(flops(2, 32) + 32 * ROW_BYTES / 0.95)
    # Gradients of both weights, of the hidden layer, and the loss.
    assert found.peak_bytes == 2 * WEIGHT_BYTES + 32 * ROW_BYTES + 4


def test_what_fits_the_device() -> None:
    needed = 2 * WEIGHT_BYTES + (2 * WEIGHT_BYTES + 32 * ROW_BYTES + 4)
    for memory_bytes, fits in ((needed, True), (needed - 1, False)):
        hardware = dataclasses.replace(COUNTS_FLOPS, memory_bytes=memory_bytes)
        found = simulate(Chain(2), *make_inputs(32), hardware=hardware, options=OPTIONS)
        assert found.fits == fits
        assert ("does not fit" in str(found)) != fits


@pytest.mark.parametrize(
    ("case", "compiler"),
    [
        ("attention", "eager"),
        ("graph_break", "eager"),
        pytest.param("attention", "inductor", marks=pytest.mark.slow),
    ],
)
def test_plans_are_those_of_real_tensors(case: str, compiler: str) -> None:
    torch.manual_seed(0)
    module, inputs = CASES[case]()
    options = {**OPTIONS, "compiler": compiler}
    real = {**options, "memory_budget": "min", "ioengine": "memory"}
    explained = fxoffload.explain(module, *inputs, options=real)
    found = simulate(module, *inputs, hardware=COUNTS_FLOPS, memory_budget="min", options=options)
    assert len(found.plans) == len(explained.graphs)
    for plan, graph in zip(found.plans, explained.graphs, strict=True):
        assert plan.values == graph.plan.values
        assert plan.unmoved_peak_bytes == graph.plan.unmoved_peak_bytes
    assert sum(plan.offloaded_bytes for plan in found.plans) == explained.offloaded_bytes > 0


def test_a_model_larger_than_any_machine() -> None:
    with torch.device("meta"):
        model = nn.Sequential(*(nn.Linear(2**18, 2**18, bias=False) for _ in range(3)))
    x = torch.ones(2**20, 2**18, device="meta")
    found = simulate(model, x, hardware=COUNTS_FLOPS, memory_budget="min", options=OPTIONS)
    assert found.resident_bytes == 3 * 4 * 2**36
    assert found.written_bytes == 2 * 4 * 2**38


def test_nothing_is_run_and_the_model_is_left_alone() -> None:
    model = Chain(2, device="cpu")
    before = [parameter.clone() for parameter in model.parameters()]
    fxoffload.reset_statistics()
    simulate(model, *make_inputs(32), hardware=COUNTS_FLOPS, memory_budget="min", options=OPTIONS)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert type(parameter) is nn.Parameter
        assert parameter.grad is None
        assert torch.equal(parameter, old)
    assert fxoffload.statistics().offloaded_bytes == 0


def test_a_budget_that_cannot_be_met() -> None:
    with pytest.raises(BudgetError, match="cannot be met"):
        simulate(
            Chain(2), *make_inputs(32), hardware=COUNTS_FLOPS, memory_budget=1, options=OPTIONS
        )


def test_tables() -> None:
    found = simulate(
        Chain(4), *make_inputs(2**12), hardware=COUNTS_FLOPS, memory_budget="min", options=OPTIONS
    )
    table, total, memory = str(found).rsplit("\n", 2)
    # Three values of 1 MiB.
    assert table.splitlines()[-1].split()[0::5] == ["0", "3.0"]
    assert total.endswith("beside 0.1 MiB of parameters and buffers; 3.0 MiB written")
    assert memory == "fits into 1024.0 MiB of device memory"


# --- batch --------------------------------------------------------------------------------------
# Three layers: the forward ends with three activations in memory, two of them where the first has
# left; the gradient of the second weight needs two, beside two gradients of weights.
BUDGET = 3 * 160 * ROW_BYTES + 4
MOVED_BATCH = (BUDGET - 4 - 2 * WEIGHT_BYTES) // (2 * ROW_BYTES)


def test_largest_batch() -> None:
    found = largest_batch(
        Chain(3),
        make_inputs,
        hardware=COUNTS_BYTES,
        memory_budget=BUDGET,
        options=OPTIONS,
        stages=4,
        microbatches=21,
    )
    assert found.unmoved is not None
    assert (found.unmoved.batch, found.moved.batch) == (160, MOVED_BATCH) == (160, 176)
    assert found.unmoved.forecast.written_bytes == 0 < found.moved.forecast.written_bytes
    assert max(case.forecast.peak_bytes for case in (found.unmoved, found.moved)) <= BUDGET

    # Weights are read as often for a large batch as for a small one.
    ratio = (176 / traffic_bytes(176)) / (160 / traffic_bytes(160))
    assert found.throughput_ratio == pytest.approx(ratio)
    assert ratio > 1.01
    # 21 micro-batches of 160 samples are 19 of 176, and 16 samples more.
    assert (found.moved.microbatches, found.merged.microbatches) == (21, 20)
    assert found.unmoved.bubble_fraction == found.moved.bubble_fraction == 3 / 24
    assert found.merged.bubble_fraction == 3 / 23
    expected = 176 / traffic_bytes(176) * (20 / 23)
    assert found.merged.samples_per_second == pytest.approx(expected)
    assert f"throughput changes by a factor of {ratio:.3f}" in str(found)


def test_budget_is_what_the_device_has_left() -> None:
    hardware = dataclasses.replace(COUNTS_FLOPS, memory_bytes=BUDGET + 3 * WEIGHT_BYTES)
    found = largest_batch(Chain(3), make_inputs, hardware=hardware, options=OPTIONS)
    assert found.memory_budget_bytes == BUDGET
    assert found.moved.batch == MOVED_BATCH
    assert found.moved.bubble_fraction == 0.0


def test_batch_stops_where_it_is_told_to() -> None:
    found = largest_batch(
        Chain(3), make_inputs, hardware=COUNTS_FLOPS, options=OPTIONS, max_batch=5
    )
    assert found.unmoved is not None
    assert (found.unmoved.batch, found.moved.batch) == (5, 5)
    assert found.throughput_ratio == 1.0


def test_no_batch_fits() -> None:
    with pytest.raises(BudgetError):
        largest_batch(
            Chain(3), make_inputs, hardware=COUNTS_FLOPS, memory_budget=1, options=OPTIONS
        )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"memory_budget": "min"}, "no limit for a batch"), ({"stages": 0}, "stages=0")],
)
def test_what_makes_no_sense_is_refused(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        largest_batch(Chain(3), make_inputs, hardware=COUNTS_FLOPS, options=OPTIONS, **arguments)


@pytest.mark.parametrize("limit", [1, 7, 8, 9, 100])
@pytest.mark.parametrize("largest", [0, 1, 2, 7, 8, 100, 1000])
def test_find_largest(largest: int, limit: int) -> None:
    assert find_largest(lambda number: number <= largest, limit) == min(largest, limit)
