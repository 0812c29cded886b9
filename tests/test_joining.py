"""A program is one step: its halves behind one another, with what was measured of them."""

from __future__ import annotations

from dataclasses import replace

import pytest
from programs import MODEL, MODELS, UNMEASURED, make_program, parse_program

from fxoffload.ops import OpEvent
from fxoffload.planner.joining import describe_half, join_step
from fxoffload.planner.plan import HELD, RETURNED
from fxoffload.schedule import Half, HalfMeasurement, Owners


def test_calls_follow_each_other() -> None:
    program = make_program(2)
    joined = join_step(program, MODELS, [UNMEASURED] * 4)
    step, length = joined.step, len(MODEL.forward.seconds)
    assert step.forward_length == 2 * length
    assert step.seconds == 2 * MODEL.forward.seconds + 2 * MODEL.backward.seconds
    assert joined.values == {
        f"{call}/{name}": ((call, name),) for call in range(2) for name in ("a", "b")
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


def test_seconds_between_two_ops_are_shared_as_modelled() -> None:
    record = HalfMeasurement({("offload", "a"): 0.0, ("offload", "b"): 9.0})
    step = join_step(make_program(1), MODELS, [record, UNMEASURED]).step
    assert MODEL.forward.seconds[2:4] == (2.0, 1.0)
    assert step.seconds[2:4] == (6.0, 3.0)
    # Medians of several steps need not be in the order of the ops.
    record = HalfMeasurement({("offload", "a"): 5.0, ("offload", "b"): 3.0})
    step = join_step(make_program(1), MODELS, [record, UNMEASURED]).step
    assert step.seconds[2:4] == (2.0, 1.0)


@pytest.mark.parametrize("late", range(1, 3))
def test_an_op_that_runs_late_adds_no_time(late: int) -> None:
    """The release of `a` may run at the end of the graph, where Inductor has put it."""
    ops = dict(MODEL.forward.ops)
    events = list(ops)
    clocks = {event: float(index) for index, event in enumerate(events)}
    in_order = join_step(make_program(1), MODELS, [HalfMeasurement(clocks), UNMEASURED])
    clocks[events[late]] = 100.0
    found = join_step(make_program(1), MODELS, [HalfMeasurement(clocks), UNMEASURED])
    assert sum(found.step.seconds) == pytest.approx(sum(in_order.step.seconds))


def test_what_runs_between_graphs_takes_its_time() -> None:
    head = sum(MODEL.backward.seconds[: MODEL.backward.ops[0][1]])
    tail = sum(MODEL.forward.seconds[MODEL.forward.ops[-1][1] :])
    record = HalfMeasurement({}, gap_seconds=head + tail + 30.0)
    joined = join_step(make_program(1), MODELS, [UNMEASURED, record])
    assert sum(joined.step.seconds) == pytest.approx(20.0 + 30.0)
    none = join_step(make_program(1), MODELS, [UNMEASURED, replace(record, gap_seconds=0.0)])
    assert sum(none.step.seconds) == pytest.approx(20.0), "it was not measured"


def test_between_graphs_the_model_is_corrected_both_ways() -> None:
    """The nodes behind the last op of a graph and in front of the first op of the next one."""
    head = sum(MODEL.backward.seconds[: MODEL.backward.ops[0][1]])
    tail = sum(MODEL.forward.seconds[MODEL.forward.ops[-1][1] :])
    record = HalfMeasurement({}, gap_seconds=0.25 * (head + tail))
    step = join_step(make_program(1), MODELS, [UNMEASURED, record]).step
    assert sum(step.seconds) == pytest.approx(20.0 - 0.75 * (head + tail))
    assert min(step.seconds) >= 0.0
    length = len(MODEL.forward.seconds)
    behind = slice(MODEL.forward.ops[-1][1], length)
    expected = [0.25 * seconds for seconds in MODEL.forward.seconds[behind]]
    assert step.seconds[behind] == pytest.approx(expected)
    # In front of the first op of the step nothing was measured.
    first = join_step(make_program(1), MODELS, [record, UNMEASURED]).step
    assert sum(first.seconds) == pytest.approx(20.0)


def test_what_a_step_holds_before_its_first_op() -> None:
    """It counts through the half, beside what is born there."""
    plain = join_step(make_program(1), MODELS, [HalfMeasurement({}, held_bytes=0), UNMEASURED])
    held_bytes = -plain.base_bytes + 1000
    record = HalfMeasurement({}, held_bytes=held_bytes)
    joined = join_step(make_program(1), MODELS, [record, UNMEASURED])
    length = len(MODEL.forward.seconds)
    assert (plain.base_bytes < 0, joined.base_bytes) == (True, 0)
    expected = [nbytes + 1000 for nbytes in plain.step.fixed_bytes[:length]]
    assert list(joined.step.fixed_bytes[:length]) == expected


def test_what_is_held_beside_our_values() -> None:
    """By what was seen at the first op of each half, and between the ops."""
    plain = join_step(make_program(1), MODELS, [UNMEASURED] * 2).step.fixed_bytes
    first = HalfMeasurement({}, held_bytes=0)
    later = HalfMeasurement({}, held_bytes=300)
    length = len(MODEL.forward.seconds)
    found = join_step(make_program(1), MODELS, [first, later]).step.fixed_bytes
    # Nothing but `a` has been born at the first op, and that is a value of ours.
    assert found[:length] == plain[:length]
    assert found[length:] == tuple(nbytes + 300 + 100 for nbytes in plain[length:])
    event, begin = MODEL.backward.ops[1]
    end = MODEL.backward.ops[2][1]
    seen = replace(later, peak_bytes={event: 4000}, gap_bytes=3000)
    found = join_step(make_program(1), MODELS, [first, seen]).step.fixed_bytes[length:]
    assert found[begin:end] == (4000 + 100,) * (end - begin)
    assert found[0] == 3000 + 100
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


def test_what_the_graph_itself_holds_at_the_first_op_is_no_others() -> None:
    forward = replace(MODEL.forward, fixed_bytes=(0, 5, 7, 0, 0, 0))
    models = {"block": replace(MODEL, forward=forward)}
    record = HalfMeasurement({}, held_bytes=300, peak_bytes={("offload", "a"): 150})
    found = join_step(make_program(1), models, [record, UNMEASURED]).step.fixed_bytes
    beside = 300 - 5 - 100  # `a` has been born.
    assert found[3] == beside
    assert found[2] == beside + 7, "more than was seen"


def test_what_was_born_before_the_first_op_is_not_in_the_gap() -> None:
    records = [UNMEASURED, HalfMeasurement({}, gap_bytes=3000), UNMEASURED, UNMEASURED]
    found = join_step(make_program(2), MODELS, records).step.fixed_bytes
    assert found[len(MODEL.forward.seconds)] == 3000 - 100


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


def test_halves_have_names() -> None:
    assert describe_half(Half("block", 2, False)) == "backward of call 2"


def test_what_several_calls_save_is_one_value() -> None:
    """From its first birth to its last reader; the call that reads it first comes first."""
    program = make_program(2)
    owners = Owners(shared=(((0, "b"), (1, "a")),))
    plain = {
        value.name: value for value in join_step(program, MODELS, [UNMEASURED] * 4).step.values
    }
    joined = join_step(program, MODELS, [UNMEASURED] * 4, owners)
    assert joined.values == {
        "0/a": ((0, "a"),), "0/b": ((1, "a"), (0, "b")), "1/b": ((1, "b"),),
    }  # fmt: skip
    (found,) = (value for value in joined.step.values if value.name == "0/b")
    first, second = plain["0/b"], plain["1/a"]
    assert (found.born, found.last_use) == (first.born, second.last_use)
    assert (found.first_use, found.freed) == (second.first_use, first.freed)
    assert found.nbytes == 100


def test_what_nothing_reads_dies_where_it_was_seen_to() -> None:
    """Else with the step."""
    program = parse_program("F0 F1 B1")
    length = len(MODEL.forward.seconds)
    end = 2 * length + len(MODEL.backward.seconds)
    for last_half, freed in ((None, end), (0, length - 1), (1, 2 * length - 1), (2, end)):
        record = HalfMeasurement({}, last_half=last_half)
        step = join_step(program, MODELS, [record, UNMEASURED, UNMEASURED]).step
        assert len(step.seconds) == end + 1
        for value in step.values:
            assert value.is_read is value.name.startswith("1/")
            assert value.is_read or step.freed(value) == freed
            assert value.is_read or step.first_use(value) == freed + 1


def test_owners_decide_what_may_move() -> None:
    """An output only where the caller lets go of it; nothing that the caller holds."""
    a, b = MODEL.values
    output = replace(a, owned=False, refusal=RETURNED)
    models = {"block": replace(MODEL, values=(output, replace(b, owned=False)))}
    program = make_program(2)

    def find(owners: Owners) -> dict[str, str | None]:
        step = join_step(program, models, [UNMEASURED] * 4, owners).step
        return {value.name: value.refusal for value in step.values}

    assert find(Owners()) == {"0/a": RETURNED, "0/b": None, "1/a": RETURNED, "1/b": None}
    known = Owners(held=frozenset({(0, "b"), (1, "a")}), let_go=frozenset({(0, "a")}))
    assert find(known) == {"0/a": None, "0/b": HELD, "1/a": HELD, "1/b": None}
    shared = replace(known, shared=(((0, "a"), (1, "b")),))
    assert find(shared) == {"0/a": None, "0/b": HELD, "1/a": HELD}
    one_holds = Owners(held=frozenset({(1, "b")}), shared=(((0, "a"), (1, "b")),))
    assert find(one_holds)["0/a"] == HELD
    both_save = Owners(shared=one_holds.shared)
    assert find(both_save)["0/a"] is None, "a graph has saved what the other one returned"


def test_what_may_not_move_for_another_reason_stays_for_that() -> None:
    a, b = MODEL.values
    models = {"block": replace(MODEL, values=(a, replace(b, refusal="a reason")))}
    owners = Owners(held=frozenset({(0, "b")}), let_go=frozenset({(1, "b")}))
    values = join_step(make_program(2), models, [UNMEASURED] * 4, owners).step.values
    assert {each.refusal for each in values if each.name.endswith("b")} == {"a reason"}


def test_what_one_call_must_move_moves_for_all() -> None:
    a, b = MODEL.values
    models = {"block": replace(MODEL, values=(a, replace(b, must_move=True)))}
    owners = Owners(shared=(((0, "a"), (1, "b")),))
    values = join_step(make_program(2), models, [UNMEASURED] * 4, owners).step.values
    assert {value.name: value.must_move for value in values}["0/a"]


def test_an_output_stays_until_the_next_half_begins() -> None:
    a, b = MODEL.values
    models = {"block": replace(MODEL, values=(replace(a, owned=False, refusal=RETURNED), b))}
    step = join_step(make_program(2), models, [UNMEASURED] * 4).step
    found = {value.name: value for value in step.values}
    length = len(MODEL.forward.seconds)
    assert found["0/a"].last_use == length
    assert found["1/a"].last_use == 2 * length
