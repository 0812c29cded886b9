"""The benchmarks of the planner: their verdicts on known numbers, and a tiny run of each."""

from __future__ import annotations

import json
import os
import re
import sys
import time
from collections.abc import Iterator
from concurrent.futures import wait
from dataclasses import asdict
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from in_process import run_in_process
from matplotlib import image
from steps import make_step, make_value

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import (
    batch_search,
    depth,
    layerwise,
    limits,
    planning_time,
    programs,
    rok,
    slow_drive,
    switches,
    throughput,
    variants,
)
from benchmarks.limited_engine import LimitedEngine, limit_drives
from benchmarks.peers import save_to_files
from benchmarks.runner import Table
from benchmarks.simulated import LLAMA, Workload, choose_shape
from benchmarks.trainer import PassRecord
from benchmarks.variant_tables import Kind, Measured
from benchmarks.variants import PLAIN, PLAIN_AGAIN, Variant, drop_folders
from fxoffload import OffloadConfig, machine, simulate
from fxoffload.cli.byte_models import Shape
from fxoffload.planner.link import Link
from fxoffload.planner.step import Residence
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.step_schedules import NOISE_BYTES

SIZES = (
    "--hidden",
    "64",
    "--batch",
    "32",  # Peaks that last long enough to be sampled.
    "--length",
    "64",
    "--threads",
    "1",
    "--min-bytes",
    "16KiB",
)
EAGER = ("--compiler", "eager")


def run(module: ModuleType, directory: Path, *arguments: str) -> dict[str, Any]:
    """The record of a tiny run."""
    output = directory / "results.jsonl"
    places = ("--directory", str(directory), "--output", str(output))
    module.main([*SIZES, *places, *arguments])
    (line,) = output.read_text().splitlines()
    expected = {output, *directory.glob("*.png")}
    expected |= set(directory.glob("fxoffload-memory-*"))  # Where no plan fits.
    assert set(directory.iterdir()) == expected
    return json.loads(line)


def make_measured(kind: Kind, peak: int, *seconds: float, share: float | None = None) -> Measured:
    variant = Variant(kind, share)
    return Measured(variant.label, kind, share, peak_bytes=peak, seconds=list(seconds))


def make_again(*seconds: float) -> Measured:
    return Measured(PLAIN_AGAIN.label, "plain", peak_bytes=101, seconds=list(seconds))


def make_record(*found: Measured) -> dict[str, Any]:
    sizes = {"model": "gpt", "layers": 1, "hidden": 64, "batch": 2, "length": 64, "threads": 1}
    machine = {"cpu": "some", "torch": "2", "compiler": "eager"}
    return {**sizes, **machine, "variants": [asdict(item) for item in found]}


# --- variants -----------------------------------------------------------------------------------


def test_labels() -> None:
    assert PLAIN.label == "plain"
    assert Variant("fxoffload", 0.5).label == "fxoffload 0.5"
    assert Variant("fxoffload", "min", recomputes=False).label == "fxoffload min, moving only"
    assert Variant("fxoffload", checkpoints=True).label == "fxoffload, of checkpoints"


def test_hooks_save_to_files_that_go(tmp_path: Path) -> None:
    x = torch.linspace(-1, 1, 2000).requires_grad_()
    with save_to_files(tmp_path):
        y = x.sin().sum() + x[:10].sin().sum()
    # Ten elements stay in memory.
    assert [path.stat().st_size > 4 * 2000 for path in tmp_path.iterdir()] == [True]
    y.backward()
    expected = x.detach().cos()
    expected[:10] *= 2
    assert torch.equal(x.grad, expected)
    del y
    assert list(tmp_path.iterdir()) == []


@pytest.fixture
def in_process(fresh_dynamo: None, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Path]]:
    """The homes of the caches of what would be fresh processes."""
    with run_in_process(monkeypatch, variants) as homes:
        yield homes


def test_nothing_is_recorded_of_a_model_without_plans() -> None:
    assert PassRecord().lower_bound_bytes == 0


# --- limited drives -----------------------------------------------------------------------------


def test_limited_engine_moves_bytes_at_its_bandwidth() -> None:
    size, count = 2**16, 4
    engine = LimitedEngine(MemoryEngine(None), bytes_per_second=size / 0.05)
    buffers = [memoryview(bytearray([number]) * size) for number in range(count)]
    offsets = [engine.allocate(size) for _ in range(count)]
    start = time.perf_counter()
    futures = [engine.write(view, at) for view, at in zip(buffers, offsets, strict=True)]
    assert not futures[-1].done()
    assert [future.result() for future in futures] == [size] * count
    # It can only be later than that, however busy the machine is.
    assert time.perf_counter() - start >= count * 0.05
    back = memoryview(bytearray(size))
    assert engine.read(back, offsets[2]).result() == size
    assert back == buffers[2]
    engine.close()


def test_a_write_that_did_not_begin_can_be_cancelled() -> None:
    engine = LimitedEngine(MemoryEngine(None), bytes_per_second=2**16 / 0.05)
    view = memoryview(bytearray(2**16))
    offset = engine.allocate(2**16)
    futures = [engine.write(view, offset) for _ in range(3)]
    assert futures[-1].cancel()
    wait(futures)
    engine.close()


def test_plans_know_of_limited_drives(spill_directory: Path) -> None:
    config = OffloadConfig(directory=spill_directory, ioengine="posix")
    full = machine.measure_links(config)["nvme"]
    with limit_drives(1000.0):
        limited = machine.measure_links(config)["nvme"]
    assert (limited.write_bytes_per_second, limited.read_bytes_per_second) == (1000.0, 1000.0)
    assert limited.latency_seconds == full.latency_seconds
    with limit_drives(1e30):
        assert machine.measure_links(config)["nvme"] == full
    assert machine.measure_links(config)["nvme"] == full


# --- verdicts -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seconds", "verdict"),
    [
        ((2.0, 2.0, 2.1, 2.2), "slower"),
        ((1.0, 2.0, 0.9, 1.1), "equal"),
        ((0.9, 0.8, 0.9, 0.7), "faster"),
    ],
)
def test_rok_judges_by_rounds(seconds: tuple[float, ...], verdict: str) -> None:
    rival = make_measured("checkpoint", 50, 1.0, 1.0, 1.0, 1.0)
    item = make_measured("fxoffload", 50, *seconds, share=0.5)
    assert rok.judge(item, rival, 1.0) == verdict
    assert rok.judge(item, rival, 3.0) == "equal"


@pytest.mark.parametrize(("seconds", "noise"), [((1.5, 1.5), 1.5), ((0.5, 0.5), 2.0)])
def test_noise_is_what_tells_plain_from_plain(seconds: tuple[float, ...], noise: float) -> None:
    assert rok.find_noise([make_measured("plain", 101, 1.0, 1.0), make_again(*seconds)]) == noise


def test_rok_names_the_points_that_are_dominated() -> None:
    plain = make_measured("plain", 101, 1.0, 1.0)  # 1 % above is the same peak.
    checkpoint = make_measured("checkpoint", 40, 1.5, 1.5)
    hooks = make_measured("hooks", 30, 9.0, 9.0)
    tight = make_measured("fxoffload", 39, 5.0, 5.0, share=0.4)  # Only hooks get there.
    same = make_measured("fxoffload", 100, 1.2, 1.2, share=1.0)
    slow = make_measured("fxoffload", 60, 1.6, 1.7, share=0.6)
    again = make_again(1.05, 1.05)
    found = [plain, checkpoint, hooks, tight, same, slow, again]
    rivals = [rok.find_best_rival(item, found) for item in (tight, same, slow)]
    assert rivals == [hooks, plain, checkpoint]
    assert rok.conclude(found) == (
        "dominated at 2 of 3 points: fxoffload 1.0 to plain, fxoffload 0.6 to checkpoint"
    )
    refused = make_measured("fxoffload", 0, share=0.1)
    refused.refused = "cannot be met"
    assert rok.conclude([plain, checkpoint, hooks, tight, refused, again]) == (
        "not dominated at any of 1 points, within noise of 5.0%; no plan for 1 more"
    )
    (table,) = rok.tabulate(make_record(*found, refused))
    assert {len(row) for row in table.rows} == {9}
    assert table.rows[-1] == ["fxoffload 0.1: no plan fits", *[""] * 8]
    assert table.rows[4][6:] == ["hooks", "0.556 (0.556 to 0.556)", "faster"]


def test_lines_of_the_picture() -> None:
    lifted = Variant("fxoffload", checkpoints=True)
    found = [make_measured("plain", 9), make_again(), make_measured("fxoffload", 5, share=0.5)]
    found.append(Measured(lifted.label, lifted.kind))
    assert [rok.find_series(item) for item in found] == [
        "plain",
        "plain",
        "fxoffload",
        lifted.label,
    ]


def test_floor_of_a_step() -> None:
    plain = make_measured("plain", 100, 2.0)
    moved = make_measured("fxoffload", 50, 3.0)
    moved.written_bytes, moved.read_bytes = 600, 400
    assert slow_drive.find_floor_seconds(moved, plain, 200.0) == 3.0
    moved.share = 0.5
    assert slow_drive.find_floor_seconds(moved, plain, 200.0) == 5.0
    assert slow_drive.find_floor_seconds(moved, plain, 1000.0) == 2.0


def test_tables_are_markdown(capsys: pytest.CaptureFixture[str]) -> None:
    Table([["a", "long"], ["c", "1"]], "title [4, 8]", "caption").print()
    lines = [line.rstrip() for line in capsys.readouterr().out.splitlines()]
    rows = ["| a | long |", "|---|------|", "| c |    1 |"]
    assert lines == ["title [4, 8]", "", *rows, "", "caption"]


# --- whole runs ---------------------------------------------------------------------------------


TRUTH = ("--program", "whole", "--budgets", "min", "0.95", "0.01", "--rounds", "2", "--layers", "1")


def check_truth(record: dict[str, Any], output: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, lowest, share, refused = record["variants"]
    labels = [item["label"] for item in record["variants"]]
    assert labels == ["plain", "fxoffload min", "fxoffload 0.95", "fxoffload 0.01"]
    assert "cannot be met" in refused["refused"]
    assert refused["seconds"] == []
    assert plain["predicted_peak_bytes"] is None
    for item in (lowest, share):
        assert len(item["seconds"]) == record["rounds"] == 2
        # The logits, an eighth, live to the end of the step for the planner; the caller drops them.
        # Beside a peak this small, Python's own objects count: see step_schedules.NOISE_BYTES.
        assert 0.8 < item["peak_bytes"] / (item["predicted_peak_bytes"] + NOISE_BYTES) < 1.0
        assert item["predicted_seconds"] > 0
        assert abs(item["loss"] - plain["loss"]) < 1e-3
    assert 0 < lowest["offloaded_bytes"] == lowest["written_bytes"]
    # By the nodes of the graph, in which the logits live to the end; the other by what was seen.
    assert 0 < lowest["lower_bound_bytes"] <= 1.2 * lowest["predicted_peak_bytes"]
    assert share["budget_bytes"] == int(0.95 * plain["peak_bytes"])
    assert share["peak_bytes"] <= share["budget_bytes"] + NOISE_BYTES
    printed = capsys.readouterr().out
    assert "no plan fits" in printed
    programs.main(["--report", "--output", str(output)])
    reported = capsys.readouterr().out
    ratio = f"{lowest['peak_bytes'] / lowest['predicted_peak_bytes']:.3f}"
    assert ratio in reported
    assert ratio in printed


def test_predictions_beside_measurements(
    spill_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """In a fresh process, as users run it."""
    record = run(programs, spill_directory, *TRUTH, *EAGER)
    check_truth(record, spill_directory / "results.jsonl", capsys)


def test_rok(
    in_process: list[Path], spill_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = spill_directory / "rok.png"
    points = ("--budgets", "1.5", "--recompute-budgets", "0", "--rounds", "2", "--layers", "1")
    record = run(rok, spill_directory, *points, *EAGER, "--plot", str(plot), "--length", "256")
    assert in_process == [Path(os.environ["XDG_CACHE_HOME"])]
    *others, lifted, again = record["variants"]
    assert again["label"] == "plain, again"
    kinds = [item["kind"] for item in others]
    assert kinds == ["plain", "recompute", "checkpoint", "hooks", "fxoffload"]
    assert lifted["label"] == "fxoffload, of checkpoints"
    # Each is another program: Dynamo has not taken the graph of one for that of the next.
    assert len({item["peak_bytes"] for item in others}) == len(kinds)
    assert lifted["peak_bytes"] <= others[kinds.index("checkpoint")]["peak_bytes"]
    assert all(len(item["seconds"]) == 2 for item in record["variants"])
    assert image.imread(plot).std() > 0
    assert "dominated at" in capsys.readouterr().out


def test_depth(
    in_process: list[Path], spill_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = spill_directory / "depth.png"
    sizes = ("--layers", "1", "--lengths", "32")
    record = run(depth, spill_directory, *EAGER, *sizes, "--plot", str(plot))
    (found,) = record["depths"]
    assert (found["layers"], found["length"], record["length"]) == (1, 32, 64)
    _, _, lowest = found["variants"]
    # By the nodes of the graph, in which the logits live to the end; the other by what was seen.
    assert 0 < lowest["lower_bound_bytes"] <= 1.2 * lowest["predicted_peak_bytes"]
    assert lowest["offloaded_bytes"] > 0
    assert image.imread(plot).std() > 0
    assert re.search(r"gpt: 1 layers x 64, batch \d+ x 32,", capsys.readouterr().out)


def test_slow_drive(
    in_process: list[Path], spill_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shares = ("--shares", "0.1", "--budget", "0.95", "--rounds", "1", "--layers", "1")
    record = run(slow_drive, spill_directory, *shares, *EAGER)
    (drive,) = record["drives"]
    assert drive["bytes_per_second"] == 0.1 * record["hiding_bytes_per_second"]
    plain, _, lowest, *_ = drive["variants"]
    assert record["crossing_bytes"] == 2 * lowest["offloaded_bytes"] > 0
    # The writes alone take that long, whatever else the machine does.
    assert lowest["seconds"][0] >= 0.9 * lowest["written_bytes"] / drive["bytes_per_second"]
    assert lowest["exposed_seconds"] > 0
    labels = [item["label"] for item in drive["variants"]]
    assert labels[-1] == "fxoffload 0.95, moving only"
    assert drive["variants"][-1]["cut"] is None
    assert drive["variants"][-2]["cut"] is not None  # Far cheaper, at that bandwidth.
    assert plain["offloaded_bytes"] == 0
    assert "step / floor" in capsys.readouterr().out


def test_programs(in_process: list[Path], spill_directory: Path) -> None:
    sizes = ("--layers", "2", "--rounds", "1", "--budgets", "min", *EAGER)
    record = run(programs, spill_directory, *sizes, "--microbatches", "2", "--peers", "--beside")
    plain, lowest, beside, *peers = record["variants"]
    assert (plain["label"], lowest["label"]) == ("plain", "fxoffload min")
    assert lowest["peak_bytes"] < 0.8 * plain["peak_bytes"]
    assert lowest["offloaded_bytes"] > 0
    assert len(lowest["seconds"]) == len(plain["seconds"]) == len(beside["seconds"]) == 1
    assert beside["label"] == "beside min"
    assert beside["offloaded_bytes"] == lowest["offloaded_bytes"]
    assert beside["peak_bytes"] == plain["peak_bytes"]
    assert [each["label"] for each in peers] == list(programs.PEERS)
    checkpoint, hooks, copies = (each["peak_bytes"] / plain["peak_bytes"] for each in peers)
    assert checkpoint < 0.9
    assert hooks < 0.9
    assert copies > 0.9, "what is copied within one memory is not freed"


SHARES_OF_PLAIN = {"plain": 1.0, "save_on_cpu": 1.0, "checkpoint": 0.2, "hooks": 0.5}


def test_throughput(
    in_process: list[Path],
    spill_directory: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """The search for batches, with peaks that are in proportion to them, and one second a sample.

    What measures a variant is tested by the other benchmarks.
    """

    def measure_variant(workload: Any, variant: Variant, plain_bytes: int | None) -> Any:
        peak = 100 * workload.shape.batch
        if variant.kind == "fxoffload":
            assert plain_bytes == 400
            peak = min(peak, max(int(variant.share * plain_bytes), 40 * workload.shape.batch))
        else:
            peak = int(peak * SHARES_OF_PLAIN[variant.kind])
        measured = make_measured(variant.kind, peak, share=variant.share)
        return measured, workload.shape.batch

    def time_rounds(trainers: dict[str, int], rounds: int, **_: object) -> Iterator[dict[str, Any]]:
        for number in range(rounds):
            yield {"round": number, "seconds": {label: float(b) for label, b in trainers.items()}}

    monkeypatch.setattr(batch_search, "measure_variant", measure_variant)
    monkeypatch.setattr(batch_search, "time_rounds", time_rounds)
    plot = spill_directory / "throughput.png"
    sizes = ("--batch", "4", "--recompute-budgets", "--rounds", "2", "--layers", "1")
    record = run(throughput, spill_directory, *sizes, "--plot", str(plot))
    assert [(each["label"], len(each["seconds"])) for each in record["variants"]] == [
        ("plain, batch 4", 2),
        ("plain, batch 2", 2),
        ("plain, batch 1", 2),  # Two of plain fit a third of its peak; only one is there.
        ("checkpoint, batch 8", 2),  # 160
        ("checkpoint, batch 4", 2),
        ("checkpoint, batch 2", 2),
        ("save_on_cpu, batch 8", 0),
        ("save_on_cpu, batch 4", 2),
        ("save_on_cpu, batch 2", 2),
        ("save_on_cpu, batch 1", 2),
        ("hooks, batch 8", 2),
        ("hooks, batch 4", 2),
        ("hooks, batch 2", 2),
        ("hooks, batch 1", 2),
        ("fxoffload 1.0, batch 8", 2),
        ("fxoffload 1.0, batch 4", 2),
        ("fxoffload 0.7, batch 8", 0),  # 320 of 280
        ("fxoffload 0.7, batch 4", 2),
        ("fxoffload 0.7, batch 2", 2),
        ("fxoffload 0.5, batch 8", 0),
        ("fxoffload 0.5, batch 4", 2),
        ("fxoffload 0.5, batch 2", 2),
        ("fxoffload 0.35, batch 8", 0),
        ("fxoffload 0.35, batch 4", 0),
        ("fxoffload 0.35, batch 2", 2),
        ("fxoffload 0.35, batch 1", 2),
    ]
    assert image.imread(plot).std() > 0
    told = capsys.readouterr()
    assert re.search(r"\| save_on_cpu +\| +35% \|.*\| +save_on_cpu, batch 1 +\|", told.out)
    assert "compiled 2: plain, batch 2\n" in told.err, "a line for each variant without a terminal"


def test_best_throughput_under_a_cap() -> None:
    def make(kind: Kind, batch: int, peak: int, *seconds: float) -> Measured:
        found = make_measured(kind, peak, *seconds)
        found.label, found.batch = f"{kind}, batch {batch}", batch
        caps = (cap for cap in (0.35, 0.5, 1.0) if peak <= 1010 * cap)
        found.need_bytes, found.least_cap = 1000, next(caps, None)
        return found

    plain = make("plain", 4, 1000, 4.0, 4.0)
    half = make("plain", 2, 505, 2.5, 2.5)  # Within 1 % of the cap.
    large = make("checkpoint", 8, 700, 10.0, 16.0)
    small = make("checkpoint", 4, 400, 5.0, 6.0)
    untimed = make("checkpoint", 16, 900)
    found = [plain, half, large, small, untimed]
    assert throughput.find_best(found, "plain", 1.0) is plain
    assert throughput.find_best(found, "plain", 0.5) is half
    assert throughput.find_best(found, "plain", 0.35) is None
    assert throughput.find_best(found, "checkpoint", 1.0) is small
    record = {**make_record(*found), "caps": [1.0, 0.35], "program": "blocks"}
    (table,) = throughput.tabulate(record)
    assert [row[3] for row in table.rows[1:]] == [
        plain.label,
        "none fits",
        small.label,
        "none fits",
    ]
    assert table.rows[3][-1] == "0.733 (0.667 to 0.800)"


def test_planning_time(spill_directory: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = run(planning_time, spill_directory, "--layers", "2", "--rounds", "2")
    assert record["nodes"] > 200
    assert record["values"] > 20
    assert len(record["seconds"]) == 7
    for seconds in record["seconds"].values():
        assert len(seconds) == 2
        assert min(seconds) > 0
    assert f"{record['nodes']} nodes" in capsys.readouterr().out


@pytest.mark.parametrize("module", [programs, planning_time, rok, throughput, depth, slow_drive])
def test_what_cannot_be_built_is_refused_in_words(
    module: ModuleType, spill_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as stop:
        run(module, spill_directory, "--model", "t5", "--layers", "3")
    assert stop.value.code == 2
    assert "--layers 3 is odd" in capsys.readouterr().err


@pytest.mark.slow
def test_limits(fresh_dynamo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "SHARES", (0.6,))
    monkeypatch.setattr(limits, "ALL_CUTS", (None, "loops"))
    workload = Workload("gpt", Shape(1, 256, 2, 16, 512), "A100")
    rows = limits.forecast_rows(workload)
    free, limited = rows
    model, tokens = workload.build()
    keep, plan = (
        simulate(model, tokens, hardware=workload.hardware, memory_budget=budget)
        for budget in (2**60, None)
    )
    assert free["peak"] == plan.peak_bytes / keep.peak_bytes
    assert free["step"] == plan.step_seconds / keep.step_seconds
    assert (free["budget"], limited["budget"]) == (None, 0.6)
    assert 0.0 < free["any cut"] <= free["moving"] <= free["peak"] <= 1.0
    assert 1.0 <= limited["any cut"] <= limited["moving"]
    assert limited["any cut"] <= limited["step"]
    assert limited["peak"] <= 0.6
    (table,) = limits.tabulate({"rows": rows})
    assert [row[2] for row in table.rows] == ["budget", "none", "0.6"]


def test_schedules_keep_their_budgets_on_other_links(
    fresh_dynamo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(limits, "SHARES", (0.7, 0.01))
    rows = limits.disturb_rows(Workload("gpt", Shape(2, 256, 2, 16, 512), "A100"))
    assert [(row["budget"], row["speed"]) for row in rows] == [(0.7, 0.6), (0.7, 1.0), (0.7, 1.4)]
    assert all(row["peak"] <= 0.7 for row in rows)
    slow, _, fast = rows
    assert slow["step"] > fast["step"] >= 1.0
    assert all(row["same values"] >= 1.0 for row in rows)
    (table,) = limits.tabulate({"rows": rows})
    assert [row[3] for row in table.rows] == ["speed of links", "0.6", "1.0", "1.4"]
    wrong = {**slow, "peak": 0.71, "step": slow["made for"] + 0.04}
    assert len(limits.find_misses({"rows": [wrong]})) == 2
    right = {**slow, "peak": 0.7, "step": slow["made for"] + 0.02}
    assert limits.find_misses({"rows": [right]}) == []


def test_limits_switches_off_one_cause_after_the_other() -> None:
    """Three values of 400 bytes; one hides if it has the whole link, or a part if it may part."""
    values = [make_value(f"v{index}", nbytes=400) for index in range(3)]
    step = make_step(values, fixed=[Residence("t", 800, 9, 12)])
    rows = switches.switch_off(step, {"nvme": Link(80.0, 80.0, 0.0)}, (None, 0.6, 0.01), 2**62)
    free, limited, impossible = rows
    assert (free["plan"], free["all of the bandwidth"], free["values in 8 pieces"]) == (
        1,
        0.8,
        0.825,
    )
    assert free["all four"] == pytest.approx(free["bound"], abs=1e-3)
    assert limited["all four"] == pytest.approx(limited["bound"], abs=1e-3)
    assert limited["plan"] > limited["all of the bandwidth"] > 1.0
    assert impossible["bound"] is impossible["plan"] is None
    common = {"model": "gpt", "device": "A100"}
    found = [{**common, **row} for row in rows]
    (table,) = limits.tabulate({"rows": found})
    assert table.rows[-1][-1] == "none fits"
    assert limits.find_misses({"rows": found}) == []


def test_layerwise_recomputation_beside_plans(fresh_dynamo: None) -> None:
    row = layerwise.compare_layerwise(Workload("t5", Shape(2, 128, 1, 4, 128), "A100"))
    assert 0.2 < row["layerwise"]["peak"] < 1.0
    assert 1.1 < row["layerwise"]["step"] < 1.5
    assert row["plan"]["peak"] <= 1.0
    assert row["with gradients"]["bytes"] > row["bytes"]
    (table,) = limits.tabulate({"rows": [{**row, "as low": 1.5}, {**row, "as low": None}]})
    assert [each[7] for each in table.rows[1:]] == ["1.500", "none fits"]


def test_limits_has_each_model_on_each_device() -> None:
    arguments = limits.LimitArguments(models=("t5", "llama"), devices=("H200", "RTX 4090"))
    found = [(each.label, each.device) for each in limits.list_workloads(arguments)]
    assert found == [
        ("t5 3 x 8192", "H200"),
        ("llama 32 x 4096", "H200"),
        ("t5 4 x 8192", "RTX 4090"),
        ("llama 32 x 4096", "RTX 4090"),
    ]
    assert choose_shape("llama", "A100", 1, 2, 3) == LLAMA
    sizes = [(each.shape.hidden, each.shape.layers) for each in layerwise.list_workloads(("gpt",))]
    assert sizes == list(layerwise.SIZES)


def test_limits_says_where_plans_are_far_from_their_bounds() -> None:
    common = {"model": "gpt", "device": "A100"}
    rows = [
        {**common, "budget": None, "peak": 0.66, "moving": 0.6},
        {**common, "budget": None, "peak": 0.67, "moving": 0.6},
        {**common, "budget": 0.6, "step": 1.03, "moving": 1.0},
        {**common, "budget": 0.6, "step": 1.04, "moving": 1.0},
        {**common, "budget": 0.5, "step": None, "moving": 1.5},
        {**common, "budget": 0.4, "step": 1.2, "moving": None},
    ]
    assert limits.find_misses({"rows": rows}) == [
        "gpt on A100: a peak of 0.670, the bound is 0.600",
        "gpt on A100: a step of 1.040 at 0.6, the bound is 1.000",
        "gpt on A100: a step of none fits at 0.5, the bound is 1.500",
    ]


def test_records_name_no_folders_of_a_machine() -> None:
    said = "16 MiB at 2 GB/s; all that is in memory is in /home/me/.cache/fxoffload/memory.txt"
    expected = "16 MiB at 2 GB/s; all that is in memory is in memory.txt"
    assert drop_folders(said) == expected
