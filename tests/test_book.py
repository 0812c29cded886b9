"""What is learned of programs, and when schedules are made."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import pytest
import torch

from fxoffload.errors import BudgetError
from fxoffload.runtime.program import book as book_module
from fxoffload.runtime.program import learned
from fxoffload.runtime.program.book import ProgramBook
from fxoffload.runtime.program.calls import StepRun
from fxoffload.runtime.program.learned import (
    FIRST_STEPS,
    KEPT_SAMPLED_STEPS,
    KEPT_STEPS,
    MEASURED_EACH,
    SETTLED_STEPS,
    Learned,
)
from fxoffload.schedule import (
    CallSchedule,
    Flow,
    HalfMeasurement,
    Program,
    Schedule,
    Sizes,
    StepMeasurement,
    TierFlow,
)

CPU = torch.device("cpu")


def make_schedule(program: Program, measured: StepMeasurement) -> Schedule:
    calls = tuple(CallSchedule({"x": "keep"}) for half in program if half.forward)
    return Schedule(program, calls, 1000, 900, 2000, 1.0, 0.0, 100, 0)


class Maker:
    """Makes schedules, and notes what they were made from."""

    def __init__(self) -> None:
        self.asked: list[tuple[Program, list[HalfMeasurement]]] = []
        self.flows: list[Mapping[str, TierFlow]] = []
        self.prices: list[float | None] = []
        self.errors = 0
        self.price = 0.0
        self.moved_bytes = 0
        self.base_bytes = 0
        self.exposed_seconds = 0.0
        self.excesses: list[int] = []
        self.bases: list[int | None] = []
        self.sizes: list[Sizes] = []

    def __call__(self, program: Program, measured: StepMeasurement) -> Schedule:
        self.asked.append((program, list(measured.halves)))
        self.flows.append(measured.flows)
        self.prices.append(measured.price)
        self.excesses.append(measured.excess_bytes)
        self.bases.append(measured.base_bytes)
        self.sizes.append(measured.sizes)
        if self.errors:
            self.errors -= 1
            raise BudgetError("too little")
        found = make_schedule(program, measured)
        return replace(
            found,
            price=self.price,
            moved_bytes=self.moved_bytes,
            base_bytes=self.base_bytes,
            exposed_seconds=self.exposed_seconds,
        )


@pytest.fixture
def maker() -> Maker:
    return Maker()


@pytest.fixture
def book(maker: Maker) -> ProgramBook:
    return ProgramBook(maker, lambda error: error.rephrase(f"{error}; see the file"))


def run_step(
    book: ProgramBook,
    graphs: str,
    *,
    seconds: float = 1.0,
    held_bytes: int = 0,
    speed: float = 1e9,
    exposed_seconds: float = 0.0,
    base_bytes: int = 0,
    limited: bool = True,
    price: float = 0.0,
    live_bytes: int | None = None,
    peak_bytes: int | None = None,
    size: int = 0,
    modelled: int = 100,
) -> StepRun:
    """A step of these graphs, forward and backward, that took so long and held so much.

    speed: bytes per second of what it moved. exposed_seconds: of waiting for that. base_bytes: what
    the device held before. limited: whether there is a budget. price: seconds that each byte took
    that was moved: all of them by the safe rule, a quarter by a schedule. live_bytes, peak_bytes:
    the most that was seen of all, and beside our values. size: of the value of each call where that
    may change; modelled: as the model of its graph has it.
    """
    step = book.begin_step(CPU, graphs[0])
    for graph in graphs:
        sizes = {"x": modelled} if size else {}
        call = step.add_call(graph, CPU, is_limited=limited, sizes=sizes)
        call.find_destination("x", "nvme", size)
    step.note_birth()
    step.note_death()
    event = "offload", "x"
    live, peak = ({} if nbytes is None else {event: nbytes} for nbytes in (live_bytes, peak_bytes))
    half = HalfMeasurement({event: seconds}, 0.0, held_bytes, None, peak, live)
    records = [half] * len(step.runs)
    nbytes = 2**24 if step.followed is None else 2**22
    flow = Flow(nbytes, nbytes / speed, 1)
    step.base_bytes = base_bytes
    step.measure = lambda: StepMeasurement(
        records,
        {"nvme": TierFlow(flow, flow)},
        base_bytes,
        step_seconds=seconds + exposed_seconds + 2 * nbytes * price,
        exposed_seconds=exposed_seconds,
        sampled=peak_bytes is not None,
    )
    step.stores._exposed_before = {Waiting(exposed_seconds): 0.0}
    step.stop()
    return step


class Waiting:
    """Stands for a store that was waited for."""

    def __init__(self, exposed_seconds: float) -> None:
        self.exposed_seconds = exposed_seconds


def test_a_schedule_is_followed_from_the_second_step_on(book: ProgramBook, maker: Maker) -> None:
    first = run_step(book, "ab")
    assert first.followed is None
    assert [call.schedule for call in first.calls] == [None, None]
    assert all(call.blocks for call in first.calls)
    second = run_step(book, "ab")
    assert second.followed is book.schedules[0]
    assert [call.schedule for call in second.calls] == list(book.schedules[0].calls)
    assert not any(call.blocks for call in second.calls)
    assert len(maker.asked) == 1


def test_it_stays_while_nothing_changes(book: ProgramBook, maker: Maker) -> None:
    for _ in range(6):
        run_step(book, "ab", seconds=1.05, held_bytes=10)
    assert len(maker.asked) == 1


def test_a_peak_that_one_sampler_missed_counts(book: ProgramBook, maker: Maker) -> None:
    """Between the graphs and between ops: the highest of what was seen."""
    event = "offload", "x"
    for seen in (0, 0, 400, 0):
        step = run_step(book, "a")
        record = HalfMeasurement({event: 1.0}, 0.0, 0, seen, {event: seen + 7} if seen else {})
        step.measure = lambda record=record: StepMeasurement([record], sampled=True)
    book.begin_step(CPU, "a")
    latest = maker.asked[-1][1][0]
    assert (latest.gap_bytes, latest.peak_bytes) == (400, {event: 407})
    assert len(maker.asked) == 2


def test_the_first_step_counts_no_longer(book: ProgramBook, maker: Maker) -> None:
    """It met compilers, and cold memory."""
    run_step(book, "ab", seconds=9.0)
    for _ in range(2):
        run_step(book, "ab")
    ((_, first), (_, second)) = maker.asked
    assert first[0].clocks == {("offload", "x"): 9.0}
    assert second[0].clocks == {("offload", "x"): 1.0}


@pytest.mark.parametrize("change", [{"seconds": 2.0}, {"held_bytes": 50}])
def test_it_is_made_again_when_things_change(
    book: ProgramBook, maker: Maker, change: dict[str, int]
) -> None:
    for _ in range(4):
        run_step(book, "ab")
    made = len(maker.asked)
    for _ in range(3 * MEASURED_EACH):
        run_step(book, "ab", **change)
    assert len(maker.asked) > made
    latest = maker.asked[-1][1][0]
    found = {"seconds": latest.clocks["offload", "x"], "held_bytes": latest.held_bytes}
    assert change.items() <= found.items()


@pytest.mark.parametrize("factor", [0.1, 10.0])
def test_another_speed_of_a_tier_is_followed(
    book: ProgramBook, maker: Maker, factor: float
) -> None:
    """Once two of three measured steps have seen it; the first that does has the next measured."""
    for _ in range(2 * MEASURED_EACH + 1):
        run_step(book, "ab")
    assert len(maker.asked) == 1
    steps = [run_step(book, "ab", speed=factor * 1e9) for _ in range(2 * MEASURED_EACH)]
    book.begin_step(CPU, "a")
    assert len(maker.asked) == 2
    assert maker.flows[-1]["nvme"].write.speed == pytest.approx(factor * 1e9)
    measured = [step.measures for step in steps]
    first = measured.index(True)
    assert measured[first : first + 2] == [True, True]


def test_an_unforeseen_wait_has_the_next_step_measured(book: ProgramBook) -> None:
    for _ in range(MEASURED_EACH + 1):
        run_step(book, "ab")
    waiting = run_step(book, "ab", exposed_seconds=0.2)
    assert not waiting.measures
    assert run_step(book, "ab", exposed_seconds=0.05).measures
    assert not run_step(book, "ab").measures


def test_a_foreseen_wait_does_not_have_the_next_step_measured(
    book: ProgramBook, maker: Maker
) -> None:
    maker.exposed_seconds = 0.5
    for _ in range(MEASURED_EACH + 1):
        run_step(book, "ab", exposed_seconds=0.5)
    assert not run_step(book, "ab", exposed_seconds=0.55).measures
    assert not run_step(book, "ab", exposed_seconds=0.65).measures
    assert run_step(book, "ab").measures, "that was more than was foreseen"


def test_what_is_on_the_device_before_a_step_is_followed_at_once(
    book: ProgramBook, maker: Maker
) -> None:
    for _ in range(MEASURED_EACH + 1):
        run_step(book, "ab")
    assert not run_step(book, "ab", base_bytes=500).measures
    assert run_step(book, "ab", base_bytes=500).measures
    assert not run_step(book, "ab", base_bytes=500).measures
    assert len(maker.asked) == 2


def test_a_step_that_begins_with_more_follows_a_schedule_for_that(
    book: ProgramBook, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Such as the second one, if an optimizer has made its states behind the first one."""
    held = [100]
    monkeypatch.setattr(book_module, "count_live_bytes", lambda device: held[-1])
    run_step(book, "ab", base_bytes=100)
    held.append(500)
    book.note_begin(declared=True)
    second = run_step(book, "ab", base_bytes=500)
    assert maker.bases == [100, 500]
    assert second.followed is book.schedules[0]
    for nbytes in (517, 300):  # Hardly more, and less, which is followed when it was measured.
        held.append(nbytes)
        book.note_begin(declared=True)
        run_step(book, "ab", base_bytes=500)
        assert maker.bases == [100, 500]


def test_without_a_limit_it_does_not_matter_what_a_step_begins_with(
    book: ProgramBook, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "count_live_bytes", lambda device: 500)
    run_step(book, "ab", base_bytes=100, limited=False)
    book.note_begin(declared=True)
    run_step(book, "ab", base_bytes=100, limited=False)
    assert maker.bases == [100]


def test_one_step_that_differs_changes_nothing(book: ProgramBook, maker: Maker) -> None:
    """The median of several counts."""
    for _ in range(3):
        run_step(book, "ab")
    made = len(maker.asked)
    run_step(book, "ab", seconds=9.0)
    for _ in range(MEASURED_EACH + 1):
        run_step(book, "ab")
    assert len(maker.asked) == made


def test_few_steps_are_measured(book: ProgramBook) -> None:
    measured = [run_step(book, "ab").measures for _ in range(3 * MEASURED_EACH)]
    assert measured[:SETTLED_STEPS] == [True] * SETTLED_STEPS
    assert sum(measured[SETTLED_STEPS:]) == 2


def test_steps_in_turns_tell_what_a_byte_takes(book: ProgramBook, maker: Maker) -> None:
    """Without a budget; of the first ten every other step moves everything. One of them waited."""
    maker.price = 1e-12  # What a probe said.
    steps = [
        run_step(book, "ab", limited=False, price=1e-9, exposed_seconds=0.05 * (number == 3))
        for number in range(15)
    ]
    moving = [number for number, step in enumerate(steps) if step.followed is None]
    assert moving == [0, 1, 3, 5, 7, 9]
    assert [step.measures for step in steps] == [*[True] * 11, *[False] * 4]
    assert maker.prices == [None, pytest.approx(1e-9)]
    (learned,) = book._learned.values()
    maker.price = 5.0  # Of a schedule by what the run has shown, which no probe said.
    book._schedule(next(iter(book._learned)), learned, StepMeasurement([], price=5.0))
    assert learned.probed_price == 1e-12


@pytest.mark.parametrize(("limited", "price"), [(True, 1e-12), (False, 0.0)])
def test_no_step_tries_where_the_price_decides_nothing(
    book: ProgramBook, maker: Maker, limited: bool, price: float
) -> None:
    """Under a budget, and on a device whose compute transfers leave alone."""
    maker.price = price
    steps = [run_step(book, "ab", limited=limited, price=1e-9) for _ in range(6)]
    assert [step.followed is None for step in steps] == [True, *[False] * 5]
    assert set(maker.prices) == {None}


def test_no_step_tries_where_everything_moves_anyway(book: ProgramBook, maker: Maker) -> None:
    maker.price = 1e-12
    maker.moved_bytes = 90
    steps = [run_step(book, "ab", limited=False) for _ in range(4)]
    assert [step.followed is None for step in steps] == [True, *[False] * 3]


def test_what_exceeds_the_prediction_is_remembered(book: ProgramBook, maker: Maker) -> None:
    """Of steps that followed a schedule: 900 bytes were predicted, 20 are held before it begins."""
    maker.base_bytes = -20
    for live_bytes in (5000, 885, 870, 300, None):
        run_step(book, "ab", live_bytes=live_bytes)
    assert maker.excesses == [0, 5]


def test_a_peak_that_was_seen_counts_when_later_samples_miss_it(
    book: ProgramBook, maker: Maker, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Until so many steps have been sampled without it."""
    monkeypatch.setattr(learned, "FIRST_STEPS", 10**6)
    monkeypatch.setattr(learned, "MEASURED_EACH", 1)

    def find_peak(seconds: float, peaks: list[int | None]) -> int:
        for peak_bytes in peaks:
            run_step(book, "a", seconds=seconds, peak_bytes=peak_bytes)
        book.begin_step(CPU, "a")
        (half,) = maker.asked[-1][1]
        assert half.clocks == {("offload", "x"): seconds}, "a schedule was made by these steps"
        return half.peak_bytes["offload", "x"]

    assert find_peak(1.0, [9000, 700, None]) == 700, "the first step counts no longer"
    assert find_peak(2.0, [None] * KEPT_STEPS) == 700
    assert find_peak(3.0, [300] * KEPT_STEPS) == 700
    assert find_peak(4.0, [300] * (KEPT_SAMPLED_STEPS - KEPT_STEPS)) == 700
    assert find_peak(5.0, [300] * KEPT_STEPS) == 300


def test_several_programs_are_remembered(book: ProgramBook) -> None:
    for _ in range(3):
        run_step(book, "ab")
        run_step(book, "abc")
        run_step(book, "c")
    book.begin_step(CPU, "a")
    assert [len(schedule.calls) for schedule in book.schedules] == [1, 3, 2]
    step = run_step(book, "ab")
    assert step.followed is not None
    assert len(step.followed.calls) in (2, 3)
    assert run_step(book, "c").calls[0].schedule is not None


def test_the_program_that_ran_least_lately_is_forgotten(
    book: ProgramBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "MAX_PROGRAMS", 2)
    for graphs in ("a", "b", "a", "c"):
        run_step(book, graphs)
    book.begin_step(CPU, "a")
    assert [each.program[0].graph for each in book.schedules] == ["c", "a"]


def test_programs_of_a_graph_are_forgotten(book: ProgramBook) -> None:
    for graphs in ("ab", "ab", "c", "c"):
        run_step(book, graphs)
    book.begin_step(CPU, "a")
    book.forget("a")
    assert [len(schedule.calls) for schedule in book.schedules] == [1]
    assert run_step(book, "ab").followed is None


def test_a_call_that_was_not_foreseen_is_safe(book: ProgramBook) -> None:
    for _ in range(2):
        run_step(book, "ab")
    step = run_step(book, "aab")
    assert [call.schedule is None for call in step.calls] == [False, True, True]
    assert step.followed is None


def test_compilers_are_no_reason_to_give_up(book: ProgramBook, maker: Maker) -> None:
    maker.errors = 1
    for _ in range(3):
        run_step(book, "ab")
    assert len(book.schedules) == 1


def test_a_step_that_cannot_fit_is_an_error(book: ProgramBook, maker: Maker) -> None:
    maker.errors = 2
    for _ in range(2):
        run_step(book, "ab")
    with pytest.raises(BudgetError, match="too little; see the file"):
        book.begin_step(CPU, "a")


def test_a_job_that_runs_is_not_ended(
    book: ProgramBook, maker: Maker, caplog: pytest.LogCaptureFixture
) -> None:
    for _ in range(5):
        run_step(book, "ab")
    maker.errors = 1
    for _ in range(3 * MEASURED_EACH):
        latest = run_step(book, "ab", held_bytes=500)
    assert "the lowest peak that there is: too little; see the file" in caplog.text
    assert latest.calls[0].blocks, "the safe rule"


def test_a_step_that_never_ends_is_given_up(
    book: ProgramBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else it would grow for ever."""
    monkeypatch.setattr(book_module, "MAX_HALVES", 3)
    step = book.begin_step(CPU, "a")
    stopped: list[StepRun] = []
    step.stop = lambda: stopped.append(step)
    step.note_birth()
    for _ in range(2):
        step.add_call("a", CPU, is_limited=True)
        assert book.begin_step(CPU, "a") is step
    step.add_call("a", CPU, is_limited=True)
    assert not stopped
    assert book.begin_step(CPU, "a") is not step
    assert stopped, "nobody looks at what it holds any more"
    assert book.schedules == []


def test_a_step_begins_where_least_is_held(
    book: ProgramBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At its graphs, but for a begin that is declared; what ends behind it is not the step's."""
    held = [100, 90, 120]
    monkeypatch.setattr(book_module, "count_live_bytes", lambda device: held.pop(0))
    book.note_begin(declared=False)
    assert book._begun_bytes is None, "no step has told the device"
    run_step(book, "a")
    for _ in range(3):
        book.note_begin(declared=False)
    assert book._begun_bytes == 90
    held = [130, 110, 140]
    book.note_begin(declared=True)
    assert book._begun_bytes == 130
    book.note_begin(declared=False)
    assert book._begun_bytes == 110
    step = book.begin_step(CPU, "a")
    step.note_birth()
    book.note_begin(declared=True)
    assert held == [140], "nothing is counted while a step runs"
    step.note_death()
    book.begin_step(CPU, "a")
    assert book._begun_bytes is None


def test_what_is_held_at_the_beginning_belongs_to_one_step(
    book: ProgramBook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(book_module, "count_live_bytes", lambda device: 100)
    assert book.begin_step(CPU, "a")._begun_bytes is None
    book.note_begin(declared=True)
    assert book.begin_step(CPU, "a")._begun_bytes == 100
    assert book.begin_step(CPU, "a")._begun_bytes is None, "that was of the step before"
    book.note_begin(declared=True)
    step = book.begin_step(torch.device("meta"), "a")
    assert step._begun_bytes is None, "that was of another device"
    step.note_birth()
    book.note_begin(declared=True)
    step.note_death()
    assert book.begin_step(torch.device("meta"), "a")._begun_bytes is None, "a step ran"


def test_a_step_goes_on_while_a_ticket_lives(book: ProgramBook) -> None:
    step = book.begin_step(CPU, "a")
    step.add_call("a", CPU, is_limited=True)
    step.note_birth()
    step.note_birth()
    step.note_death()
    assert book.begin_step(CPU, "a") is step
    step.note_death()
    assert book.begin_step(CPU, "a") is not step


def test_records_have_the_latest_step_that_did_what_the_schedule_says(book: ProgramBook) -> None:
    run_step(book, "a")
    assert book.records == [], "what has not ended is not known"
    run_step(book, "a")
    (record,) = book.records
    assert (record.schedule, record.steps) == (book.schedules[0], 1)
    assert record.latest is None, "the first step followed nothing"
    run_step(book, "a")
    (record,) = book.records
    assert record.steps == 2
    assert record.latest is not None
    assert record.latest.halves[0].clocks == {("offload", "x"): 1.0}
    assert record.assumed.halves[0].clocks == {("offload", "x"): 1.0}
    run_step(book, "b")
    run_step(book, "b")
    assert [each.schedule.program[0].graph for each in book.records] == ["b", "a"]


def test_the_schedule_of_the_next_step(book: ProgramBook) -> None:
    """It is asked for before a step, to act on it."""
    for _ in range(FIRST_STEPS):
        run_step(book, "a")
        assert book.next_schedule is None, "few steps have been measured"
    step = book.begin_step(CPU, "a")
    assert book.next_schedule is book.schedules[0], "what it follows is known, and it has no call"
    step.add_call("a", CPU, is_limited=True)
    step.note_birth()
    assert book.next_schedule is None, "the step runs"
    step.note_death()
    assert book.next_schedule is book.schedules[0]


@pytest.mark.parametrize(("exposed_seconds", "said"), [(0.01, 0), (1.0, 1)])
def test_waits_of_a_running_job_are_said_once(
    book: ProgramBook, exposed_seconds: float, said: int, caplog: pytest.LogCaptureFixture
) -> None:
    for count in range(3 * MEASURED_EACH):
        run_step(book, "ab", exposed_seconds=exposed_seconds)
        if count < 5:
            assert not caplog.records, "too few steps were measured"
    found = [each for each in caplog.messages if "waits for transfers for" in each]
    assert len(found) == len(caplog.messages) == said


def test_a_schedule_grows_with_the_values(book: ProgramBook, maker: Maker) -> None:
    """At once in proportion, and by a measurement when a step of that size is measured."""
    for _ in range(SETTLED_STEPS + 1):
        run_step(book, "a", held_bytes=10, size=100)
    assert len(maker.asked) == 1
    larger = run_step(book, "a", held_bytes=10, size=300)
    assert not larger.measures
    assert larger.followed is None
    measured = run_step(book, "a", seconds=2.0, held_bytes=17, size=300)
    assert maker.asked[-1][1][0].held_bytes == 30
    assert maker.asked[-1][1][0].clocks == {("offload", "x"): 3.0}
    assert maker.sizes[-1] == {"a": {"x": 300}}
    assert measured.measures
    assert measured.followed is not None, "what grew in proportion is followed"
    following = run_step(book, "a", seconds=2.0, held_bytes=17, size=300)
    assert maker.asked[-1][1][0].held_bytes == 17
    assert maker.asked[-1][1][0].clocks == {("offload", "x"): 2.0}
    assert following.followed is book.schedules[0]
    assert book.schedules[0].sizes == {"a": {"x": 300}}
    asked = len(maker.asked)
    for size in (100, 150, 300, 299):
        assert run_step(book, "a", seconds=2.0, held_bytes=17, size=size).followed is not None
    book.begin_step(CPU, "a")
    assert len(maker.asked) == asked


def test_shorter_steps_tell_nothing(book: ProgramBook, maker: Maker) -> None:
    for size in (100, 100, 50, 60, 50):
        seconds, held_bytes = (1.0, 10) if size == 100 else (0.2, 500)
        step = run_step(book, "a", seconds=seconds, held_bytes=held_bytes, size=size)
        assert step.measures
    book.begin_step(CPU, "a")
    assert len(maker.asked) == 1


def test_a_declared_size_is_planned_for_before_it_comes(book: ProgramBook, maker: Maker) -> None:
    run_step(book, "a", held_bytes=10, size=25, modelled=100)
    followed = [run_step(book, "a", size=size, modelled=100).followed for size in (25, 50)]
    assert followed == [book.schedules[0]] * 2
    assert [halves[0].held_bytes for _, halves in maker.asked] == [40]
    assert maker.sizes == [{"a": {"x": 100}}]


def test_a_guess_that_does_not_fit_is_no_error(book: ProgramBook, maker: Maker) -> None:
    """Everything moves until a step of that size has been measured."""
    maker.errors = 1
    run_step(book, "a", size=25, modelled=100)
    assert run_step(book, "a", size=25, modelled=100).followed is None
    assert run_step(book, "a", size=100, modelled=100).followed is None
    assert run_step(book, "a", size=100, modelled=100).followed is not None


def test_a_guess_ends_no_job_in_its_first_steps(book: ProgramBook, maker: Maker) -> None:
    program = run_step(book, "a").program
    maker.errors = 1
    known = Learned(steps=2, guessed=True)
    book._schedule(program, known, StepMeasurement([HalfMeasurement({})] * len(program)))
    assert maker.errors == 0
    assert known.schedule is None


def test_a_program_that_comes_now_and_then_is_learned(book: ProgramBook, maker: Maker) -> None:
    """Also where all steps in front of it are of another one, which is known."""
    for _ in range(SETTLED_STEPS + 1):
        run_step(book, "a")
    assert not run_step(book, "b").measures
    assert run_step(book, "a").measures, "b is new"
    assert not run_step(book, "a").measures, "no step of b begins so"
    assert run_step(book, "b").measures
    for _ in range(SETTLED_STEPS):
        assert run_step(book, "b").followed is not None
    assert not run_step(book, "a").measures, "both are known"
    assert not run_step(book, "a").measures
    assert not run_step(book, "ab").measures
    for _ in range(3):
        assert run_step(book, "a").measures, "it may become that one again"
    assert run_step(book, "ab").measures
    run_step(book, "a")
    assert not run_step(book, "a").measures


def test_shorter_steps_make_no_schedule_while_a_longer_one_is_to_be_measured(
    book: ProgramBook, maker: Maker
) -> None:
    for _ in range(SETTLED_STEPS + 1):
        run_step(book, "a", size=100)
    run_step(book, "a", size=300)
    for _ in range(4):
        assert run_step(book, "a", size=100).measures
    book.begin_step(CPU, "a")
    assert len(maker.asked) == 2
