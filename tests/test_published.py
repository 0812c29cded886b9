"""Published numbers beside simulated ones: sizes of small models, and the tables of the docs."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from steps import make_step, make_value

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks import llama_forecast, published
from benchmarks.published_models import (
    add_up,
    configure_gpt,
    extrapolate,
    find_layer_input_bytes,
    find_product_bytes,
    trace_two,
)
from benchmarks.runner import RESULTS
from fxoffload import Hardware
from fxoffload.inspection.catalogue import find_hardware
from fxoffload.planner.plan import Origin
from fxoffload.planner.step import Step

DOCS = Path(__file__).parent.parent / "docs"


@pytest.mark.usefixtures("fresh_dynamo")
def test_a_layer_saves_what_the_formula_says() -> None:
    """s b h (34 + 5 a s / h), beside the statistics of two layer norms and their like."""
    hidden, heads, length = 256, 2, 512
    configure = configure_gpt(hidden, heads, length, attention="eager", dropout=0.1)
    two, three = map(add_up, trace_two(configure, 1, length))
    expected = 34 + 5 * heads * length / hidden
    assert (three - two) / (length * hidden) == pytest.approx(expected, rel=2e-3)


def make_step_of_layers(layers: int) -> Step:
    origins = [
        Origin(module="model.embed_tokens", op="embedding"),
        *(Origin(module=f"model.layers.{index}", op="add") for index in range(layers)),
        Origin(module="model.layers.0.mlp", op="mm"),
    ]
    values = [
        replace(make_value(f"v{index}", nbytes=100), origin=origin)
        for index, origin in enumerate(origins)
    ]
    return make_step([*values, replace(make_value("weight", nbytes=7), owned=False)])


def test_sums_of_saved_values_are_extrapolated() -> None:
    steps = [make_step_of_layers(2), make_step_of_layers(3)]
    assert add_up(steps[0]) == 400
    assert extrapolate(steps, find_layer_input_bytes, 8) == 900
    assert extrapolate(steps, find_product_bytes, 8) == 900


def test_forecast_of_a_llama(monkeypatch: pytest.MonkeyPatch) -> None:
    """100 bytes and 50 of each sample, of which 10 hide; 8 of weights."""

    def simulate(_: None, batch: int, *, hardware: Hardware, memory_budget: int | None) -> Any:
        moved = 0 if memory_budget else 10 * batch
        times = {"step_seconds": 2.0, "exposed_seconds": 0.5}
        peak = 100 + 50 * batch - moved
        return SimpleNamespace(peak_bytes=peak, resident_bytes=8, written_bytes=moved, **times)

    monkeypatch.setattr(llama_forecast, "build", lambda config, batch, length: (None, batch))
    monkeypatch.setattr(llama_forecast, "simulate", simulate)
    monkeypatch.setattr(llama_forecast, "RATING_BYTES", 10**9)
    hardware = find_hardware("H100", "Gen5").hardware
    sizes = llama_forecast.find_sizes(lambda _: None)

    def forecast(memory_bytes: int) -> dict[str, Any]:
        memory = replace(hardware, memory_bytes=memory_bytes)
        return llama_forecast.forecast(lambda _: None, sizes, memory)

    found = forecast(407)
    assert found["batch"] == 5
    assert found["peak_bytes"] - found["moved_peak_bytes"] == found["written_bytes"] == 50
    assert found["larger_batch"] == 7
    assert found["exposed"] == 0.25
    assert found["years"] == pytest.approx(4e9 / 50 * 2 / 86400 / 365.25)
    assert forecast(157) == {"batch": 0}
    common = {"model": "8B", "device": "H100", "drive": "Gen5"}
    (table,) = published.tabulate({"forecasts": [{**common, **found}, {**common, "batch": 0}]})
    assert table.rows[-1][2:] == ["none", *[""] * 7]


def test_tables_of_the_docs_are_those_of_the_records() -> None:
    """Each row, by its cells."""
    lines = (DOCS / "benchmarks.md").read_text().splitlines()
    written = {tuple(cell.strip() for cell in line.strip("|").split("|")) for line in lines}
    kept = (RESULTS / "published.jsonl").read_text().splitlines()
    assert kept
    for record in map(json.loads, kept):
        for table in published.tabulate(record):
            for row in table.rows:
                assert tuple(row) in written, row
