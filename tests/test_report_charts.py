"""The drawings stand where the numbers are."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
from reports import make_data

from fxoffload.inspection.report_charts import (
    GAP,
    HEIGHT,
    MAX_POINTS,
    WIDTH,
    _thin,
    draw_memory,
    draw_timeline,
    find_ceiling,
)
from fxoffload.inspection.report_records import Figures, MemoryPoint
from fxoffload.sizes import MIB


def find_points(kind: str, drawn: str) -> list[tuple[float, float]]:
    (text,) = re.findall(rf'class="{kind}" points="([^"]+)"', drawn)
    return [(float(x), float(y)) for x, y in (pair.split(",") for pair in text.split())]


def test_curves_budget_and_measured_points() -> None:
    memory = (MemoryPoint(0.0, 0, 0), MemoryPoint(1.0, 4 * MIB, 8 * MIB, 6 * MIB))
    data = replace(
        make_data(),
        budget_bytes=2 * MIB,
        unmoved_peak_bytes=8 * MIB,
        predicted=Figures(4 * MIB, 2.0, 2.0, 0.0),
        memory=memory,
    )
    drawn = draw_memory(data)
    assert find_points("moved", drawn) == [(0.0, HEIGHT), (WIDTH / 2, HEIGHT / 2)]
    assert find_points("unmoved", drawn) == [(0.0, HEIGHT), (WIDTH / 2, 0.0)]
    assert find_points("budget", drawn) == [(0.0, 75.0), (WIDTH, 75.0)]
    assert find_points("measured", drawn) == [(500.0, 25.0), (500.0, 25.0)]
    assert re.findall(r"<span>([\d.]+) MiB</span>", drawn) == ["8", "6", "4", "2", "0"]
    times = ["0", "500", "1000", "1500", "2000 ms"]
    assert re.findall(r"<span>([\d.]+(?: ms)?)</span>", drawn) == times
    assert "budget" not in draw_memory(replace(data, budget_bytes=None))


def test_a_bar_for_each_span_at_its_time() -> None:
    data = make_data()
    drawn = draw_timeline(data)
    bars = re.findall(r'<rect class="(\w+)" x="([\d.]+)" y="0" width="([\d.]+)"', drawn)
    idle = data.find_idle("nvme")
    assert len(bars) == len(data.spans) + len(idle)
    end = data.predicted.step_seconds
    first = next(span for span in data.spans if span.kind == "write")
    (_kind, left, width) = next(bar for bar in bars if bar[0] == "write")
    assert float(left) == pytest.approx(WIDTH * first.start / end, abs=0.01)
    assert float(width) == pytest.approx(WIDTH * (first.end - first.start) / end - GAP, abs=0.01)
    labels = re.findall(r'<div class="label">([^<]+)<', drawn)
    assert labels == ["compute", "offload nvme", "prefetch nvme", "wait nvme", "idle nvme"]
    drawn_idle = [(float(left), float(width)) for kind, left, width in bars if kind == "idle"]
    expected = [(WIDTH * start / end, WIDTH * (stop - start) / end) for start, stop in idle]
    for found, (left, width) in zip(drawn_idle, expected, strict=True):
        assert found == pytest.approx((left, width - GAP if width > 4 * GAP else width), abs=0.01)


def test_names_are_escaped() -> None:
    data = make_data()
    spans = tuple(replace(span, name='<b>"&') for span in data.spans)
    drawn = draw_timeline(replace(data, spans=spans))
    assert "<b>" not in drawn
    assert "&lt;b&gt;" in drawn


@pytest.mark.parametrize(
    ("number", "ceiling"),
    [
        (0, 1),
        (1, 1),
        (1.1, 1.2),
        (8, 8),
        (8.1, 10),
        (52, 60),
        (101, 120),
        (0.031, 0.032),
        (1874, 2000),
    ],
)
def test_ceilings_are_round(number: float, ceiling: float) -> None:
    assert find_ceiling(number) == pytest.approx(ceiling)


def test_a_long_curve_keeps_its_peak() -> None:
    memory = [MemoryPoint(float(index), index % 7, 0) for index in range(10 * MAX_POINTS)]
    memory[777] = MemoryPoint(777.0, 99, 0)
    points = _thin(memory)
    assert len(points) <= MAX_POINTS
    assert MemoryPoint(777.0, 99, 0) in points
    seconds = [point.seconds for point in points]
    assert seconds == sorted(seconds)
    assert _thin(memory[:9]) == memory[:9]
