"""What the walks of placement carry along."""

from __future__ import annotations

import pytest
from steps import make_link, make_step, make_value

from fxoffload.planner.step import Phase, Step
from fxoffload.planner.walks import Reads, Tail

# Ten seconds of forward and ten of backward: the last forward node begins at 9.
STEP: Step = make_step([])
PHASE = Phase(0, 10, 20)
WRITES = [(14.0, "late", 40), (11.0, "soon", 100)]


def make_tail() -> Tail:
    return Tail(STEP, PHASE, WRITES, 9.0)


def test_writes_hold_their_bytes_until_they_end() -> None:
    tail = make_tail()
    assert tail.first == 9
    held = [tail.held_bytes(position) for position in range(9, 17)]
    assert held == [140, 140, 40, 40, 40, 0, 0, 0]
    assert tail.find_waited() == []
    assert tail.end == 20.0
    assert tail.left == []


def test_a_tail_waits_for_as_many_writes_as_the_room_needs() -> None:
    tail = make_tail()
    assert tail.wait_seconds(10, 140) == 0.0
    assert tail.wait_seconds(10, 40) == 2.0
    assert tail.wait_seconds(10, 39) == 5.0
    tail.wait(10, 40)
    assert tail.find_waited() == ["soon"]
    assert tail.end == 22.0
    # Two seconds later, all nodes of the backward are.
    assert [tail.held_bytes(position) for position in (9, 10, 11, 12)] == [40, 40, 40, 0]


def test_what_a_phase_leaves_to_the_next_one() -> None:
    tail = Tail(STEP, Phase(0, 10, 13), WRITES, 9.0)
    assert tail.end == 13.0
    assert tail.left == [(14.0, "late", 40)]


def test_a_read_starts_when_it_has_time_or_no_room() -> None:
    """Seconds count from the end of the step: a value that is used at 3 is read from 5 on."""
    value = make_value("a")
    for room, clock, started in ((100, 4.0, []), (100, 5.0, ["a"]), (99, 4.0, ["a"])):
        reads = Reads({"nvme": make_link(1.0, 2.0)}, 2**40)
        reads.clock = 3.0
        reads.add(value, "nvme")
        assert reads.nbytes == 100
        reads.clock = clock
        assert list(reads.start(5, room, None)) == started
        # Without room, whoever needs the value waits for the rest.
        assert reads.clock == (5.0 if started else clock)
        assert reads.nbytes == (0 if started else 100)


@pytest.mark.parametrize("overtakes", [False, True])
def test_a_small_read_takes_the_place_of_a_large_one_once(overtakes: bool) -> None:
    """The large one is read from 0 to 3, or the small one from 1 to 2, and the large one then."""
    reads = Reads({"nvme": make_link(1.0, 1.0)}, 2**40, overtakes=overtakes)
    reads.add(make_value("large", nbytes=300), "nvme")
    reads.clock = 1.0
    reads.add(make_value("small"), "nvme")
    reads.clock = 2.5
    started = list(reads.start(9, 300, None))
    assert (started, reads.clock) == ((["small"], 2.5) if overtakes else (["large"], 3.0))
    reads.add(make_value("next"), "nvme")
    reads.clock = 4.0
    started = list(reads.start(8, 399 - 200 * (not overtakes), None))
    assert (started, reads.clock) == ((["large"], 5.0) if overtakes else (["small"], 4.0))


def test_a_tail_is_waited_for_where_that_takes_less_than_a_late_read() -> None:
    reads = Reads({"nvme": make_link(1.0, 8.0)}, 2**40)
    reads.add(make_value("a"), "nvme")
    reads.clock = 1.0
    tail = make_tail()
    assert list(reads.start(10, 140, tail)) == []
    assert tail.find_waited() == ["soon"]
