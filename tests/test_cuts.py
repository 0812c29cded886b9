"""Cuts with the whole step in view: what is chosen, when, and what is compiled."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from gated_blocks import Block, compile_blocks
from programs import make_model, make_program
from torch import Tensor

import fxoffload
from benchmarks.measure import record_memory
from benchmarks.models import Shape, build_model
from fxoffload import cuts, runtime
from fxoffload.config import OffloadConfig
from fxoffload.cost import make_cost_model
from fxoffload.cuts import Models, RecutGraph, choose_cut
from fxoffload.errors import BudgetError
from fxoffload.hardware import Hardware
from fxoffload.inspection.tracing import partition_without_memory
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.plan import Cut
from fxoffload.planning import build_tracer
from fxoffload.runtime import kernels
from fxoffload.schedule import HalfMeasurement, Schedule, StepMeasurement
from fxoffload.step_schedules import ScheduledGraph, make_graph_schedule

MIB = 2**20
OWN = make_model()
LESS, LEAST = OWN.scale_seconds(2.0), OWN.scale_seconds(3.0)
# A drive that a step of 70 GFLOP waits for.
SLOW = {
    "flops_per_second": "20GFLOP/s",
    "memory_bytes_per_second": "5GB/s",
    "memory_bytes": "1GiB",
    "drive_write_bytes_per_second": "20MB/s",
    "drive_read_bytes_per_second": "20MB/s",
    "host_link_bytes_per_second": "20GB/s",
}


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
        found = seconds[tuple(round(model.seconds / OWN.seconds) for model in models.values())]
        if found is None:
            raise BudgetError("it does not fit")
        return make_step(found)

    return choose_cut({"a": OWN, "b": OWN}, others, make)


BOTH = {"a": {None: OWN, 0.8: LESS, 0.4: LEAST}, "b": {None: OWN, 0.8: LESS}}


def test_the_cut_of_the_fastest_step() -> None:
    assert choose({(1, 1): 4.0, (2, 2): 2.0, (3, 1): 3.0}, BOTH) == {"a": 0.8, "b": 0.8}
    assert choose({(1, 1): 4.0, (2, 2): 3.0, (3, 1): 2.0}, BOTH) == {"a": 0.4}, "b has no such cut"


def test_a_cut_that_gains_little_is_not_compiled() -> None:
    assert choose({(1, 1): 4.0, (2, 2): 3.9, (3, 1): 5.0}, BOTH) == {}
    assert choose({(1, 1): 4.0, (2, 2): 3.7, (3, 1): 5.0}, BOTH) == {"a": 0.8, "b": 0.8}


def test_a_cut_that_does_not_fit_is_left_out() -> None:
    assert choose({(1, 1): 4.0, (2, 2): None, (3, 1): 3.0}, BOTH) == {"a": 0.4}


# --- when ---------------------------------------------------------------------------------------


class Run:
    """A graph, and what is done to it: `schedule` is that of the next step, None while one runs."""

    def __init__(self, cuts: Sequence[Cut] | None, monkeypatch: pytest.MonkeyPatch) -> None:
        self.schedule: Schedule | None = None
        self.reviewed: list[Schedule] = []
        self.compiled: list[tuple[Any, Cut]] = []
        self._cuts = cuts
        self.graph = RecutGraph(self._review, dict, self._compile, lambda x: x)
        monkeypatch.setattr(runtime, "find_next_schedule", lambda: self.schedule)

    def _review(self, schedule: Schedule) -> None:
        self.reviewed.append(schedule)
        if self._cuts is not None:
            self.graph.settle(self._cuts)

    def _compile(self, arguments: Any, cut: Cut) -> Any:
        self.compiled.append((arguments, cut))
        return lambda x: -x


def test_a_graph_is_compiled_anew_between_two_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run([0.4], monkeypatch)
    assert run.graph(5) == 5, "the step that runs goes on with what it has"
    run.schedule = make_step(1.0)
    assert [run.graph(5), run.graph(6)] == [-5, -6]
    run.schedule = make_step(1.0)
    run.graph(7)
    assert run.compiled == [((5,), 0.4)], "once"
    assert len(run.reviewed) == 1


def test_a_graph_stays_where_no_cut_is_better(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run([], monkeypatch)
    for _ in range(3):
        run.schedule = make_step(1.0)
        assert run.graph(5) == 5
    assert len(run.reviewed) == 1
    assert not run.compiled


def test_each_schedule_is_reviewed_until_the_graph_is_settled(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = Run(None, monkeypatch)
    first, second = make_step(1.0), make_step(1.0)
    for run.schedule in (first, first, second):
        run.graph(5)
    assert [id(each) for each in run.reviewed] == [id(first), id(second)]


def test_a_review_that_fails_leaves_what_runs(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(_: Schedule) -> None:
        raise RuntimeError("no tracing today")

    run = Run(None, monkeypatch)
    run.graph.review = fail
    run.schedule = make_step(1.0)
    with caplog.at_level(logging.WARNING, cuts.__name__):
        assert run.graph(5) == 5
    assert run.graph.settled
    assert "the present ones stay" in caplog.text
    assert "no tracing today" in caplog.text


# --- end to end ---------------------------------------------------------------------------------


def run_step(blocks: list[Block], x: Tensor) -> list[Tensor]:
    for block in blocks:
        x = block(x)
    x.square().mean().backward()
    found: list[Tensor] = []
    for parameter in (each for block in blocks for each in block.parameters()):
        assert parameter.grad is not None
        found.append(parameter.grad)
        parameter.grad = None
    return found


@pytest.mark.usefixtures("fresh_dynamo", "one_thread", "fresh_programs")
@pytest.mark.parametrize("compiler", ["eager", pytest.param("inductor", marks=pytest.mark.slow)])
def test_blocks_recompute_where_the_step_waits_for_the_drive(
    spill_directory: Path, compiler: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Each block by itself fits the budget with nothing moved."""
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    budget_bytes = 60 * MIB
    options = {"memory_budget": budget_bytes, "hardware": SLOW, "compiler": compiler}
    x = torch.randn(2048, 512)
    expected = run_step(compile_blocks(6, 512, spill_directory, **options, enabled=False), x)
    blocks = compile_blocks(6, 512, spill_directory, **options)
    before = fxoffload.graph_counts().compiled
    moved_bytes: list[int] = []
    peaks: list[int] = []
    found: list[list[Tensor]] = []
    for _ in range(6):
        fxoffload.reset_statistics()
        peaks.append(record_memory(lambda: found.append(run_step(blocks, x))).peak_bytes)
        torch.testing.assert_close(found.pop(), expected)
        moved_bytes.append(fxoffload.statistics().offloaded_bytes)
    first, *_ = (s for s in fxoffload.schedules() if s.moved_bytes == moved_bytes[2])
    last = fxoffload.schedules()[0]
    assert first.exposed_seconds > 0.2 * first.step_seconds
    assert last.step_seconds < 0.8 * first.step_seconds
    assert last.moved_bytes == moved_bytes[-1] < moved_bytes[2]
    compiled = fxoffload.graph_counts().compiled - before
    assert 3 <= compiled <= 4, "two graphs, and at most once more each"
    assert max(peaks[1:]) <= 1.03 * budget_bytes
    if compiler == "inductor":
        # The next process starts with what this one has found out.
        torch._dynamo.reset()
        kernels._programs.clear()
        again = compile_blocks(6, 512, spill_directory, **options)
        for _ in range(2):
            run_step(again, x)
        assert fxoffload.schedules()[0].program == last.program


# --- how much it matters ------------------------------------------------------------------------

GEN4 = 5e9  # Bytes per second that one drive writes.


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_twelve_blocks_of_a_gpu_under_half_of_their_peak() -> None:
    """The figures of docs/planner.md: steps of a step with nothing moved, by the cost model."""
    with torch.device("meta"):
        model = build_model("gpt", Shape(1, 4096, 32, 8, 1024)).to(torch.bfloat16)
        x = torch.empty(8, 1024, 4096, dtype=torch.bfloat16, requires_grad=True)
    ((block,),) = (each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    program = make_program(12)
    found: dict[int, tuple[float, float]] = {}
    for drives in (1, 4):
        hardware = Hardware(
            flops_per_second="780TFLOP/s",
            memory_bytes_per_second="2.7TB/s",
            memory_bytes="80GB",
            drive_write_bytes_per_second=drives * GEN4,
            drive_read_bytes_per_second=1.2 * drives * GEN4,
            host_link_bytes_per_second="54GB/s",
            transfer_latency_seconds=0.002,
        )
        config = OffloadConfig(hardware=hardware, memory_budget=2**50, directory=".")
        traced: list[Models] = []
        partition_without_memory(
            block, (x,), {}, config, partial(build_tracer, config, traced.append)
        )
        links = make_cost_model(hardware).links

        def plan(cut: Cut, budget_bytes: int) -> Schedule:
            graph = ScheduledGraph(
                traced[0][cut],  # noqa: B023
                replace(config, memory_budget=budget_bytes),  # noqa: B023
                links,  # noqa: B023
            )
            measured = StepMeasurement([HalfMeasurement({})] * len(program))
            return make_graph_schedule({"block": graph}, program, measured)

        kept = plan(None, 2**50)
        half = [plan(cut, kept.unmoved_peak_bytes // 2).step_seconds for cut in traced[0]]
        found[drives] = half[0] / kept.step_seconds, min(half) / kept.step_seconds
    assert found[1] == pytest.approx((14.3, 1.14), rel=0.01)
    assert found[4] == pytest.approx((3.6, 1.14), rel=0.01)
