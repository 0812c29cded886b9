"""A program is planned as one step: joined, measured, scheduled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from programs import MODEL, MODELS, UNMEASURED, make_program, parse_program

from fxoffload.errors import BudgetError
from fxoffload.ops import OpEvent
from fxoffload.planner.joining import join_step
from fxoffload.planner.link import Link
from fxoffload.planner.plan import KEPT
from fxoffload.planner.program import _write_schedule, make_schedule
from fxoffload.planner.selection import choose_transfers
from fxoffload.planner.step import Transfer
from fxoffload.schedule import Half, HalfMeasurement, Owners, Schedule

FAST = {"nvme": Link(1e6, 1e6, 0.0)}
SLOW = {"nvme": Link(25.0, 25.0, 0.0)}  # 100 bytes take four nodes.


def schedule(
    calls: int,
    budget_bytes: int,
    links: dict[str, Link] = FAST,
    measured: list[HalfMeasurement] | None = None,
) -> Schedule:
    program = make_program(calls)
    records = measured or [UNMEASURED] * len(program)
    return make_schedule(program, MODELS, records, links, budget_bytes=budget_bytes)


def test_a_budget_that_fits_keeps_all() -> None:
    found = schedule(3, 10_000)
    assert found.moved_bytes == 0
    assert found.saved_bytes == 600
    assert found.peak_bytes == found.unmoved_peak_bytes
    assert all(call.destinations == {"a": "keep", "b": "keep"} for call in found.calls)
    assert not any(call.waits or call.reads for call in found.calls)
    assert found.base_bytes == 0
    # `a` has been born at the first op, so that the step began with less than that.
    assert (
        schedule(1, 10_000, measured=[HalfMeasurement({}, held_bytes=0), UNMEASURED]).base_bytes
        == -100
    )


def test_what_must_move_moves_in_each_call() -> None:
    """The program's own wishes, whatever the budget."""
    a, b = MODEL.values
    models = {"block": replace(MODEL, values=(replace(a, must_move=True), b))}
    program = make_program(3)
    found = make_schedule(program, models, [UNMEASURED] * 6, FAST, budget_bytes=10_000)
    assert all(call.destinations == {"a": "nvme", "b": "keep"} for call in found.calls)
    assert found.moved_bytes == 300
    kept = {"block": replace(MODEL, values=(replace(a, refusal=KEPT), b))}
    with pytest.raises(BudgetError, match=r"in use, .* of it kept by the program \(fxoffload"):
        make_schedule(program, kept, [UNMEASURED] * 6, FAST, budget_bytes=300)


@pytest.mark.parametrize("links", [FAST, SLOW], ids=["fast", "slow"])
@pytest.mark.parametrize("budget_bytes", [450, 350, 250])
def test_a_budget_is_kept_by_the_step(budget_bytes: int, links: dict[str, Link]) -> None:
    """Each call by itself takes 207 bytes."""
    found = schedule(4, budget_bytes, links)
    assert found.peak_bytes <= budget_bytes < found.unmoved_peak_bytes
    assert 0 < found.moved_bytes < found.saved_bytes
    order = [(half.call, event) for half in found.program for event, _ in _find_ops(half)]
    for call, each in enumerate(found.calls):
        for name, destination in each.destinations.items():
            waits = _find_places(found, "waits", (call, name))
            reads = _find_places(found, "reads", (call, name))
            if destination == "keep":
                assert not waits
                assert not reads
                continue
            (read,) = reads
            assert order.index(read) <= order.index((call, ("prefetch", name)))
            assert order.index(read) >= len(order) // 2, "no read in the forward"
            assert len(waits) <= 1
            for wait in waits:
                assert order.index(wait) >= order.index((call, ("release", name)))


def _find_ops(half: Half) -> tuple[tuple[OpEvent, int], ...]:
    return MODEL.forward.ops if half.forward else MODEL.backward.ops


def _find_places(
    schedule: Schedule, field: str, value: tuple[int, str]
) -> list[tuple[int, OpEvent]]:
    return [
        (call, event)
        for call, each in enumerate(schedule.calls)
        for event, values in getattr(each, field).items()
        if value in values
    ]


def test_the_peak_never_rises_when_the_budget_falls() -> None:
    peaks = [schedule(6, budget_bytes).peak_bytes for budget_bytes in range(1300, 240, -50)]
    budgets = range(1300, 240, -50)
    assert all(peak <= budget for peak, budget in zip(peaks, budgets, strict=True))


def test_writes_that_outlast_the_forward_are_waited_for_before_reads() -> None:
    """A drive that is slower than foreseen must not raise the peak of the backward."""
    program = make_program(1)
    joined = join_step(program, MODELS, [UNMEASURED] * 2)
    choice = choose_transfers(joined.step, FAST, budget_bytes="min")
    length = joined.step.forward_length
    transfers = {**choice.best.transfers, "0/a": Transfer("nvme", None, length + 4)}
    for written, event in (
        (0, ("prefetch", "b")),
        (length + 1, ("prefetch", "b")),
        (length + 2, ("prefetch", "a")),
        (2 * length, None),
    ):
        simulation = replace(choice.best.simulation, written_positions={"0/a": written})
        best = replace(choice.best, transfers=transfers, simulation=simulation)
        found = _write_schedule(program, joined, replace(choice, best=best), FAST, 1000)
        places = _find_places(found, "waits", (0, "a"))
        assert places == ([] if event is None else [(0, event)])
    early = replace(choice.best.simulation, written_positions={"0/a": 0})
    best = replace(choice.best, transfers=transfers, simulation=early)
    found = _write_schedule(program, joined, replace(choice, best=best), FAST, None)
    assert _find_places(found, "waits", (0, "a")) == [], "no peak is to be kept"


def test_a_read_starts_at_the_first_op_of_its_position() -> None:
    program = make_program(1)
    joined = join_step(program, MODELS, [UNMEASURED] * 2)
    choice = choose_transfers(joined.step, FAST, budget_bytes="min")
    position = joined.step.forward_length + dict(MODEL.backward.ops)["prefetch", "a"]
    transfers = {**choice.best.transfers, "0/a": Transfer("nvme", None, position)}
    best = replace(choice.best, transfers=transfers)
    found = _write_schedule(program, joined, replace(choice, best=best), FAST, 1000)
    assert _find_places(found, "reads", (0, "a")) == [(0, ("prefetch", "a"))]


def test_reads_start_in_other_calls() -> None:
    """A slow drive must begin before the call whose value it is, and ends behind it."""
    found = schedule(4, 450, SLOW)
    order = [(half.call, event) for half in found.program for event, _ in _find_ops(half)]
    late = [
        (call, name)
        for call, each in enumerate(found.calls)
        for name in each.destinations
        for wait in _find_places(found, "waits", (call, name))
        if order.index(wait) > order.index((call, ("release", name)))
    ]
    assert late, "a write hides behind what follows its release"
    early = [
        (call, value)
        for call, each in enumerate(found.calls)
        for values in each.reads.values()
        for value in values
        if value[0] != call
    ]
    assert early


@pytest.mark.parametrize("links", [FAST, SLOW], ids=["fast", "slow"])
@pytest.mark.parametrize("halves", ["F0 F1 F2 F3", "F0 F1 F2 B2 B1"])
def test_values_that_nothing_reads_leave_where_a_budget_says_so(
    halves: str, links: dict[str, Link]
) -> None:
    """For ever: they are garbage of which nobody knows when it goes."""
    program = parse_program(halves)
    unmeasured = [UNMEASURED] * len(program)
    unread = {half.call for half in program} - {h.call for h in program if not h.forward}
    free = make_schedule(program, MODELS, unmeasured, links, budget_bytes=None)
    assert all(
        destination == "keep" for call in unread for destination in _find_destinations(free, call)
    )
    all_bytes = make_schedule(program, MODELS, unmeasured, links, budget_bytes=10_000)
    assert all_bytes.moved_bytes == 0
    lowest = make_schedule(program, MODELS, unmeasured, links, budget_bytes="min")
    assert lowest.peak_bytes == 107
    for budget_bytes in range(240, free.unmoved_peak_bytes, 40):
        found = make_schedule(program, MODELS, unmeasured, links, budget_bytes=budget_bytes)
        assert found.peak_bytes <= budget_bytes
        assert any("nvme" in _find_destinations(found, call) for call in unread)
        read = {value for call in found.calls for each in call.reads.values() for value in each}
        assert not {call for call, _ in read} & unread


def _find_destinations(schedule: Schedule, call: int) -> list[str]:
    return list(schedule.calls[call].destinations.values())


def test_values_that_nothing_reads_live_as_long_as_they_were_seen_to() -> None:
    """As the first forward of a checkpoint, whose values die before the next half begins."""
    program = parse_program("F0 F1 B1")
    died = HalfMeasurement({}, last_half=0)
    found = make_schedule(
        program, MODELS, [died, UNMEASURED, UNMEASURED], FAST, budget_bytes=10_000
    )
    assert found.unmoved_peak_bytes == schedule(1, 10_000).unmoved_peak_bytes
    longer = [replace(died, last_half=1), UNMEASURED, UNMEASURED]
    found = make_schedule(program, MODELS, longer, FAST, budget_bytes=10_000)
    assert found.unmoved_peak_bytes == schedule(2, 10_000).unmoved_peak_bytes


def test_what_another_call_reads_comes_back() -> None:
    """A tensor that two calls save, one of which nothing reads, goes to the other one only."""
    program = parse_program("F0 F1 B1")
    owners = Owners(shared=(((0, "b"), (1, "a")),))
    found = make_schedule(
        program, MODELS, [UNMEASURED] * 3, FAST, budget_bytes="min", owners=owners
    )
    assert found.calls[0].destinations == found.calls[1].destinations == {"a": "nvme", "b": "nvme"}
    assert not found.calls[0].passes
    assert not found.calls[1].passes
    read = [value for call in found.calls for values in call.reads.values() for value in values]
    assert sorted(read) == [(1, "a"), (1, "b")]


@pytest.mark.parametrize("links", [FAST, SLOW], ids=["fast", "slow"])
@pytest.mark.parametrize("halves", ["F0 F1 B0 F2 B1 F3 B2 B3", "F0 F1 F2 B0 F3 B1 B2 B3"])
def test_a_budget_is_kept_by_interleaved_steps(halves: str, links: dict[str, Link]) -> None:
    """Each value is written before the op that the budget needs it at, and read before its use."""
    program = parse_program(halves)
    unmeasured = [UNMEASURED] * len(program)
    order = [(half.call, event) for half in program for event, _ in _find_ops(half)]
    free = make_schedule(program, MODELS, unmeasured, links, budget_bytes=None)
    assert free.exposed_seconds == 0.0
    for budget_bytes in range(240, free.unmoved_peak_bytes, 40):
        found = make_schedule(program, MODELS, unmeasured, links, budget_bytes=budget_bytes)
        assert found.peak_bytes <= budget_bytes
        for call, each in enumerate(found.calls):
            for name, destination in each.destinations.items():
                reads = _find_places(found, "reads", (call, name))
                waits = _find_places(found, "waits", (call, name))
                assert len(reads) == (destination != "keep")
                for read in reads:
                    assert order.index((call, ("release", name))) < order.index(read)
                    assert order.index(read) <= order.index((call, ("wait", name)))
                for wait in waits:
                    assert order.index(wait) >= order.index((call, ("release", name)))
                    assert order.index(wait) <= order.index((call, ("wait", name)))


def test_a_budget_error_speaks_of_calls() -> None:
    measured = [HalfMeasurement({}, held_bytes=0)] * 3
    measured += [HalfMeasurement({}, held_bytes=900)] * 3
    words = r"a step of 3 call\(s\) of 1 graph\(s\): .* where backward of call"
    with pytest.raises(BudgetError, match=words) as caught:
        schedule(3, 300, measured=measured)
    assert caught.value.lowest_peak_bytes > 900
    assert {each.call for each in caught.value.holders} == {2, None}, (
        "its values, and what is fixed"
    )
    assert schedule(3, caught.value.lowest_peak_bytes, measured=measured).peak_bytes > 900


def test_what_several_calls_save_moves_once_and_is_passed_on() -> None:
    program = make_program(2)
    owners = Owners(shared=(((0, "b"), (1, "a")),))
    found = make_schedule(
        program, MODELS, [UNMEASURED] * 4, FAST, budget_bytes="min", owners=owners
    )
    first, second = found.calls
    assert first.destinations == second.destinations == {"a": "nvme", "b": "nvme"}
    assert (found.moved_bytes, found.saved_bytes) == (300, 300)
    assert second.passes == {"a": (0, "b")}
    assert first.passes == {}
    read = [value for call in found.calls for values in call.reads.values() for value in values]
    assert sorted(read) == [(0, "a"), (1, "a"), (1, "b")]
    waited = [value for call in found.calls for values in call.waits.values() for value in values]
    assert (0, "b") not in waited, "its ticket is that of the other call"
    kept = make_schedule(
        program, MODELS, [UNMEASURED] * 4, FAST, budget_bytes=10_000, owners=owners
    )
    assert kept.calls[0].destinations == kept.calls[1].destinations == {"a": "keep", "b": "keep"}
    assert not kept.calls[1].passes
    assert kept.saved_bytes == 300
