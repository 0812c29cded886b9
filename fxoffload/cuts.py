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
from typing import Any, Literal

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


@dataclass(frozen=True, slots=True)
class GraphSource:
    """A graph before a cut was chosen, which takes some MB of the host's memory.

    trace: returns the models of the graph at the cuts that it may have. compile_cut(arguments,
    cut): compiles the graph at another cut.
    """

    trace: Callable[[], Models]
    compile_cut: Callable[[Sequence[Any], Cut], Callable[..., Any]]


@dataclass(eq=False)
class RecutGraph:
    """A compiled graph that is replaced by one at another cut if `review` chooses one.

    review: called before a step, once for each schedule that steps are expected to follow. It calls
    `settle` of the graphs that it has decided on. source: what the graph is compiled from; None
    once no other cut can follow. cut: that of `compiled`. chosen: the cut to compile it at.
    """

    review: Callable[[Schedule], None]
    source: GraphSource | None
    compiled: Callable[..., Any] | None = None
    cut: Cut = None
    settled: bool = False
    chosen: Cut | Literal["present"] = "present"
    _seen: Schedule | None = field(default=None, init=False)

    def trace(self) -> Models:
        """The models at the cuts that the graph may have, before it is settled."""
        assert self.source is not None
        return self.source.trace()

    def settle(self, cut: Cut | Literal["present"] = "present") -> None:
        """End the reviews of this graph. cut: the one to compile it at; by default it stays."""
        self.settled, self.chosen = True, cut
        if cut == "present":
            self.source = None

    def __call__(self, *args: Any) -> Any:
        """What the compiled graph returns."""
        if not self.settled:
            schedule = runtime.find_next_schedule()
            if schedule is not None and schedule is not self._seen:
                self._seen = schedule
                self._review(schedule)
                runtime.begin_step()  # The memory that tracing took is not part of the step.
        if self.chosen != "present":
            self._compile(args, self.chosen)
        assert self.compiled is not None
        return self.compiled(*args)

    def _compile(self, args: Sequence[Any], cut: Cut) -> None:
        log.warning(
            "a graph is compiled once more, as its steps take less time when it recomputes "
            "otherwise (cut %s): this step takes as long as the first one did",
            cut,
        )
        source, self.source = self.source, None
        self.cut, self.chosen = cut, "present"
        assert source is not None
        self.compiled = source.compile_cut(args, cut)
        runtime.begin_step()

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
