"""A report as Chrome trace events, which Perfetto and chrome://tracing open.

One process, with a track for the compute of each thread and, for each tier, one each for offloads,
prefetches, waits of each thread, and the times at which it is idle. Arrows lead from the offload of
a value to its prefetch and to the wait for it. Counters have the bytes that are live; and of
transfers, their bytes in flight, their number in each direction, and their speed.
Source of the format: "Trace Event Format".
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable
from itertools import count, pairwise
from typing import Any

from fxoffload.errors import ReportError
from fxoffload.inspection.report_records import ReportData, Span

Event = dict[str, Any]

PROCESS = 1
# What the tracks call the kinds of spans, in the order of the tracks.
TRACKS = {"write": "offload", "read": "prefetch", "wait": "wait"}
_MICROSECONDS = 1e6


def list_events(data: ReportData) -> list[Event]:
    """All events of the predicted step; timestamps and durations in microseconds."""
    tracks = _number_tracks(data)
    events = [_name("process_name", 0, "fxoffload: predicted step")]
    for name, thread in tracks.items():
        events += [
            _name("thread_name", thread, name),
            _name("thread_sort_index", thread, thread, key="sort_index"),
        ]
    events += [_describe_span(span, tracks[_find_track(span)]) for span in data.spans]
    for tier in data.tiers:
        name = f"idle {tier}"
        events += [
            _make_slice(name, "idle", tracks[name], start, end, {})
            for start, end in data.find_idle(tier)
        ]
    events += _link_transfers(data, tracks)
    events += [
        _make_counter("live bytes", point.seconds, {"live": point.nbytes}) for point in data.memory
    ]
    events += _count_transfers(
        data, "bytes in flight", lambda span: ("in flight", span.nbytes), is_queued=True
    )
    events += _count_transfers(
        data, "queue length", lambda span: (_find_track(span), 1), is_queued=True
    )
    events += _count_transfers(data, "bandwidth, bytes per second", _find_bandwidth)
    return events


def merge_profile(data: ReportData, profile: dict[str, Any]) -> dict[str, Any]:
    """`profile`, a trace of torch.profiler that begins with a step, with the predicted step in it.

    Both have the offload of the value that is written first at the same time. Raises ReportError
    where nothing is written, or where `profile` has no such op.
    """
    first = next((span for span in data.spans if span.kind == "write"), None)
    if first is None:
        raise ReportError("the step moves nothing: its trace has no place in that of a profiler")
    graphs = [call.graph for call in data.calls]
    number = graphs[: first.call].count(graphs[first.call])
    name = f"fxoffload offload {first.name}"
    found = profile.get("traceEvents", ())
    starts = sorted(event["ts"] for event in found if event.get("name") == name)
    if len(starts) <= number:
        raise ReportError(
            f"the profile has {len(starts)} range(s) {name!r} and not {number + 1}: pass one of a "
            "step of this program, as ProfilerActivity.CPU records it"
        )
    shift = starts[number] - _MICROSECONDS * first.start
    process = 1 + max(event["pid"] for event in found if isinstance(event.get("pid"), int))
    moved = [{**event, "ts": event["ts"] + shift, "pid": process} for event in list_events(data)]
    return {**profile, "traceEvents": [*found, *moved]}


def _number_tracks(data: ReportData) -> dict[str, int]:
    names: list[str] = []
    for tier in ("", *data.tiers):
        for kind in ("compute", *TRACKS):
            found = (span for span in data.spans if (span.kind, span.tier) == (kind, tier))
            names += (_find_track(span) for span in found)
        names += [f"idle {tier}"] if tier else []
    return {name: number for number, name in enumerate(dict.fromkeys(names), 1)}


def _find_track(span: Span) -> str:
    name = span.kind if span.kind == "compute" else f"{TRACKS[span.kind]} {span.tier}"
    return name if span.thread is None else f"{name}, thread {span.thread}"


def _name(kind: str, thread: int, value: str | int, *, key: str = "name") -> Event:
    return {"name": kind, "ph": "M", "pid": PROCESS, "tid": thread, "ts": 0, "args": {key: value}}


def _describe_span(span: Span, thread: int) -> Event:
    if span.kind == "compute":
        name = f"{'forward' if span.forward else 'backward'} of call {span.call}"
        args: Event = {"graph": span.name}
    else:
        name, args = f"{TRACKS[span.kind]} {span.call}/{span.name}", {"bytes": span.nbytes}
    return _make_slice(name, span.kind, thread, span.start, span.end, args)


def _make_slice(name: str, kind: str, thread: int, start: float, end: float, args: Event) -> Event:
    return {
        "name": name,
        "cat": kind,
        "ph": "X",
        "pid": PROCESS,
        "tid": thread,
        "ts": _MICROSECONDS * start,
        "dur": _MICROSECONDS * (end - start),
        "args": args,
    }


def _link_transfers(data: ReportData, tracks: dict[str, int]) -> list[Event]:
    """Arrows from each offload to the prefetch and the waits of the same value, in their order."""
    values: dict[tuple[int, str], list[Span]] = defaultdict(list)
    for span in data.spans:
        if span.kind != "compute":
            values[span.call, span.name].append(span)
    numbers = count(1)
    events: list[Event] = []
    for spans in values.values():
        # A wait for a write comes before the read, one for a read behind it.
        for before, after in pairwise(sorted(spans, key=lambda span: (span.start, span.end))):
            number = next(numbers)
            for phase, span in (("s", before), ("f", after)):
                events.append(
                    {
                        "name": "value",
                        "cat": "value",
                        "ph": phase,
                        "id": number,
                        "pid": PROCESS,
                        "tid": tracks[_find_track(span)],
                        "ts": _MICROSECONDS * span.start,
                        # The arrow ends at the slice around it, not at the next one.
                        **({"bp": "e"} if phase == "f" else {}),
                    }
                )
    return events


def _make_counter(name: str, seconds: float, values: dict[str, int]) -> Event:
    return {
        "name": name, "ph": "C", "pid": PROCESS, "tid": 0,
        "ts": _MICROSECONDS * seconds, "args": values,
    }  # fmt: skip


def _find_bandwidth(span: Span) -> tuple[str, int]:
    seconds = span.end - span.start
    return _find_track(span), round(span.nbytes / seconds) if seconds else 0


def _count_transfers(
    data: ReportData,
    name: str,
    weigh: Callable[[Span], tuple[str, int]],
    *,
    is_queued: bool = False,
) -> list[Event]:
    """Counter `name` of the writes and reads under way. weigh: the series of one, and its share.

    is_queued: whether those count that wait for others before them.
    """
    changes: dict[float, Counter[str]] = defaultdict(Counter)
    for span in data.spans:
        if span.kind in ("write", "read"):
            series, share = weigh(span)
            begin = span.start - span.queued_seconds if is_queued else span.start
            changes[begin][series] += share
            changes[span.end][series] -= share
    sums = {series: 0 for change in changes.values() for series in change}
    events: list[Event] = []
    for seconds in sorted(changes):
        sums = {series: value + changes[seconds][series] for series, value in sums.items()}
        events.append(_make_counter(name, seconds, sums))
    return events
