"""A report says of a step what its schedule does, and what was measured of it."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import replace

import pytest
from programs import make_mirrored_model, make_model
from reports import FAST, ORIGIN, SLOW, make_data, make_scheduled

from fxoffload.inspection.report_builder import build_report
from fxoffload.inspection.report_records import Figures, Wear
from fxoffload.ops import OpEvent
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.link import Link
from fxoffload.schedule import Flow, HalfMeasurement, StepMeasurement, TierFlow


def test_the_curve_has_the_predicted_peaks() -> None:
    data = make_data()
    assert max(point.nbytes for point in data.memory) == data.predicted.peak_bytes
    assert data.predicted.peak_bytes is not None
    assert data.predicted.peak_bytes <= 350 < data.unmoved_peak_bytes
    assert max(point.unmoved_bytes for point in data.memory) == data.unmoved_peak_bytes
    seconds = [point.seconds for point in data.memory]
    assert seconds == sorted(seconds)
    assert seconds[-1] < data.predicted.step_seconds
    (peak,) = {p.nbytes for p in data.memory if p.seconds == data.peak_seconds}
    assert peak == data.predicted.peak_bytes


def test_the_holders_are_the_peak() -> None:
    data = make_data()
    assert sum(each.nbytes for each in data.holders) == data.predicted.peak_bytes
    sizes = [each.nbytes for each in data.holders]
    assert sizes == sorted(sizes, reverse=True)
    for each in data.holders:
        if each.call is not None:
            assert (each.module, each.source, each.op) == (ORIGIN.module, ORIGIN.source, ORIGIN.op)
            assert each.name in ("a", "b")


def test_spans_are_halves_transfers_and_waits() -> None:
    data = make_data()
    compute = [span for span in data.spans if span.kind == "compute"]
    assert [(s.call, s.forward) for s in compute] == [
        *((call, True) for call in range(4)),
        *((call, False) for call in reversed(range(4))),
    ]
    assert all(a.end == b.start for a, b in itertools.pairwise(compute))
    waits = sum(span.end - span.start for span in data.spans if span.kind == "wait")
    assert waits == pytest.approx(data.predicted.exposed_seconds)
    assert waits > 0
    assert compute[-1].end == pytest.approx(data.predicted.step_seconds)
    written = sum(span.nbytes for span in data.spans if span.kind == "write")
    assert written == data.moved_bytes > 0


@pytest.mark.parametrize("budget", ["min", "200B", "350B", "500B", None])
@pytest.mark.parametrize("model", [make_model(), make_mirrored_model(3)], ids=["plain", "mirrored"])
def test_spans_end_when_the_step_is_predicted_to(model: GraphModel, budget: str | None) -> None:
    step = make_scheduled(4, SLOW, model=model, memory_budget=budget)
    data = build_report(step)
    compute = [span.end for span in data.spans if span.kind == "compute"]
    assert max(compute) == pytest.approx(step.record.schedule.step_seconds)
    assert data.predicted.step_seconds == step.record.schedule.step_seconds


def test_each_value_of_each_call_has_its_row() -> None:
    data = make_data()
    assert len(data.values) == len({(row.call, row.name) for row in data.values}) == 8
    assert sum(row.nbytes for row in data.values if row.decision == "nvme") == data.moved_bytes
    waits = sum(row.exposed_seconds for row in data.values)
    assert waits == pytest.approx(data.predicted.exposed_seconds)
    for row in data.values:
        assert (row.graph, row.shape, row.dtype) == ("0", "5 x 5", "float32")
        if row.decision == "keep":
            assert row.reason == data.kept_for
            assert row.released is None
            continue
        assert row.reason == "makes room"
        writes = [
            s for s in data.spans if (s.kind, s.call, s.name) == ("write", row.call, row.name)
        ]
        (end,) = [span.end for span in writes]
        assert row.released is not None
        assert row.released >= end
        assert row.prefetched is None or row.prefetched >= end


def test_calls_add_up() -> None:
    data = make_data()
    assert [row.call for row in data.calls] == [0, 1, 2, 3]
    assert sum(row.saved_bytes for row in data.calls) == data.saved_bytes == 800
    assert sum(row.moved_bytes for row in data.calls) == data.moved_bytes
    ends = [(row.backward_start or 0) + (row.backward_seconds or 0) for row in data.calls]
    assert max(ends) == pytest.approx(data.predicted.step_seconds)


def test_links_have_the_bytes_of_a_step() -> None:
    write, read = make_data(link=Link(25.0, 50.0, 0.0)).links
    assert (write.tier, write.direction, read.direction) == ("nvme", "write", "read")
    assert write.nbytes == make_data(link=Link(25.0, 50.0, 0.0)).moved_bytes
    assert write.busy_seconds == pytest.approx(write.nbytes / 25)
    assert read.busy_seconds == pytest.approx(read.nbytes / 50)
    assert 0 < read.nbytes <= write.nbytes, "what is still in memory is not read"


def measure(live_bytes: Mapping[OpEvent, int] | None = None) -> StepMeasurement:
    half = HalfMeasurement({("offload", "a"): 2.0}, 1.0, live_bytes=live_bytes or {})
    empty = HalfMeasurement({})
    flows = {"nvme": TierFlow(Flow(2**23, 2.0, 1), Flow(10, 1.0, 1))}
    return StepMeasurement([half, *[empty] * 7], flows, exposed_seconds=0.5)


def test_what_was_measured_stands_beside() -> None:
    step = make_scheduled(memory_budget=350)
    event = "offload", "a"
    first = HalfMeasurement({}, held_bytes=0)
    assumed = replace(step.record.assumed, halves=[first, *step.record.assumed.halves[1:]])
    record = replace(step.record, steps=7, assumed=assumed, latest=measure({event: 300}))
    data = build_report(replace(step, record=record))
    assert (data.source, data.steps) == ("run", 7)
    points = [p.measured_bytes for p in data.memory if p.measured_bytes is not None]
    # The first op runs behind the birth of 100 bytes, which measured bytes do not count.
    assert points == [400]
    assert data.measured == Figures(400, 3.5, 3.0, 0.5)
    write, read = data.links
    assert write.measured_bytes_per_second == 2**22
    assert read.measured_bytes_per_second is None, "too little to tell"


def test_before_a_run_nothing_is_measured() -> None:
    data = make_data()
    assert (data.source, data.steps, data.measured) == ("prediction", 0, None)
    assert all(point.measured_bytes is None for point in data.memory)
    assert all(link.measured_bytes_per_second is None for link in data.links)


def test_wear_is_that_of_the_drive() -> None:
    moved = make_data().moved_bytes
    seconds = make_data().predicted.step_seconds
    assert make_data().wear == Wear(moved, seconds)
    rated = make_data(endurance=10 * moved).wear
    assert rated is not None
    assert rated.years == pytest.approx(10 * seconds / 86400 / 365.25)
    assert make_data(memory_budget=10_000).wear is None


def test_the_link_decides_what_waits() -> None:
    assert make_data(link=FAST).predicted.exposed_seconds < 0.01
    assert make_data(link=SLOW).predicted.exposed_seconds > 1.0
