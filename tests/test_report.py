"""Reports of programs that run, and of models before they do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import gated_blocks
import pytest
import torch
from gated_blocks import Block, compile_blocks
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

import fxoffload
from benchmarks.measure import record_memory
from fxoffload.runtime.program.learned import MEASURED_EACH
from fxoffload.sizes import MIB

pytestmark = [
    pytest.mark.samples_memory,
    pytest.mark.usefixtures("fresh_dynamo", "one_thread", "fresh_programs", "one_cut"),
]

ROWS, WIDTH, BLOCKS = 2048, 256, 3
BEFORE = {"compiler": "eager", "min_bytes": 1, "memory_budget": "min"}
VALUE_BYTES = ROWS * WIDTH * 4  # Of each result: 2 MiB.


def make_blocks(directory: Path, **options: Any) -> list[Block]:
    return compile_blocks(BLOCKS, WIDTH, directory, **options)


def run_step(blocks: list[Block], x: Tensor) -> None:
    y = x
    for block in blocks:
        y = block(y)
    y.square().mean().backward()
    for block in blocks:
        block.zero_grad()


def run_until_measured(blocks: list[Block], x: Tensor) -> fxoffload.Report:
    for _ in range(3):
        run_step(blocks, x)
    for _ in range(4 * MEASURED_EACH):
        run_step(blocks, x)
        report = fxoffload.report()
        if report.measured is not None and report.measured.peak_bytes is not None:
            return report
    raise AssertionError("no step that followed the schedule was measured and sampled")


@pytest.mark.parametrize("budget", [16 * MIB, "min"], ids=["budget", "min"])
def test_a_running_job(spill_directory: Path, tmp_path: Path, budget: int | str) -> None:
    blocks = make_blocks(spill_directory, memory_budget=budget, endurance="600TBW")
    x = torch.randn(ROWS, WIDTH)
    report = run_until_measured(blocks, x)
    (schedule,) = fxoffload.schedules()
    assert report.source == "run"
    assert report.steps >= 3
    assert report.predicted.peak_bytes == schedule.peak_bytes
    assert max(point.nbytes for point in report.memory) == schedule.peak_bytes
    assert max(point.unmoved_bytes for point in report.memory) == schedule.unmoved_peak_bytes
    assert report.budget_bytes == (budget if budget != "min" else None)
    assert 0 < report.moved_bytes == schedule.moved_bytes
    waits = sum(row.exposed_seconds for row in report.values)
    assert waits == pytest.approx(schedule.exposed_seconds)
    # What was measured is what an outsider measures, but for a value that a sampler may miss.
    peak_bytes = max(record_memory(lambda: run_step(blocks, x)).peak_bytes for _ in range(3))
    assert report.measured is not None
    assert report.measured.peak_bytes is not None
    assert peak_bytes - 1.5 * VALUE_BYTES < report.measured.peak_bytes < 1.1 * peak_bytes
    assert report.measured.exposed_seconds < report.measured.step_seconds
    assert "posix" in report.ioengine  # Those of the other tests of this process are in it, too.
    check_values(report)
    check_outputs(report, tmp_path)
    check_profile(report, blocks, x, tmp_path)
    assert fxoffload.statistics().live_bytes == 0


def check_values(report: fxoffload.Report) -> None:
    """Each call has its values, with where they come from."""
    assert [row.call for row in report.calls] == [0, 1, 2]
    assert {row.graph for row in report.calls} == {"0", "1"}
    gates = [row for row in report.values if row.module == "gate"]
    assert [row.call for row in gates] == [0, 1, 2]
    for row in gates:
        assert (row.op, row.shape, row.dtype) == ("mm", f"{ROWS} x {WIDTH}", "float32")
        assert row.nbytes == ROWS * WIDTH * 4
        path, line = row.source.rsplit(":", 1)
        assert path == gated_blocks.__file__
        assert "self.gate(x)" in Path(path).read_text().splitlines()[int(line) - 1]
    assert report.wear is not None
    assert report.wear.years is not None


def check_outputs(report: fxoffload.Report, folder: Path) -> None:
    """What it saves is what it says."""
    assert fxoffload.Report.from_json(report.to_json()) == report
    assert isinstance(fxoffload.Report.from_json(report.to_json()), fxoffload.Report)
    assert report.verdict in str(report)
    report.save_html(folder / "report.html")
    assert "<title>fxoffload report</title>" in (folder / "report.html").read_text()
    report.save_trace(folder / "trace.json")
    events = json.loads((folder / "trace.json").read_text())["traceEvents"]
    assert sum(event.get("cat") == "compute" for event in events) == 2 * BLOCKS


def check_profile(report: fxoffload.Report, blocks: list[Block], x: Tensor, folder: Path) -> None:
    """The prediction of a step lies beside what a profiler saw of one."""
    with profile(activities=[ProfilerActivity.CPU]) as profiler:
        run_step(blocks, x)
    seen = folder / "seen.json.gz"
    profiler.export_chrome_trace(str(seen))
    report.save_trace(folder / "both.json", profile=seen)
    events = json.loads((folder / "both.json").read_text())["traceEvents"]
    names = [event["name"] for event in events if event["ph"] == "X"]
    # On a CPU the backward runs in the thread of the forward. The profiler uses the same number.
    (thread,) = {span.thread for span in report.spans if span.kind == "compute"}
    assert {event["tid"] for event in events if event["name"] == "aten::mm"} == {thread}
    assert {"aten::mm", "forward of call 0"} <= set(names)
    writes = [event for event in events if event.get("cat") == "write"]
    first = min(writes, key=lambda event: event["ts"])
    op = f"fxoffload offload {first['name'].rsplit('/', 1)[1]}"
    assert first["ts"] in [event["ts"] for event in events if event["name"] == op]


def test_a_trace_that_no_profiler_wrote(spill_directory: Path) -> None:
    explanation = fxoffload.explain(Block(WIDTH), torch.randn(ROWS, WIDTH), options=BEFORE)
    path = spill_directory / "trace.json"
    for content in (None, "no JSON", "[1]"):
        if content is not None:
            path.write_text(content)
        with pytest.raises(fxoffload.ReportError, match=r"trace\.json is no trace of a profiler"):
            explanation.report().save_trace(spill_directory / "out.json", profile=path)


def test_before_a_run(spill_directory: Path, tmp_path: Path) -> None:
    options = {"directory": spill_directory, "compiler": "eager", "min_bytes": 1}
    explanation = fxoffload.explain(
        Block(WIDTH), torch.randn(ROWS, WIDTH), options={**options, "memory_budget": "min"}
    )
    report = explanation.report()
    assert (report.source, report.measured, report.steps) == ("prediction", None, 0)
    assert explanation.schedule is not None
    assert report.predicted.peak_bytes == explanation.schedule.peak_bytes
    assert report.moved_bytes == explanation.offloaded_bytes > 0
    assert report.verdict.endswith(", as predicted")
    assert report.ioengine == explanation.ioengine
    report.save_html(tmp_path / "report.html")
    assert "predicted before a run" in (tmp_path / "report.html").read_text()


def test_nothing_to_report(spill_directory: Path) -> None:
    words = "no step of this thread has a schedule yet: run at least two steps"
    with pytest.raises(fxoffload.ReportError, match=words):
        fxoffload.report()
    blocks = make_blocks(spill_directory)
    run_step(blocks, torch.randn(ROWS, WIDTH))
    with pytest.raises(fxoffload.ReportError, match=words):
        fxoffload.report()
    small = {"directory": spill_directory, "compiler": "eager", "min_bytes": "1GiB"}
    explanation = fxoffload.explain(Block(WIDTH), torch.randn(8, WIDTH), options=small)
    with pytest.raises(fxoffload.ReportError, match="nothing may move, so that there is no step"):
        explanation.report()


def test_the_latest_program_is_reported(spill_directory: Path) -> None:
    blocks = make_blocks(spill_directory)
    x = torch.randn(ROWS, WIDTH)
    for _ in range(3):
        run_step(blocks, x)
    assert len(fxoffload.report().calls) == BLOCKS
    for _ in range(3):
        run_step(blocks[:2], x)
    assert len(fxoffload.report().calls) == 2
