"""Under a budget: the symbolic sizes that a plan assumes, and a warning if a call exceeds them."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from fxoffload.planner.plan import UNCOUNTED, Keep, Plan
from fxoffload.torch_internals.tensor_sizes import guess_int

MIB = 2**20


class SizedGraph:
    """Calls `compiled`, and warns at the first call whose sizes exceed those of the plan.

    sizes: from find_planned_sizes. budget_bytes: the budget of `plan`.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        sizes: Mapping[int, int],
        plan: Plan,
        budget_bytes: int,
    ) -> None:
        self._compiled = compiled
        self._sizes = sizes
        self._plan = plan
        self._budget_bytes = budget_bytes

    def __call__(self, *args: Any) -> Any:
        """Call the compiled graph, and return its result."""
        for index, planned in self._sizes.items():
            if args[index] > planned:
                self._warn(planned, args[index])
                break
        return self._compiled(*args)

    def _warn(self, planned: int, size: int) -> None:
        self._sizes = {}
        peak_mib = self._plan.peak_bytes / MIB
        warnings.warn(
            f"memory_budget of {self._budget_bytes / MIB:.1f} MiB was planned for a size of "
            f"{planned}, and this call has {size}: its activation peak, predicted as "
            f"{peak_mib:.1f} MiB, becomes about {peak_mib * size / planned:.1f} MiB. Declare the "
            "largest size with torch._dynamo.mark_dynamic(x, dim, min=2, max=...), or call with "
            "the largest first. Said once for each graph",
            RuntimeWarning,
            stacklevel=3,
        )


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


def find_planned_sizes(inputs: Sequence[Any]) -> dict[int, int]:
    """By index of a symbolic argument of a Dynamo graph: the size that a plan assumes.

    Dynamo passes the value of every symbol as a separate argument.
    """
    return {
        index: guess_int(item)
        for index, item in enumerate(inputs)
        if isinstance(item, torch.SymInt)
    }
