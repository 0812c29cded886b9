"""Choose cuts for whole steps, and compile a graph again if another cut makes its steps faster.

A cut decides what a graph saves, and what its backward recomputes. When a graph is compiled,
nothing is known of the step that it belongs to: a block by itself fits any budget, so that it
recomputes nothing. When steps have shown their program, and transfers cost them time, the graphs
are traced again at each cut, and the step is planned at each: the best cut is compiled.

Calls of a graph in one step have one cut: graphs change only between two steps.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fxoffload import runtime
from fxoffload.errors import BudgetError
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.plan import Cut
from fxoffload.schedule import Schedule

log = logging.getLogger(__name__)

# The share of the predicted step time that another cut must save to be compiled. Other cuts are
# tried only if transfers cost at least this share.
LEAST_GAIN = 0.05

Models = Mapping[Cut, GraphModel]
MakeSchedule = Callable[[Mapping[str, GraphModel]], Schedule]


@dataclass(eq=False)
class RecutGraph:
    """A compiled graph that is replaced by one at another cut if `review` chooses one.

    review: called before a step, once for each schedule that steps are expected to follow. It calls
    `settle` of the graphs that it has decided on. trace: returns the models of the graph at the
    cuts that it may have. compile_cut(arguments, cut): compiles the graph at another cut. cut: that
    of `compiled`.
    """

    review: Callable[[Schedule], None]
    trace: Callable[[], Models]
    compile_cut: Callable[[Sequence[Any], Cut], Callable[..., Any]]
    compiled: Callable[..., Any] | None = None
    cut: Cut = None
    settled: bool = False
    _chosen: list[Cut] = field(default_factory=list[Cut], init=False)
    _seen: Schedule | None = field(default=None, init=False)

    def settle(self, cuts: Sequence[Cut] = ()) -> None:
        """End the reviews of this graph. cuts: the cut to compile it at, or none to leave it."""
        self.settled = True
        self._chosen = list(cuts)

    def __call__(self, *args: Any) -> Any:
        """What the compiled graph returns."""
        if not self.settled:
            schedule = runtime.find_next_schedule()
            if schedule is not None and schedule is not self._seen:
                self._seen = schedule
                self._review(schedule)
                runtime.begin_step()  # The memory that tracing took is not part of the step.
        if self._chosen:
            self.cut = self._chosen.pop()
            log.warning(
                "a graph is compiled once more, as its steps take less time when it recomputes "
                "otherwise (cut %s): this step takes as long as the first one did",
                self.cut,
            )
            self.compiled = self.compile_cut(args, self.cut)
            runtime.begin_step()
        assert self.compiled is not None
        return self.compiled(*args)

    def _review(self, schedule: Schedule) -> None:
        try:
            self.review(schedule)
        except Exception:
            # The compiled graphs stay correct, so a failed review must not end the job.
            log.warning("other cuts could not be looked at; the present ones stay", exc_info=True)
            self.settle()


def choose_cut(
    present: Mapping[str, GraphModel], others: Mapping[str, Models], make: MakeSchedule
) -> Mapping[str, Cut]:
    """The cut of all graphs by which a step takes the least time; empty where it gains little.

    present: by graph, the model that is compiled. others: at other cuts. make: the schedule of a
    step of such models.
    """
    before = make(present)
    best: Schedule | None = None
    chosen: dict[str, Cut] = {}
    cuts: dict[Cut, None] = {cut: None for models in others.values() for cut in models}
    for cut in cuts:
        changed = {key: models[cut] for key, models in others.items() if cut in models}
        try:
            found = make({**present, **changed})
        except BudgetError:
            continue
        log.info("cut %s: a step of %.3f s, now %.3f", cut, found.step_seconds, before.step_seconds)
        if best is None or found.step_seconds < best.step_seconds:
            best, chosen = found, {key: cut for key in changed}
    if best is None or best.step_seconds > (1.0 - LEAST_GAIN) * before.step_seconds:
        return {}
    return chosen
