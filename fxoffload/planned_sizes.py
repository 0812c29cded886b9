"""Symbolic sizes: whether a graph has them, and a warning of those that no plan can count."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch

from fxoffload.planner.plan import UNCOUNTED, Keep, Plan
from fxoffload.sizes import MIB


def warn_of_uncounted(plan: Plan) -> None:
    """Warn if some values have no known size, so that the predicted peak does not count them."""
    names = [
        value.name
        for value, decision in zip(plan.values, plan.decisions, strict=True)
        if isinstance(decision, Keep) and decision.reason == UNCOUNTED
    ]
    if names:
        warnings.warn(
            f"memory_budget: the sizes of {', '.join(names)} depend on data and have no bound, so "
            f"the predicted activation peak of {plan.peak_bytes / MIB:.1f} MiB does not count "
            "them; bound each with torch._check(size <= ...)",
            RuntimeWarning,
            stacklevel=2,
        )


def has_symbols(inputs: Sequence[Any]) -> bool:
    """Whether sizes in a Dynamo graph are symbols, whose values are arguments of the graph."""
    return any(isinstance(item, torch.SymInt) for item in inputs)
