"""Blocks recompute where the whole step waits for the drive, which no block by itself does."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from gated_blocks import Block, compile_blocks
from programs import make_program
from torch import Tensor

import fxoffload
from benchmarks.measure import record_memory
from fxoffload.cli.byte_models import Shape, build_model
from fxoffload.config import OffloadConfig
from fxoffload.cost import make_cost_model
from fxoffload.cuts import Models
from fxoffload.hardware import Hardware
from fxoffload.inspection.tracing import partition_without_memory
from fxoffload.planner.link import Link
from fxoffload.planner.plan import Cut
from fxoffload.planning import build_tracer
from fxoffload.runtime import kernels
from fxoffload.schedule import HalfMeasurement, Schedule, StepMeasurement
from fxoffload.step_schedules import ScheduledGraph, make_graph_schedule

MIB = 2**20
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
    x = torch.randn(2048, 512)
    expected = run_step(compile_blocks(6, 512, spill_directory, **options, enabled=False), x)
    blocks = compile_blocks(6, 512, spill_directory, **options)
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
        again = compile_blocks(6, 512, spill_directory, **options)
        for _ in range(2):
            run_step(again, x)
        assert fxoffload.schedules()[0].program == last.program


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

        plan = partial(plan_blocks, traced[0], config, links)
        kept = plan(None, 2**50)
        half = [plan(cut, kept.unmoved_peak_bytes // 2).step_seconds for cut in traced[0]]
        found[drives] = half[0] / kept.step_seconds, min(half) / kept.step_seconds
    assert found[1] == pytest.approx((14.3, 1.14), rel=0.01)
    assert found[4] == pytest.approx((3.6, 1.14), rel=0.01)
