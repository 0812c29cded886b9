"""Blocks recompute where the whole step waits for the drive, which no block by itself does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from gated_blocks import Block, compile_blocks
from programs import make_model, make_program, parse_program
from torch import Tensor

import fxoffload
from benchmarks.measure import record_memory
from fxoffload import cut_review
from fxoffload.cli.byte_models import Shape, build_model
from fxoffload.config import OffloadConfig
from fxoffload.cost import make_cost_model
from fxoffload.cut_review import choose_cuts, review_cuts
from fxoffload.cuts import GraphSource, Models, RecutGraph
from fxoffload.hardware import Hardware
from fxoffload.inspection.tracing import partition_without_memory
from fxoffload.machine import find_nominal_links
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.link import Link
from fxoffload.planner.plan import Cut
from fxoffload.planning import build_tracer
from fxoffload.runtime import kernels
from fxoffload.schedule import (
    Flow,
    HalfMeasurement,
    Owners,
    Program,
    ProgramRecord,
    Schedule,
    StepMeasurement,
    TierFlow,
)
from fxoffload.sizes import MIB
from fxoffload.step_schedules import ScheduledGraph, ScheduledStep, make_graph_schedule

MODEL = make_model()
LINK = Link(1e6, 2e6, 0.5, 0.25)
PROGRAM = make_program(1)
ROWS, WIDTH, BLOCKS = 2048, 512, 6  # 4 MiB for each result.
# A drive that a step of 70 GFLOP waits for.
SLOW = {
    "flops_per_second": "20GFLOP/s",
    "memory_bytes_per_second": "5GB/s",
    "memory_bytes": "1GiB",
    "drive_write_bytes_per_second": "20MB/s",
    "drive_read_bytes_per_second": "20MB/s",
    "host_link_bytes_per_second": "20GB/s",
}


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
    x = torch.randn(ROWS, WIDTH)
    expected = run_step(compile_blocks(BLOCKS, WIDTH, spill_directory, **options, enabled=False), x)
    blocks = compile_blocks(BLOCKS, WIDTH, spill_directory, **options)
    before = fxoffload.graph_counts().compiled
    moved_bytes: list[int] = []
    peaks: list[int] = []
    found: list[list[Tensor]] = []
    for _ in range(9):
        fxoffload.reset_statistics()
        peaks.append(record_memory(lambda: found.append(run_step(blocks, x))).peak_bytes)
        torch.testing.assert_close(found.pop(), expected)
        moved_bytes.append(fxoffload.statistics().offloaded_bytes)
    last, first = fxoffload.schedules()
    assert first.exposed_seconds > 0.2 * first.step_seconds
    assert last.step_seconds < 0.8 * first.step_seconds
    assert last.moved_bytes == moved_bytes[-1] < first.moved_bytes
    compiled = fxoffload.graph_counts().compiled - before
    assert 3 <= compiled <= 4, "two graphs, and at most once more each"
    assert max(peaks[1:]) <= 1.03 * budget_bytes
    if compiler == "inductor":
        # The next process starts with what this one has found out.
        torch._dynamo.reset()
        kernels._programs.clear()
        again = compile_blocks(BLOCKS, WIDTH, spill_directory, **options)
        for _ in range(2):
            run_step(again, x)
        assert fxoffload.schedules()[0].program == last.program


# --- when a step is reviewed --------------------------------------------------------------------


class Review:
    """A step of graphs that may be compiled anew, and what its review asks choose_cuts."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, *, settled: bool = False) -> None:
        self.traced: list[str] = []
        self.asked: list[tuple[object, ...]] = []
        self.found: Mapping[str, Cut] = {}
        self.graphs: dict[str, ScheduledGraph] = {}
        for key in ("block", "head"):
            source = GraphSource(partial(self._trace, key), lambda *_: id)
            recut = RecutGraph(lambda _: None, source)
            recut.settled = settled and key == "head"
            config = OffloadConfig(directory=".")
            self.graphs[key] = ScheduledGraph(MODEL, config, {"nvme": LINK}, recut=recut)
        monkeypatch.setattr(cut_review, "choose_cuts", self._choose)
        self._monkeypatch = monkeypatch

    def _trace(self, key: str) -> Models:
        self.traced.append(key)
        return {None: MODEL.scale_seconds(2.0), 0.5: MODEL}

    def _choose(self, *args: object) -> Mapping[str, Cut]:
        self.asked.append(args)
        return self.found

    def run(
        self, exposed_seconds: float, price: float | None = None, *, ranks: bool = False
    ) -> list[Cut | Literal["present"]]:
        """Review a step of 100 s that moves 10 bytes; what the graphs have to be compiled at."""
        schedule = Schedule(PROGRAM, (), 1, 1, 1, 100.0, exposed_seconds, 99, 10)
        other = replace(schedule, step_seconds=0.0)
        self.measured = StepMeasurement([HalfMeasurement({})] * 2, base_bytes=7, price=price)
        steps = [
            ScheduledStep(ProgramRecord(each, 9, self.measured), graphs)
            for each, graphs in ((other, {}), (schedule, self.graphs))
        ]
        self._monkeypatch.setattr(cut_review, "find_steps", lambda: steps)
        self._monkeypatch.setattr(cut_review, "is_distributed", lambda: ranks)
        review_cuts(schedule)
        recuts = [each.recut for each in self.graphs.values() if each.recut is not None]
        assert all(recut.settled for recut in recuts)
        return [recut.chosen for recut in recuts]


@pytest.mark.parametrize(
    ("exposed_seconds", "price", "is_long"),
    # A price is paid for the bytes that are written, and again when they are read.
    [(5.0, None, False), (5.1, None, True), (3.0, 0.09, False), (3.0, 0.11, True)],
)
def test_cuts_stay_where_transfers_cost_little(
    monkeypatch: pytest.MonkeyPatch, exposed_seconds: float, price: float | None, is_long: bool
) -> None:
    review = Review(monkeypatch)
    review.found = {"head": 0.5}
    assert review.run(exposed_seconds, price) == ["present", 0.5 if is_long else "present"]
    assert review.traced == (["block", "head"] if is_long else [])


def test_a_graph_is_reviewed_once(monkeypatch: pytest.MonkeyPatch) -> None:
    review = Review(monkeypatch, settled=True)
    review.found = {"block": None}
    assert review.run(50.0) == [None, "present"]
    ((graphs, program, measured, others),) = review.asked
    assert (graphs, program, measured) == (review.graphs, PROGRAM, review.measured)
    assert others == {"block": {None: MODEL.scale_seconds(2.0), 0.5: MODEL}}


def test_ranks_review_always_and_by_nominal_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    review = Review(monkeypatch)
    stated = OffloadConfig(directory=".", hardware=SLOW)
    review.graphs["head"] = replace(review.graphs["head"], config=stated)
    review.found = {"head": 0.5}
    assert review.run(0.0, ranks=True) == ["present", 0.5]
    ((graphs, _, measured, _),) = review.asked
    model = MODEL.scale_seconds(2.0)
    block, head = review.graphs.values()
    assert graphs == {
        "block": replace(block, model=model, links=find_nominal_links(["nvme"])),
        "head": replace(head, model=model),
    }
    assert measured == StepMeasurement([HalfMeasurement({})] * 2)


@pytest.mark.parametrize("missing", ["recut", "models"])
def test_ranks_keep_their_cuts_where_a_graph_has_no_nominal_numbers(
    monkeypatch: pytest.MonkeyPatch, missing: str
) -> None:
    review = Review(monkeypatch, settled=missing == "models")
    if missing == "recut":
        review.graphs["head"] = replace(review.graphs["head"], recut=None)
    review.found = {"block": 0.5}
    assert set(review.run(50.0, ranks=True)) == {"present"}
    assert review.asked == []


# --- by which numbers ---------------------------------------------------------------------------


def plan_cuts(
    monkeypatch: pytest.MonkeyPatch, measured: StepMeasurement, **options: Any
) -> list[tuple[Mapping[str, ScheduledGraph], StepMeasurement]]:
    """What choose_cuts makes schedules of, for a graph whose backward takes twice its forward.

    options: of another graph, which has no other cut.
    """
    asked: list[tuple[Mapping[str, ScheduledGraph], StepMeasurement]] = []

    def make(
        graphs: Mapping[str, ScheduledGraph], program: Program, measured: StepMeasurement
    ) -> Schedule:
        assert program == LONG
        assert graphs["head"].config == other
        asked.append((graphs, measured))
        return Schedule(program, (), 1, 1, 1, 10.0 / len(asked), 0.0, 1, 1)

    monkeypatch.setattr(cut_review, "make_graph_schedule", make)
    other = OffloadConfig(directory=".", **options)
    graphs = {
        "block": ScheduledGraph(OWN, OffloadConfig(directory="."), {"nvme": LINK}),
        "head": ScheduledGraph(MODEL, other, {"nvme": LINK}),
    }
    assert choose_cuts(graphs, LONG, measured, {"block": {0.5: MODEL}}) == {"block": 0.5}
    return asked


LONG = parse_program("F0 F1 B1")
EVENT, LATER = ("offload", "a"), ("release", "a")
# Forwards of 10 seconds, backwards of 20.
OWN = GraphModel(MODEL.forward, MODEL.scale_seconds(2.0).backward, MODEL.values)
MEASURED = StepMeasurement(
    [
        HalfMeasurement({EVENT: 5.0, LATER: 20.0}, 1.0, 5, 6, {EVENT: 7}, {EVENT: 8}),
        HalfMeasurement({LATER: 20.0}),
        HalfMeasurement({LATER: 40.0}, 2.0),
    ],
    {"nvme": TierFlow(Flow(1, 1.0), Flow(1, 1.0))},
    9,
    Owners(held=frozenset({(0, "a")})),
    price=0.125,
)


def test_cuts_are_compared_at_the_pace_of_the_step(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = plan_cuts(monkeypatch, MEASURED)
    for (graphs, measured), model in zip(asked, (OWN, MODEL), strict=True):
        assert graphs["block"].model == model.scale_seconds(2.0)
        assert graphs["block"].links == {"nvme": replace(LINK, compute_seconds_per_byte=0.125)}
        halves = [HalfMeasurement({}, 1.0, 5, 6), HalfMeasurement({}), HalfMeasurement({}, 2.0)]
        assert measured == replace(MEASURED, halves=halves, owners=Owners())


@pytest.mark.parametrize("stated", [False, True])
def test_cuts_are_compared_by_the_model_without_a_pace(
    monkeypatch: pytest.MonkeyPatch, stated: bool
) -> None:
    unmeasured = StepMeasurement([HalfMeasurement({})] * len(LONG))
    options = {"hardware": SLOW} if stated else {}
    (graphs, _), _ = plan_cuts(monkeypatch, MEASURED if stated else unmeasured, **options)
    assert graphs["block"].model == OWN
    if not stated:
        assert graphs["block"].links["nvme"].compute_seconds_per_byte == 0.0, "no run has shown it"


# --- what it gains ------------------------------------------------------------------------------

GEN4 = 5e9  # Bytes per second that one drive writes.


def plan_blocks(
    models: Models, config: OffloadConfig, links: Mapping[str, Link], cut: Cut, budget_bytes: int
) -> Schedule:
    """A step of twelve blocks."""
    program = make_program(12)
    graph = ScheduledGraph(models[cut], replace(config, memory_budget=budget_bytes), links)
    measured = StepMeasurement([HalfMeasurement({})] * len(program))
    return make_graph_schedule({"block": graph}, program, measured)


@pytest.mark.slow
@pytest.mark.usefixtures("fresh_dynamo")
def test_twelve_blocks_of_a_gpu_under_half_of_their_peak() -> None:
    """The figures of docs/planner.md: steps of a step with nothing moved, by the cost model."""
    with torch.device("meta"):
        model = build_model("gpt", Shape(1, 4096, 32, 8, 1024)).to(torch.bfloat16)
        x = torch.empty(8, 1024, 4096, dtype=torch.bfloat16, requires_grad=True)
    ((block,),) = (each for each in model.modules() if isinstance(each, torch.nn.ModuleList))
    one_drive = Hardware(
        flops_per_second="780TFLOP/s",
        memory_bytes_per_second="2.7TB/s",
        memory_bytes="80GB",
        drive_write_bytes_per_second=GEN4,
        drive_read_bytes_per_second=1.2 * GEN4,
        host_link_bytes_per_second="54GB/s",
        transfer_latency_seconds=0.002,
    )
    config = OffloadConfig(hardware=one_drive, memory_budget=2**50, directory=".")
    traced: list[Models] = []  # What drives there are changes no model.
    partition_without_memory(block, (x,), {}, config, partial(build_tracer, config, traced.append))
    found: dict[int, tuple[float, float]] = {}
    for drives in (1, 4):
        hardware = replace(
            one_drive,
            drive_write_bytes_per_second=drives * GEN4,
            drive_read_bytes_per_second=1.2 * drives * GEN4,
        )
        links = make_cost_model(hardware).links
        plan = partial(plan_blocks, traced[0], replace(config, hardware=hardware), links)
        kept = plan(None, 2**50)
        half = [plan(cut, kept.unmoved_peak_bytes // 2).step_seconds for cut in traced[0]]
        found[drives] = half[0] / kept.step_seconds, min(half) / kept.step_seconds
    assert found[1] == pytest.approx((14.3, 1.14), rel=0.01)
    assert found[4] == pytest.approx((3.6, 1.14), rel=0.01)
