"""A replay tells the same story as the simulation; transfers are read back from a schedule."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from programs import MODELS, UNMEASURED, make_mirrored_model, make_program, parse_program
from steps import draw_step, make_link, make_step, make_value

from fxoffload.ops import OpEvent
from fxoffload.planner.graph_model import GraphModel
from fxoffload.planner.joining import join_step
from fxoffload.planner.link import Link
from fxoffload.planner.placement import place_transfers
from fxoffload.planner.program import make_schedule
from fxoffload.planner.selection import LINK_UTILISATION, derate_links
from fxoffload.planner.simulation import simulate
from fxoffload.planner.step import Transfer
from fxoffload.planner.timeline import replay, replay_schedule
from fxoffload.schedule import CallSchedule, Schedule

LINKS = {
    "fast": Link(1e6, 1e6, 0.0),
    "slow": Link(25.0, 25.0, 0.0),
    "late": Link(50.0, 30.0, 2.0, 0.001),
}
MIRRORED = {"block": make_mirrored_model(3)}


@settings(deadline=None)
@given(data=st.data(), inflight=st.sampled_from([150, 2**62]))
def test_a_replay_is_the_simulation(data: st.DataObject, inflight: int) -> None:
    step = draw_step(lambda low, high: data.draw(st.integers(low, high)))
    links = {
        "nvme": make_link(data.draw(st.integers(1, 9)), data.draw(st.integers(1, 9)), 0.5, 0.1)
    }
    moved = {value.name: "nvme" for value in step.values}
    transfers = place_transfers(step, moved, links)
    simulated = simulate(step, transfers, links, max_inflight_bytes=inflight)
    found = replay(step, transfers, links, max_inflight_bytes=inflight)
    assert found.simulation == simulated
    assert found.arrivals[-1] == simulated.step_seconds
    waits = sum(each.end - each.start for each in found.transfers if each.kind == "wait")
    assert waits == pytest.approx(simulated.exposed_seconds)
    sums = {
        kind: sum(each.nbytes for each in found.transfers if each.kind == kind)
        for kind in ("write", "read")
    }
    assert sums == {"write": simulated.written_bytes, "read": simulated.read_bytes}


def test_times_of_a_value() -> None:
    """Written for 4 s behind node 0, awaited in front of node 2, read for 2 s before node 8."""
    step = make_step([make_value("a", born=0, last_use=1, first_use=3)], forward=5, backward=5)
    transfers = {"a": Transfer("nvme", 2, 6)}
    found = replay(step, transfers, {"nvme": make_link(4, 3)})
    assert [(each.kind, each.start, each.end) for each in found.transfers] == [
        ("write", 1.0, 5.0),
        ("wait", 2.0, 5.0),
        ("read", 9.0, 12.0),
        ("wait", 11.0, 12.0),
    ]
    assert found.simulation.exposed_seconds == 4.0
    assert found.arrivals[-1] == found.simulation.step_seconds == 14.0


def test_a_transfer_queues_behind_those_of_its_direction() -> None:
    """Each is written for 4 s, behind nodes 0 and 1, and read for 3 s in front of node 9."""
    values = [make_value(name, born=born, first_use=4) for born, name in enumerate("ab")]
    step = make_step(values, forward=5, backward=5)
    transfers = {"a": Transfer("nvme", None, 9), "b": Transfer("nvme", None, 9)}
    found = replay(step, transfers, {"nvme": make_link(4, 3)})
    assert [(e.kind, e.value, e.start, e.queued_seconds) for e in found.transfers] == [
        ("write", "a", 1.0, 0.0),
        ("write", "b", 5.0, 3.0),
        ("read", "a", 9.0, 0.0),
        ("read", "b", 12.0, 3.0),
        ("wait", "a", 9.0, 0.0),
        ("wait", "b", 12.0, 0.0),
    ]


@pytest.mark.parametrize("link", LINKS.values(), ids=LINKS)
@pytest.mark.parametrize("budget_bytes", ["min", 250, 350, 450, None])
@pytest.mark.parametrize("halves", ["F0 F1 F2 F3 B3 B2 B1 B0", "F0 B0 F1 B1", "F0 F1 B0 F2 B1 B2"])
@pytest.mark.parametrize("models", [MODELS, MIRRORED], ids=["first_and_last", "mirrored"])
def test_a_schedule_is_read_back(
    link: Link, budget_bytes: int | None, halves: str, models: dict[str, GraphModel]
) -> None:
    """What is read from the ops takes the time and the memory that the schedule states."""
    program = parse_program(halves)
    measured = [UNMEASURED] * len(program)
    links = {"nvme": link}
    schedule = make_schedule(program, models, measured, links, budget_bytes=budget_bytes)
    joined = join_step(program, models, measured)
    used = derate_links(links, LINK_UTILISATION)
    transfers, timeline = replay_schedule(joined, schedule, used)
    moved = sum(v.nbytes for v in joined.step.values if v.name in transfers)
    assert moved == schedule.moved_bytes
    assert timeline == replay(joined.step, transfers, used)
    assert timeline.simulation.peak_bytes == schedule.peak_bytes
    assert timeline.simulation.exposed_seconds == pytest.approx(schedule.exposed_seconds)
    assert timeline.arrivals[-1] == pytest.approx(schedule.step_seconds)


def test_a_schedule_that_keeps_all_has_no_transfers() -> None:
    program = make_program(3)
    measured = [UNMEASURED] * 6
    links = {"nvme": LINKS["fast"]}
    schedule = make_schedule(program, MODELS, measured, links, budget_bytes=10**6)
    joined = join_step(program, MODELS, measured)
    assert replay_schedule(joined, schedule, links)[0] == {}


@pytest.mark.parametrize(
    ("event", "write_seconds", "releases"),
    [
        (("release", "b"), 1.0, True),
        (("prefetch", "b"), 1.0, False),
        (("prefetch", "b"), 20.0, True),
    ],
)
def test_a_wait_in_the_backward_is_a_release_where_it_waits(
    event: OpEvent, write_seconds: float, releases: bool
) -> None:
    """Else it only keeps a late write from the reads: the memory goes when it is written."""
    program = make_program(1)
    joined = join_step(program, MODELS, [UNMEASURED] * 2)
    positions = {op.event: op.position for op in joined.ops}
    reads = {("prefetch", "a"): ((0, "a"),)}
    call = CallSchedule({"a": "nvme", "b": "keep"}, {event: ((0, "a"),)}, reads)
    schedule = Schedule(program, (call,), 1, 1, 1, 1.0, 0.0, 200, 100)
    expected = Transfer("nvme", positions[event] if releases else None, positions["prefetch", "a"])
    found, _ = replay_schedule(joined, schedule, {"nvme": make_link(write_seconds, 1.0)})
    assert found == {"0/a": expected}
