"""The trace of a report is well-formed: Perfetto drops what is not, and says nothing."""

from __future__ import annotations

from collections import Counter, defaultdict
from dataclasses import replace
from typing import Any

import pytest
from reports import FAST, make_data, make_deep_data, make_scheduled

from fxoffload.errors import ReportError
from fxoffload.inspection.report_builder import build_report
from fxoffload.inspection.report_records import ReportData
from fxoffload.inspection.report_trace import Event, list_events, merge_profile
from fxoffload.planner.link import Link
from fxoffload.planner.selection import LINK_UTILISATION
from fxoffload.schedule import HalfMeasurement, StepMeasurement


def select(data: ReportData, phase: str) -> list[Event]:
    return [event for event in list_events(data) if event["ph"] == phase]


def test_every_event_has_its_keys() -> None:
    for event in list_events(make_data()):
        assert {"name", "ph", "ts", "pid", "tid"} <= event.keys()
        assert event["ph"] in "XMCsf"
        assert event["ts"] >= 0
        assert event["ph"] != "X" or event["dur"] >= 0


def test_each_track_has_a_name_and_its_spans() -> None:
    data = make_data()
    names = {e["tid"]: e["args"]["name"] for e in select(data, "M") if e["name"] == "thread_name"}
    assert list(names.values()) == [
        "compute", "offload nvme", "prefetch nvme", "wait nvme", "idle nvme",
    ]  # fmt: skip
    found = defaultdict[str, int](int)
    for event in select(data, "X"):
        found[names[event["tid"]]] += 1
    kinds = [span.kind for span in data.spans]
    assert found == {
        "compute": kinds.count("compute"),
        "offload nvme": kinds.count("write"),
        "prefetch nvme": kinds.count("read"),
        "wait nvme": kinds.count("wait"),
        "idle nvme": len(data.find_idle("nvme")),
    }
    assert all(found.values())


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (make_deep_data(layers=3), {("write", "wait"), ("wait", "read"), ("read", "wait")}),
        (make_data(link=FAST), {("write", "read")}),
    ],
    ids=["slow", "fast"],
)
def test_arrows_pair_and_go_forward_from_slice_to_slice(
    data: ReportData, expected: set[tuple[str, str]]
) -> None:
    slices = {(e["tid"], e["ts"]): e["cat"] for e in select(data, "X")}
    starts = {event["id"]: event for event in select(data, "s")}
    ends = {event["id"]: event for event in select(data, "f")}
    assert starts.keys() == ends.keys()
    assert len(starts) == len(select(data, "s")) > 0
    pairs: set[tuple[str, str]] = set()
    for number, start in starts.items():
        end = ends[number]
        assert start["ts"] <= end["ts"]
        assert end["bp"] == "e"
        pairs.add((slices[start["tid"], start["ts"]], slices[end["tid"], end["ts"]]))
    assert expected <= pairs


def test_counters_are_never_negative_and_end_at_nothing() -> None:
    data = make_data(link=Link(25.0, 50.0, 0.0))
    values: dict[str, list[dict[str, int]]] = defaultdict(list)
    for event in select(data, "C"):
        assert min(event["args"].values()) >= 0
        values[event["name"]].append(event["args"])
    assert max(each["live"] for each in values["live bytes"]) == data.predicted.peak_bytes
    bandwidth = values["bandwidth, bytes per second"]
    assert values["bytes in flight"][-1] == {"in flight": 0}
    assert bandwidth[-1] == values["queue length"][-1] == {"offload nvme": 0, "prefetch nvme": 0}
    for series, speed in (("offload nvme", 25.0), ("prefetch nvme", 50.0)):
        used = speed * LINK_UTILISATION
        assert max(each[series] for each in bandwidth) == pytest.approx(used, abs=0.5)


def test_what_waits_in_a_queue_is_counted() -> None:
    """From when a transfer is asked for to its end: of one direction, only one at a time moves."""
    data = make_data()
    series = {"write": "offload nvme", "read": "prefetch nvme"}
    moves = [span for span in data.spans if span.kind in series]
    longest = 0
    for event in select(data, "C"):
        if event["name"] not in ("queue length", "bytes in flight"):
            continue
        now = [s for s in moves if 1e6 * (s.start - s.queued_seconds) <= event["ts"] < 1e6 * s.end]
        if event["name"] == "bytes in flight":
            assert event["args"] == {"in flight": sum(span.nbytes for span in now)}
            continue
        kinds = Counter(span.kind for span in now)
        assert event["args"] == {series[kind]: kinds[kind] for kind in series}
        longest = max(longest, *kinds.values(), 0)
    assert longest > 1


def test_compute_and_waits_have_tracks_by_thread() -> None:
    """As it was measured: of a GPU, another thread runs the backwards."""
    step = make_scheduled(memory_budget=350)
    halves = [
        HalfMeasurement({}, thread=11 if half.forward else 22)
        for half in step.record.schedule.program
    ]
    data = build_report(replace(step, record=replace(step.record, latest=StepMeasurement(halves))))
    names = {e["tid"]: e["args"]["name"] for e in select(data, "M") if e["name"] == "thread_name"}
    assert list(names.values()) == [
        "compute, thread 11", "compute, thread 22", "offload nvme", "prefetch nvme",
        "wait nvme, thread 11", "wait nvme, thread 22", "idle nvme",
    ]  # fmt: skip
    turn = min(row.backward_start for row in data.calls if row.backward_start is not None)
    for event in select(data, "X"):
        if event["cat"] in ("compute", "wait"):
            thread = 11 if event["ts"] < 1e6 * turn else 22
            assert names[event["tid"]].endswith(f", thread {thread}")


def make_profile(name: str, *starts: float) -> dict[str, Any]:
    """As torch.profiler writes it: processes are numbers, or names."""
    events = [{"name": name, "ph": "X", "pid": 7, "tid": 7, "ts": ts, "dur": 5.0} for ts in starts]
    return {"schemaVersion": 1, "traceEvents": [{"name": "x", "ph": "M", "pid": "a"}, *events]}


def test_a_profile_and_the_prediction_agree_on_the_first_offload() -> None:
    data = make_data()
    first = next(span for span in data.spans if span.kind == "write")
    # The same graph ran twice before the call that moves first.
    later = tuple(replace(each, call=each.call + 2) for each in data.spans)
    for spans, starts in ((data.spans, (5e9,)), (later, (1.0, 2.0, 5e9))):
        changed = replace(data, spans=spans)
        profile = make_profile(f"fxoffload offload {first.name}", *starts)
        merged = merge_profile(changed, profile)
        assert merged["schemaVersion"] == 1
        assert merged["traceEvents"][: len(starts) + 1] == profile["traceEvents"]
        ours = merged["traceEvents"][len(starts) + 1 :]
        assert {event["pid"] for event in ours} == {8}
        assert len(ours) == len(list_events(changed))
        assert min(e["ts"] for e in ours if e.get("cat") == "write") == pytest.approx(5e9)


def test_a_profile_of_something_else_is_refused() -> None:
    with pytest.raises(ReportError, match=r"0 range\(s\) 'fxoffload offload a' and not 1"):
        merge_profile(make_data(), make_profile("fxoffload offload other", 1.0))
    with pytest.raises(ReportError, match="moves nothing"):
        merge_profile(make_data(memory_budget=10_000), make_profile("fxoffload offload a", 1.0))
