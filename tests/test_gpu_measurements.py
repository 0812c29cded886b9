"""benchmarks/gpu_measurements.py in this process, with a model that is traced in little time."""

from __future__ import annotations

import gzip
import json
import sys
from collections.abc import Iterator
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_model import TinyModel

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import gpu_measurements, gpu_models, gpu_report, variants
from benchmarks.gpu_models import CAPS, GpuWork, list_variants
from benchmarks.variant_tables import Measured
from benchmarks.variants import PLAIN, PLAIN_AGAIN, Variant
from fxoffload import runtime
from fxoffload.cli.byte_models import BUILDERS, Shape

# Peaks that last long enough to be sampled.
SHAPE = Shape(layers=2, hidden=64, heads=2, batch=32, length=64)


@pytest.fixture
def work(
    fresh_dynamo: None, spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[GpuWork]:
    """A CPU, few ways to train the GPT, and a batch of 32 under caps."""
    for name in ("gpt", "bert"):
        monkeypatch.setitem(BUILDERS, name, TinyModel)
    points = PLAIN, PLAIN_AGAIN, Variant("fxoffload"), gpu_models.TRL, Variant("fxoffload", "min")
    methods = PLAIN, Variant("checkpoint"), Variant("fxoffload", 0.5), gpu_models.TRL
    for name, value in {"POINTS": points, "MORE_POINTS": (), "METHODS": methods}.items():
        monkeypatch.setattr(gpu_models, name, value)
    monkeypatch.setattr(gpu_models, "TINY", SHAPE)
    monkeypatch.setattr(GpuWork, "batches", [32])
    limit = torch.compiler.config.recompile_limit
    yield GpuWork("cpu", True, str(spill_directory), spill_directory)
    runtime.close_stores()
    torch.compiler.config.recompile_limit = limit


def read(records: Iterator[dict[str, Any]]) -> dict[str, Any]:
    """A section of what a part prints."""
    return {"status": "ok", "records": [json.loads(json.dumps(record)) for record in records]}


@pytest.mark.slow
def test_points(work: GpuWork, spill_directory: Path) -> None:
    section = read(gpu_measurements.measure_points(work, "gpt", inf))
    found = {item.label: item for item in gpu_report.collect(section)}
    assert list(found) == [each.label for each in list_variants("gpt")]
    trl = found.pop("trl, in blocks")
    assert trl.refused is not None
    assert "needs a GPU" in trl.refused
    assert all(len(item.seconds) == 2 for item in found.values() if item.refused is None)
    lowest, plain = found["fxoffload min"], found["plain"]
    assert 0 < lowest.peak_bytes < 0.8 * plain.peak_bytes
    assert lowest.offloaded_bytes > 0
    timeline = section["records"][-1]
    assert timeline["trace"] == "timeline.json.gz"
    assert json.loads(gzip.decompress((spill_directory / timeline["trace"]).read_bytes()))
    labels = {row["label"] for row in gpu_report.judge_points("gpt", list(found.values()))}
    assert "fxoffload min" in labels


def test_a_way_that_fails_costs_no_other_one(
    work: GpuWork, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def measure_variant(workload: Any, variant: Variant, plain_bytes: int | None) -> Any:
        if variant.share == "min":
            raise RuntimeError("no luck")
        return Measured(variant.label, variant.kind, variant.share, peak_bytes=1), None

    monkeypatch.setattr(variants, "measure_variant", measure_variant)
    records = list(gpu_measurements.measure_points(work, "bert", inf))
    assert [x["label"] for x in records if "label" in x] == [
        each.label for each in list_variants("bert") if each.share != "min"
    ]
    (error,) = (each["error"] for each in records if "error" in each)
    assert error == "fxoffload min: RuntimeError: no luck"
    assert "in measure_variant" in capsys.readouterr().err


def test_without_time_ways_are_refused(work: GpuWork, monkeypatch: pytest.MonkeyPatch) -> None:
    records = list(gpu_measurements.measure_points(work, "gpt", -inf))
    assert {each["refused"] for each in records if "label" in each} == {"no time left"}
    assert records[-1]["error"] == "timeline: fxoffload has no trainer"


@pytest.mark.slow
def test_throughput(work: GpuWork) -> None:
    section = read(gpu_measurements.measure_throughput(work, inf))
    plain, *found = gpu_report.collect(section)
    assert (plain.label, plain.batch, plain.least_cap) == ("plain, batch 32", 32, 1.0)
    assert plain.need_bytes == plain.peak_bytes
    kinds = {item.kind for item in found}
    assert kinds == {"checkpoint", "fxoffload", "trl"}
    assert all(len(item.seconds) == 2 for item in found if item.least_cap is not None)
    record = {"sections": {"throughput": section}}
    (verdict,) = gpu_report.judge(record)
    assert [row["cap"] for row in verdict["caps"]] == CAPS
    assert "the best peer" in verdict["verdict"]


def test_llama_is_compiled_in_blocks_by_all_ways() -> None:
    found = list_variants("llama")
    assert {each.program for each in found} == {"blocks"}
    labels = [each.label for each in found]
    assert len(set(labels)) == len(labels)
    assert [each.program for each in list_variants("gpt") if each.kind == "trl"] == ["blocks"]
    assert asdict(gpu_models.SHAPES["llama"])["length"] == 8192
