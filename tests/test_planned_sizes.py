"""A budget holds for the largest size that is declared, or that has come."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
from torch import nn

import fxoffload
from fxoffload.planned_sizes import has_symbols, warn_of_uncounted
from fxoffload.planner.plan import UNCOUNTED, Keep, Plan, SavedValue

WIDTH = 64
SMALL, LARGE = 64, 512
# What all saved values of the largest step take is more, and what those of a small one take less.
BUDGET = 5 * LARGE * WIDTH * 4


def make_step(**options: Any) -> Any:
    torch.manual_seed(0)
    layers = [layer for _ in range(6) for layer in (nn.Linear(WIDTH, WIDTH), nn.Tanh())]
    return fxoffload.compile(
        nn.Sequential(*layers), ioengine="memory", compiler="eager", min_bytes=1, **options
    )


def run(step: Any, rows: int, largest: int | None = None) -> int:
    """The bytes that one step moves."""
    x = torch.randn(rows, WIDTH)
    if largest is None:
        torch._dynamo.mark_dynamic(x, 0)
    else:
        torch._dynamo.mark_dynamic(x, 0, min=2, max=largest)
    fxoffload.reset_statistics()
    step(x).sum().backward()
    return fxoffload.statistics().offloaded_bytes


def test_the_declared_maximum_is_planned_for(fresh_dynamo: None) -> None:
    step = make_step(memory_budget=BUDGET)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        assert run(step, SMALL, LARGE) > 0, "although all would fit at this size"
        # The values of the largest step that stay, fit.
        assert run(step, LARGE, LARGE) >= 6 * LARGE * WIDTH * 4 - BUDGET


@pytest.mark.parametrize("budget", [None, "min"])
def test_without_a_budget_in_bytes_nothing_is_promised(
    fresh_dynamo: None, budget: str | None
) -> None:
    step = make_step(memory_budget=budget)
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        for rows in (SMALL, LARGE):
            run(step, rows)


@pytest.mark.parametrize(("dynamic", "expected"), [(True, True), (False, False)])
def test_symbols_are_arguments_of_the_graph(
    fresh_dynamo: None, dynamic: bool, expected: bool
) -> None:
    found: list[bool] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        found.append(has_symbols(inputs))
        return gm

    torch.compile(lambda x: x + 1, backend=backend, dynamic=dynamic)(torch.randn(SMALL, WIDTH))
    assert found == [expected]


def test_a_size_without_a_bound_is_named() -> None:
    value = SavedValue("nonzero", ("nonzero",), 0, 0, born=0, last_use=1, first_use=2, freed=3)
    plan = Plan((value,), (Keep(UNCOUNTED),), 2**20, 2**20)
    with pytest.warns(RuntimeWarning, match=r"sizes of nonzero depend .* of 1.0 MiB does not"):
        warn_of_uncounted(plan)
