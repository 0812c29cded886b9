"""A program is planned as one step: joined, measured, scheduled."""

from __future__ import annotations

from dataclasses import replace

import pytest
from steps import make_step, make_value

from fxoffload.errors import BudgetError
from fxoffload.ops import OpEvent
from fxoffload.planner.graph_model import GraphModel, build_graph_model
from fxoffload.planner.link import Link
from fxoffload.planner.plan import KEPT
from fxoffload.planner.program import (
    _write_schedule,
    describe_half,
    join_step,
    make_schedule,
)
from fxoffload.planner.selection import choose_transfers
from fxoffload.planner.simulation import Residence, Transfer
from fxoffload.schedule import Half, HalfMeasurement, Program, Schedule

FAST = {"nvme": Link(1e6, 1e6, 0.0)}
SLOW = {"nvme": Link(25.0, 25.0, 0.0)}  # 100 bytes take four nodes.
UNMEASURED = HalfMeasurement({})


def make_model() -> GraphModel:
    """Two values of 100 bytes, a needed first and last; 10 nodes of a second each way."""
    values = [
        make_value("a", born=1, last_use=3, first_use=6, freed=7),
        make_value("b", born=4, last_use=5, first_use=2, freed=3),
    ]
    step = make_step(values, fixed=[Residence("scratch", 7, 2, 2)])
    forward = [(("offload", "a"), 2), (("release", "a"), 4), (("offload", "b"), 5)]
    forward += [(("release", "b"), 6)]
    backward = [(("prefetch", "b"), 2), (("wait", "b"), 2), (("prefetch", "a"), 6)]
    backward += [(("wait", "a"), 6)]
    return build_graph_model(step, forward, backward)


MODEL = make_model()
MODELS = {"block": MODEL}


def make_program(calls: int) -> Program:
    forwards = tuple(Half("block", call, True) for call in range(calls))
    return forwards + tuple(Half("block", call, False) for call in reversed(range(calls)))


def schedule(
    calls: int,
    budget_bytes: int,
    links: dict[str, Link] = FAST,
    measured: list[HalfMeasurement] | None = None,
) -> Schedule:
    program = make_program(calls)
    records = measured or [UNMEASURED] * len(program)
    return make_schedule(program, MODELS, records, links, budget_bytes=budget_bytes)


def test_calls_follow_each_other() -> None:
    program = make_program(2)
    joined = join_step(program, MODELS, [UNMEASURED] * 4)
    step, length = joined.step, len(MODEL.forward.seconds)
    assert step.forward_length == 2 * length
    assert step.seconds == 2 * MODEL.forward.seconds + 2 * MODEL.backward.seconds
    assert joined.values == {
        f"{call}/{name}": (call, name) for call in range(2) for name in ("a", "b")
    }
    found = {value.name: value for value in step.values}
    assert found["1/a"].born == length + found["0/a"].born
    # The backward of the last call comes first.
    backward_length = len(MODEL.backward.seconds)
    assert found["0/b"].first_use == backward_length + found["1/b"].first_use
    positions = [op.position for op in joined.ops]
    assert positions == sorted(positions)
    assert step.stops == tuple(sorted(set(positions)))


def test_seconds_are_those_of_the_clocks() -> None:
    """Between two ops; what was not seen is as modelled."""
    clocks: dict[OpEvent, float] = {("offload", "a"): 0.0, ("release", "a"): 8.0}
    record = HalfMeasurement({**clocks, ("release", "b"): 8.5})
    joined = join_step(make_program(1), MODELS, [record, UNMEASURED])
    (a, first), (b, second) = MODEL.forward.ops[:2]
    assert (a, b) == (("offload", "a"), ("release", "a"))
    assert sum(joined.step.seconds[first:second]) == pytest.approx(8.0)
    last = MODEL.forward.ops[-1][1]
    assert sum(joined.step.seconds[second:last]) == pytest.approx(0.5)
    assert joined.step.seconds[:first] == MODEL.forward.seconds[:first]


def test_what_runs_between_graphs_takes_its_time() -> None:
    head = sum(MODEL.backward.seconds[: MODEL.backward.ops[0][1]])
    tail = sum(MODEL.forward.seconds[MODEL.forward.ops[-1][1] :])
    record = HalfMeasurement({}, gap_seconds=head + tail + 30.0)
    joined = join_step(make_program(1), MODELS, [UNMEASURED, record])
    assert sum(joined.step.seconds) == pytest.approx(20.0 + 30.0)
    shorter = replace(record, gap_seconds=1.0)
    joined = join_step(make_program(1), MODELS, [UNMEASURED, shorter])
    assert sum(joined.step.seconds) == pytest.approx(20.0)


def test_what_is_held_beside_our_values() -> None:
    """By what was seen at the first op of each half, and between the ops."""
    plain = join_step(make_program(1), MODELS, [UNMEASURED] * 2).step.fixed_bytes
    first = HalfMeasurement({}, held_bytes=1000)
    later = HalfMeasurement({}, held_bytes=1300)
    length = len(MODEL.forward.seconds)
    found = join_step(make_program(1), MODELS, [first, later]).step.fixed_bytes
    # Nothing but `a` has been born at the first op, and that is a value of ours.
    assert found[:length] == plain[:length]
    assert found[length:] == tuple(nbytes + 300 + 100 for nbytes in plain[length:])
    event, begin = MODEL.backward.ops[1]
    end = MODEL.backward.ops[2][1]
    seen = replace(later, peak_bytes={event: 5000}, gap_bytes=4000)
    found = join_step(make_program(1), MODELS, [first, seen]).step.fixed_bytes[length:]
    assert found[begin:end] == (5000 - 900,) * (end - begin)
    assert found[0] == 4000 - 900
    assert found[end:] == tuple(nbytes + 400 for nbytes in plain[length + end :])


def test_what_was_born_before_its_op_is_ours() -> None:
    """Between the release of a and the offload of b, b is born."""
    event, begin = MODEL.forward.ops[1]
    end = MODEL.forward.ops[2][1]
    first = HalfMeasurement({}, held_bytes=0, peak_bytes={event: 5000})
    found = join_step(make_program(1), MODELS, [first, UNMEASURED]).step.fixed_bytes
    base = join_step(make_program(1), MODELS, [replace(first, peak_bytes={}), UNMEASURED])
    assert event == ("release", "a")
    assert found[begin:end] == (5000 + 100 - 100,) * (end - begin)
    assert found[:begin] == base.step.fixed_bytes[:begin]


def test_a_budget_that_fits_keeps_all() -> None:
    found = schedule(3, 10_000)
    assert found.moved_bytes == 0
    assert found.saved_bytes == 600
    assert found.peak_bytes == found.unmoved_peak_bytes
    assert all(call.destinations == {"a": "keep", "b": "keep"} for call in found.calls)
    assert not any(call.waits or call.reads for call in found.calls)


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


def parse_program(halves: str) -> Program:
    """Such as F0 F1 B0 B1."""
    return tuple(Half("block", int(half[1:]), half[0] == "F") for half in halves.split())


@pytest.mark.parametrize(
    ("halves", "lengths"),
    [
        ("F0 F1 B1 B0", [(2, 2)]),
        ("F0 F1 B0 B1", [(2, 2)]),
        ("F0 F1 B0 F2 B1 B2", [(2, 1), (1, 2)]),
        ("F0 B0 F1 B1", [(1, 1), (1, 1)]),
    ],
)
def test_phases(halves: str, lengths: list[tuple[int, int]]) -> None:
    program = parse_program(halves)
    step = join_step(program, MODELS, [UNMEASURED] * len(program)).step
    forward, backward = len(MODEL.forward.seconds), len(MODEL.backward.seconds)
    found = [(each.turn - each.start, each.end - each.turn) for each in step.phases]
    assert found == [(f * forward, b * backward) for f, b in lengths]
    assert step.phases[-1].end == len(step.seconds)


def test_a_call_without_a_backward_lives_to_the_end() -> None:
    joined = join_step(parse_program("F0 F1 B1"), MODELS, [UNMEASURED] * 3)
    step = joined.step
    last = len(step.seconds) - 1
    assert step.seconds[last] == 0.0
    for value in step.values:
        call, _ = joined.values[value.name]
        assert (step.first_use(value) == last) is (call == 0)
    for budget in (None, "min", 10_000):
        found = make_schedule(parse_program("F0"), MODELS, [UNMEASURED], FAST, budget_bytes=budget)
        assert found.moved_bytes == (200 if budget == "min" else 0)


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
    assert schedule(3, caught.value.lowest_peak_bytes, measured=measured).peak_bytes > 900


def test_halves_have_names() -> None:
    assert describe_half(Half("block", 2, False)) == "backward of call 2"
