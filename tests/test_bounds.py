"""Bounds of toy models on other hardware, beside the forecasts of `simulate`."""

from __future__ import annotations

from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from toys import make_hardware

import fxoffload
from fxoffload.inspection.bounds import ALL_CUTS

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

OPTIONS: dict[str, Any] = {"compiler": "eager", "min_bytes": 1}
# The drive moves a tenth of what the memory of the device does.
HARDWARE = make_hardware(flops=1e15, memory=1e9, transfers=1e8)


class Waves(nn.Module):
    """Matrix products with a loop behind each, whose input the backward reads."""

    def __init__(self) -> None:
        super().__init__()
        layers = (nn.Linear(64, 64, bias=False, device="meta") for _ in range(6))
        self.layers = nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.sin(layer(x))
        return x.sum()


def bound(**arguments: Any) -> fxoffload.Bound:
    (found,) = fxoffload.find_bounds(
        Waves(), torch.ones(256, 64), hardware=HARDWARE, options=OPTIONS, **arguments
    )
    return found


def forecast(budget: int | str | None) -> fxoffload.Forecast:
    return fxoffload.simulate(
        Waves(), torch.ones(256, 64), hardware=HARDWARE, memory_budget=budget, options=OPTIONS
    )


def test_no_forecast_is_below_the_bound():
    free = bound()
    (unhurried,) = forecast("min").plans
    (plan,) = forecast(None).plans
    assert free.budget_bytes is free.step_seconds is None
    assert free.lowest_peak_bytes == unhurried.peak_bytes
    assert free.peak_bytes is not None
    assert unhurried.peak_bytes < free.peak_bytes <= plan.peak_bytes < plan.unmoved_peak_bytes
    budget_bytes = int(0.6 * plan.unmoved_peak_bytes)
    limited = bound(memory_budget=budget_bytes, cuts=ALL_CUTS)
    assert limited.budget_bytes == budget_bytes
    assert limited.step_seconds is not None
    assert limited.step_seconds <= forecast(budget_bytes).step_seconds
    assert bound(memory_budget=free.lowest_peak_bytes - 1).step_seconds == inf


def test_recomputation_and_waiting_lower_the_bound():
    own, longer = bound(), bound(waiting=0.5)
    assert own.within_seconds * 1.5 == pytest.approx(longer.within_seconds)
    assert own.peak_bytes is not None
    assert longer.peak_bytes is not None
    assert longer.peak_bytes < own.peak_bytes
    recomputing = bound(cuts=ALL_CUTS, waiting=0.5)
    assert recomputing.peak_bytes is not None
    assert recomputing.peak_bytes <= longer.peak_bytes
    budget_bytes = int(1.2 * own.lowest_peak_bytes)
    moving = bound(memory_budget=budget_bytes).step_seconds
    either = bound(memory_budget=budget_bytes, cuts=ALL_CUTS).step_seconds
    assert moving is not None
    assert either is not None
    assert either < 0.95 * moving
