"""Cuts with the whole step in view: what is chosen, when, and what is compiled."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, Literal

import pytest
from programs import make_model

from fxoffload import cuts, runtime
from fxoffload.cuts import GraphSource, RecutGraph, choose_cut
from fxoffload.errors import BudgetError
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.plan import Cut
from fxoffload.schedule import Schedule

OWN = make_model()
LESS, LEAST = OWN.scale_seconds(2.0), OWN.scale_seconds(3.0)


def make_step(seconds: float) -> Schedule:
    return Schedule((), (), 1, 1, 1, seconds, 0.0, 1, 0)


# --- what is chosen -----------------------------------------------------------------------------


def choose(
    seconds: Mapping[tuple[float, ...], float | None],
    others: Mapping[str, Mapping[Cut, GraphModel]],
) -> Mapping[str, Cut]:
    """`seconds`: of a step, by the seconds of the models of its graphs; None where none fits."""

    def make(models: Mapping[str, GraphModel]) -> Schedule:
        assert list(models) == ["a", "b"]
        first = OWN.forward.seconds[0]
        found = seconds[tuple(round(it.forward.seconds[0] / first) for it in models.values())]
        if found is None:
            raise BudgetError("it does not fit")
        return make_step(found)

    return choose_cut({"a": OWN, "b": OWN}, others, make)


BOTH = {"a": {None: OWN, 0.8: LESS, 0.4: LEAST}, "b": {None: OWN, 0.8: LESS}}


def test_the_cut_of_the_fastest_step() -> None:
    assert choose({(1, 1): 4.0, (2, 2): 2.0, (3, 1): 3.0}, BOTH) == {"a": 0.8, "b": 0.8}
    assert choose({(1, 1): 4.0, (2, 2): 3.0, (3, 1): 2.0}, BOTH) == {"a": 0.4}, "b has no such cut"
    assert choose({(1, 1): 4.0, (2, 2): 2.0, (3, 1): 2.0}, BOTH) == {"a": 0.8, "b": 0.8}, (
        "the first"
    )


def test_a_cut_that_gains_little_is_not_compiled() -> None:
    assert choose({(1, 1): 4.0, (2, 2): 3.9, (3, 1): 5.0}, BOTH) == {}
    assert choose({(1, 1): 4.0, (2, 2): 3.7, (3, 1): 5.0}, BOTH) == {"a": 0.8, "b": 0.8}


def test_a_cut_that_does_not_fit_is_left_out() -> None:
    assert choose({(1, 1): 4.0, (2, 2): None, (3, 1): 3.0}, BOTH) == {"a": 0.4}
    others = {"a": {0.8: LESS}, "b": {0.8: LESS}}
    assert choose({(1, 1): 4.0, (2, 2): None}, others) == {}, "none of them does"


# --- when ---------------------------------------------------------------------------------------


class Run:
    """A graph, and what is done to it: `schedule` is that of the next step, None while one runs."""

    def __init__(
        self, cut: Cut | Literal["present", "later"], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        self.schedule: Schedule | None = None
        self.reviewed: list[Schedule] = []
        self.compiled: list[tuple[Any, Cut]] = []
        self.begun: list[None] = []
        self._cut = cut
        source = GraphSource(dict, self._compile)
        self.graph = RecutGraph(self._review, source, lambda x: x)
        monkeypatch.setattr(runtime, "find_next_schedule", lambda: self.schedule)
        monkeypatch.setattr(runtime, "begin_step", lambda: self.begun.append(None))

    def _review(self, schedule: Schedule) -> None:
        self.reviewed.append(schedule)
        if self._cut != "later":
            self.graph.settle(self._cut)

    def _compile(self, arguments: Any, cut: Cut) -> Any:
        self.compiled.append((arguments, cut))
        return lambda x: -x


@pytest.mark.parametrize("cut", [0.4, None])
def test_a_graph_is_compiled_anew_between_two_steps(
    cut: Cut, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    run = Run(cut, monkeypatch)
    assert run.graph(5) == 5, "the step that runs goes on with what it has"
    assert run.graph.source is not None
    assert run.begun == []
    run.schedule = make_step(1.0)
    assert [run.graph(5), run.graph(6)] == [-5, -6]
    assert len(run.begun) == 2, "the memory of the review, and of the compiler, is not the step's"
    run.schedule = make_step(1.0)
    run.graph(7)
    assert run.compiled == [((5,), cut)], "once"
    assert run.graph.cut == cut
    assert run.graph.source is None, "no other cut can follow"
    (record,) = caplog.records
    assert record.levelno == logging.WARNING
    assert f"(cut {cut}): this step takes as long as the first one did" in record.message
    assert len(run.reviewed) == 1


def test_a_graph_stays_where_no_cut_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run("present", monkeypatch)
    for _ in range(3):
        run.schedule = make_step(1.0)
        assert run.graph(5) == 5
    assert len(run.reviewed) == 1
    assert not run.compiled
    assert run.graph.source is None


def test_each_schedule_is_reviewed_until_the_graph_is_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run("later", monkeypatch)
    first, second = make_step(1.0), make_step(1.0)
    for run.schedule in (first, first, second):
        run.graph(5)
    assert [id(each) for each in run.reviewed] == [id(first), id(second)]
    assert run.graph.source is not None
    assert len(run.begun) == 2


def test_a_review_that_fails_leaves_what_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Schedule) -> None:
        raise LookupError("no tracing today")

    run = Run("later", monkeypatch)
    run.graph.review = fail
    run.schedule = make_step(1.0)
    with caplog.at_level(logging.WARNING, cuts.__name__):
        assert run.graph(5) == 5
    assert run.graph.settled
    assert "the present ones stay" in caplog.text
    assert "no tracing today" in caplog.text
