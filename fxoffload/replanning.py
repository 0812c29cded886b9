"""A compiled graph that measures its first steps, and is then compiled once more if that pays."""

from __future__ import annotations

import logging
import statistics
import threading
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from typing import Any

import torch

from fxoffload.ops import Clocks
from fxoffload.planner.plan import Plan
from fxoffload.planner.simulation import RESOLUTION, Simulation

log = logging.getLogger(__name__)

# Steps in which a new plan must have saved what compiling it takes.
REPAID_STEPS = 1000
# Of the predicted peak.
LEAST_GAIN_WITHOUT_BUDGET = 0.05

Replan = Callable[[Sequence[Any], Clocks, float], Callable[..., Any] | None]


class ReplannedGraph:
    """Calls `compiled` until clocks have been found, then once `replan`, then what that returns.

    find_clocks: when the ops of the graph ran (see StepRecorder.find_clocks), and whether all ranks
    agreed on that, so that no decision may depend on what this one alone knows; None before enough
    steps have run. replan: takes the arguments of the call, the clocks, and the seconds that a
    compilation must save; returns None where the plan stays, as it does where replan raises.
    """

    def __init__(
        self,
        compiled: Callable[..., Any],
        find_clocks: Callable[[], tuple[Clocks, bool] | None],
        replan: Replan,
        *,
        compile_seconds: float,
    ) -> None:
        self._compiled = compiled
        self._find_clocks = find_clocks
        self._replan: Replan | None = replan
        self._compile_seconds = compile_seconds
        self._lock = threading.Lock()

    def __call__(self, *args: Any) -> Any:
        """What the compiled graph returns."""
        if self._replan is not None:
            with self._lock:
                replan, found = self._replan, self._find_clocks()
                if replan is not None and found is not None:
                    clocks, agreed = found
                    seconds = 0.0 if agreed else self._compile_seconds
                    self._replan = None
                    try:
                        self._compiled = replan(args, clocks, seconds) or self._compiled
                    except Exception:
                        # The graph that ran so far is as right as ever: no reason to end a job.
                        log.warning(
                            "a graph could not be planned anew by what its first steps took; its "
                            "plan stays (replan=False does not try)",
                            exc_info=True,
                        )
        return self._compiled(*args)


def pays(
    before: Simulation, after: Plan, compile_seconds: float, *, lowers_peak: bool = False
) -> bool:
    """Whether `after` is worth a compilation when the present plan leads to `before`.

    lowers_peak: whether a lower peak at no more time is a reason too: not under a budget.
    """
    saved_seconds = before.step_seconds - after.step_seconds
    least_seconds = max(compile_seconds / REPAID_STEPS, RESOLUTION * before.step_seconds)
    if saved_seconds > least_seconds:
        return True
    lower = after.peak_bytes < (1.0 - LEAST_GAIN_WITHOUT_BUDGET) * before.peak_bytes
    return lowers_peak and lower and saved_seconds >= 0.0


def is_distributed() -> bool:
    """Whether this process is one of several ranks of a torch.distributed job."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def agree(own: Mapping[str, Clocks]) -> dict[str, Clocks]:
    """The clocks that all ranks take: the mean, of the graphs and ops that all of them have seen.

    own: by graph. A collective call of torch.distributed where there are several ranks.
    """
    gathered: list[Mapping[str, Clocks] | None] = [own]
    if is_distributed():
        gathered = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(gathered, {key: dict(c) for key, c in own.items()})
    ranks = [clocks for clocks in gathered if clocks is not None]
    graphs = set.intersection(*(set(clocks) for clocks in ranks))
    agreed: dict[str, Clocks] = {}
    for graph in sorted(graphs):
        events = set.intersection(*(set(clocks[graph]) for clocks in ranks))
        agreed[graph] = {
            event: statistics.mean(clocks[graph][event] for clocks in ranks)
            for event in sorted(events)
        }
    return agreed


@cache
def announce_compilation() -> None:
    """Say once in a process why a step in the midst of training takes as long as the first."""
    log.warning(
        "a graph is compiled once more, by what its first steps took: this step takes as long as "
        "the first one did (option replan=False keeps the first plan). Said once; each graph at "
        "level INFO"
    )


def describe(simulation: Simulation) -> str:
    """What a plan takes, for the log."""
    return (
        f"{simulation.step_seconds:.3f} s, {simulation.exposed_seconds:.3f} s of it exposed, by "
        "what its nodes took"
    )
