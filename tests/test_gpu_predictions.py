"""benchmarks/gpu_predictions.py on a model of one small layer."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import gpu_predictions
from benchmarks.simulated import Workload
from benchmarks.variants import PLAIN, Variant
from fxoffload import simulate
from fxoffload.cli.byte_models import Shape

SHAPE = Shape(1, 256, 2, 16, 512)


def test_predictions_are_those_of_simulate(
    fresh_dynamo: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    output = tmp_path / "predicted.json"
    variants = [PLAIN, Variant("fxoffload"), Variant("fxoffload", "min"), Variant("trl")]
    variants += [Variant("fxoffload", 0.01), Variant("recompute", 0.0)]
    monkeypatch.setattr(gpu_predictions, "list_variants", lambda model: variants)
    monkeypatch.setattr(gpu_predictions, "SHAPES", {"gpt": SHAPE})
    kept = {"model": "bert", "label": "plain", "peak": 1.0, "step": 1.0}
    old = {**kept, "model": "gpt"}
    output.write_text(json.dumps({"rows": [kept, old]}))
    gpu_predictions.main(["--models", "gpt", "--output", str(output)])
    record = json.loads(output.read_text())
    first, *rows = record["rows"]
    assert first == kept
    assert record["hardware"]["flops_per_second"] == 770e12
    plain, free, lowest, refused, recompute, checkpoint = rows
    assert [row["label"] for row in rows] == [
        "plain",
        "fxoffload",
        "fxoffload min",
        "fxoffload 0.01",
        "recompute 0.0",
        "checkpoint",
    ]
    workload = Workload("gpt", SHAPE, "H200")
    model, tokens = workload.build()
    keep, best = (
        simulate(model, tokens, hardware=workload.hardware, memory_budget=budget)
        for budget in (2**60, "min")
    )
    assert plain["peak_bytes"] == keep.peak_bytes
    assert (plain["peak"], plain["step"]) == (1.0, 1.0)
    assert lowest["peak"] == best.peak_bytes / keep.peak_bytes < free["peak"] <= 1.0
    assert lowest["step"] == pytest.approx(best.step_seconds / keep.step_seconds)
    assert refused["step"] is None
    assert refused["peak"] > 0.01
    for row in (recompute, checkpoint):
        # With one layer, what is computed again is as large as what it frees.
        assert 0.5 < row["peak"] < 1.5
        assert 1.0 < row["step"] < 2.0
