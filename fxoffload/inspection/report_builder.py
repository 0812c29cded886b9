"""Build a report: turn a scheduled step into the records of a report.

ScheduledStep -> join_step -> replay_schedule -> ReportData
"""

from __future__ import annotations

from bisect import bisect_right
from collections import Counter, defaultdict
from dataclasses import dataclass, replace

from fxoffload.endurance import EnduranceProjection
from fxoffload.inspection.report_records import (
    VERSION,
    CallRow,
    Figures,
    LinkRow,
    MemoryPoint,
    ReportData,
    Span,
    ValueRow,
    Wear,
)
from fxoffload.inspection.report_words import find_hints, write_verdict
from fxoffload.planner.joining import JoinedStep, join_step
from fxoffload.planner.link import find_speed
from fxoffload.planner.peak import describe_holders
from fxoffload.planner.plan import SavedValue
from fxoffload.planner.selection import LINK_UTILISATION, derate_links
from fxoffload.planner.simulation import Simulation, simulate
from fxoffload.planner.step import Transfer
from fxoffload.planner.timeline import Timeline, replay_schedule
from fxoffload.schedule import TierFlow
from fxoffload.step_schedules import ScheduledStep, find_models

# Rows of the table of holders.
MAX_HOLDERS = 30


@dataclass(frozen=True, slots=True)
class _Replayed:
    """A step, its transfers, and what the simulation says of them."""

    step: ScheduledStep
    joined: JoinedStep
    transfers: dict[str, Transfer]
    timeline: Timeline
    unmoved: Simulation
    graphs: dict[int, str]

    def find_value(self, name: str) -> tuple[int, str]:
        """Call and name in the graph of a value of the joined step."""
        return self.joined.values[name][0]


def build_report(step: ScheduledStep, ioengine: str = "") -> ReportData:
    """The report of a step. ioengine: the engine that moves its values."""
    found = _replay_step(step)
    record, schedule = step.record, step.record.schedule
    compute_seconds = found.joined.step.compute_seconds
    data = ReportData(
        version=VERSION,
        source="run" if record.steps else "prediction",
        steps=record.steps,
        verdict="",
        ioengine=step.describe_engine(ioengine),
        budget_bytes=schedule.budget_bytes,
        unmoved_peak_bytes=schedule.unmoved_peak_bytes,
        saved_bytes=schedule.saved_bytes,
        moved_bytes=schedule.moved_bytes,
        kept_for=schedule.kept_for,
        predicted=Figures(
            schedule.peak_bytes,
            schedule.step_seconds,
            compute_seconds,
            schedule.exposed_seconds,
        ),
        measured=_sum_measured(found),
        memory=_trace_memory(found),
        peak_seconds=found.timeline.arrivals[found.timeline.simulation.peak_position],
        holders=describe_holders(
            found.joined.step,
            found.timeline.simulation,
            found.transfers,
            found.joined.values,
            found.graphs,
        )[:MAX_HOLDERS],
        spans=_list_spans(found),
        calls=_list_calls(found),
        values=_list_values(found),
        links=_list_links(found),
        wear=None,
        hints=(),
    )
    data = replace(data, wear=_project_wear(step, data))
    return replace(data, verdict=write_verdict(data), hints=find_hints(data))


def _replay_step(step: ScheduledStep) -> _Replayed:
    record, config = step.record, step.config
    assumed = record.assumed
    models = find_models(step.graphs, assumed)
    joined = join_step(record.schedule.program, models, assumed.halves, assumed.owners)
    # As the schedule was made, so that the times are those that it predicts.
    links = derate_links(step.find_links(), LINK_UTILISATION)
    limit = joined.step.find_inflight_cap(config.inflight_bytes)
    transfers, timeline = replay_schedule(joined, record.schedule, links, max_inflight_bytes=limit)
    # Runtime names of graphs are digests: people get the order in which they first ran.
    order = dict.fromkeys(half.graph for half in record.schedule.program)
    numbers = {graph: str(number) for number, graph in enumerate(order)}
    return _Replayed(
        step,
        joined,
        transfers,
        timeline,
        simulate(joined.step, {}, links),
        {half.call: numbers[half.graph] for half in record.schedule.program},
    )


def _sum_measured(found: _Replayed) -> Figures | None:
    measured = found.step.record.latest
    if measured is None:
        return None
    compute = sum(half.seconds for half in measured.halves)
    live, waits = measured.live_bytes, measured.exposed_seconds
    peak_bytes = None if live is None else live - found.joined.base_bytes
    return Figures(peak_bytes, compute + waits, compute, waits)


def _trace_memory(found: _Replayed) -> tuple[MemoryPoint, ...]:
    latest = found.step.record.latest
    measured: dict[int, int] = {}
    if latest is not None:
        seen = {
            (half.call, event): nbytes - found.joined.base_bytes
            for half, each in zip(found.step.record.schedule.program, latest.halves, strict=True)
            for event, nbytes in each.live_bytes.items()
        }
        for op in found.joined.ops:
            nbytes = seen.get((op.call, op.event))
            if nbytes is not None:
                measured[op.position] = max(nbytes, measured.get(op.position, nbytes))
    pairs = zip(found.timeline.simulation.live_bytes, found.unmoved.live_bytes, strict=True)
    return tuple(
        MemoryPoint(found.timeline.arrivals[position], moved, unmoved, measured.get(position))
        for position, (moved, unmoved) in enumerate(pairs)
    )


def _list_spans(found: _Replayed) -> tuple[Span, ...]:
    latest, program = found.step.record.latest, found.step.record.schedule.program
    threads = [None] * len(program) if latest is None else [each.thread for each in latest.halves]
    spans: list[Span] = []
    for ((call, forward), (start, end)), thread in zip(
        _find_halves(found).items(), threads, strict=True
    ):
        graph = found.graphs[call]
        spans.append(Span("compute", call, graph, "", 0, start, end, forward, thread=thread))
    starts = [span.start for span in spans]
    for each in found.timeline.transfers:
        call, name = found.find_value(each.value)
        thread = threads[bisect_right(starts, each.start) - 1] if each.kind == "wait" else None
        spans.append(
            Span(
                each.kind, call, name, each.tier, each.nbytes, each.start, each.end,
                queued_seconds=each.queued_seconds, thread=thread,
            )
        )  # fmt: skip
    return tuple(sorted(spans, key=lambda span: (span.start, span.end)))


def _find_halves(found: _Replayed) -> dict[tuple[int, bool], tuple[float, float]]:
    """Start and end of each half, waits included, by call and whether it is a forward."""
    arrivals, position = found.timeline.arrivals, 0
    halves: dict[tuple[int, bool], tuple[float, float]] = {}
    for half in found.step.record.schedule.program:
        model = found.step.graphs[half.graph].model
        length = len((model.forward if half.forward else model.backward).seconds)
        halves[half.call, half.forward] = arrivals[position], arrivals[position + length]
        position += length
    return halves


def _list_calls(found: _Replayed) -> tuple[CallRow, ...]:
    halves, schedule = _find_halves(found), found.step.record.schedule
    saved, moved, exposed = Counter[int](), Counter[int](), defaultdict[int, float](float)
    for value in found.joined.step.values:
        call, _ = found.find_value(value.name)
        saved[call] += value.nbytes
        moved[call] += value.nbytes if value.name in found.transfers else 0
    for each in found.timeline.transfers:
        if each.kind == "wait":
            exposed[found.find_value(each.value)[0]] += each.end - each.start
    rows: list[CallRow] = []
    for call in range(len(schedule.calls)):
        start, end = halves[call, True]
        back = halves.get((call, False))
        rows.append(
            CallRow(
                call,
                found.graphs[call],
                start,
                end - start,
                None if back is None else back[0],
                None if back is None else back[1] - back[0],
                saved[call],
                moved[call],
                exposed[call],
            )
        )
    return tuple(rows)


def _list_values(found: _Replayed) -> tuple[ValueRow, ...]:
    exposed, reads = defaultdict[str, float](float), dict[str, float]()
    released: dict[str, float] = {}
    for each in found.timeline.transfers:
        if each.kind == "wait":
            exposed[each.value] += each.end - each.start
        elif each.kind == "read":
            reads[each.value] = each.start
        else:
            released[each.value] = each.end
    arrivals, kept_for = found.timeline.arrivals, found.step.record.schedule.kept_for
    rows: list[ValueRow] = []
    for value in found.joined.step.values:
        call, name = found.find_value(value.name)
        transfer, origin = found.transfers.get(value.name), value.origin
        free = None
        if transfer is not None:
            # The memory goes behind the last reader, and behind the write.
            free = max(released[value.name], arrivals[value.last_use + 1])
        rows.append(
            ValueRow(
                call,
                found.graphs[call],
                name,
                origin.module,
                origin.source,
                origin.op,
                origin.shape,
                origin.dtype,
                value.nbytes,
                "keep" if transfer is None else transfer.tier,
                _find_reason(value, transfer, kept_for),
                free,
                reads.get(value.name),
                exposed[value.name],
            )
        )
    return tuple(rows)


def _find_reason(value: SavedValue, transfer: Transfer | None, kept_for: str) -> str:
    if transfer is None:
        return value.refusal or kept_for
    return value.moved_for


def _list_links(found: _Replayed) -> tuple[LinkRow, ...]:
    sums: Counter[tuple[str, str]] = Counter()
    for each in found.timeline.transfers:
        if each.kind != "wait":
            sums[each.tier, each.kind] += each.nbytes
    latest = found.step.record.latest
    rows: list[LinkRow] = []
    for tier, link in found.step.find_links().items():
        seen = TierFlow() if latest is None else latest.flows.get(tier, TierFlow())
        written, read, latency = sums[tier, "write"], sums[tier, "read"], link.latency_seconds
        rows += [
            LinkRow(
                tier, "write", written, link.write_bytes_per_second, link.write_seconds(written),
                find_speed(seen.write, latency),
            ),
            LinkRow(
                tier, "read", read, link.read_bytes_per_second, link.read_seconds(read),
                find_speed(seen.read, latency),
            ),
        ]  # fmt: skip
    return tuple(rows)


def _project_wear(step: ScheduledStep, data: ReportData) -> Wear | None:
    written = sum(r.nbytes for r in data.links if (r.tier, r.direction) == ("nvme", "write"))
    if not written:
        return None
    seconds = (data.measured or data.predicted).step_seconds
    rating = step.config.endurance_bytes
    if rating is None or not seconds:
        return Wear(written, seconds)
    return Wear(written, seconds, rating, EnduranceProjection(written, seconds, rating).years)
