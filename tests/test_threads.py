"""Each thread has programs of its own; a call begins where a graph's first value comes again."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import torch

from fxoffload.runtime.program.book import ProgramBook
from fxoffload.runtime.program.calls import Call
from fxoffload.runtime.program.entry import Entry
from fxoffload.runtime.program.learned import FIRST_STEPS
from fxoffload.runtime.program.threads import GraphRules, Programs
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.schedule import CallSchedule, Half, Program, Schedule, StepMeasurement

CPU = torch.device("cpu")


def make_schedule(program: Program, measured: StepMeasurement) -> Schedule:
    calls = tuple(CallSchedule({}) for half in program if half.forward)
    return Schedule(program, calls, 1, 1, 1, 1.0, 0.0, 1, 0)


def make_programs(graphs: str) -> Programs:
    programs = Programs()
    assert programs.enter_offload("a", "x", CPU) is None, "it follows no schedules"
    for graph in graphs:
        rules = GraphRules(make_schedule, lambda error: error, is_limited=True, sizes={"x": 5})
        programs.add_graph(graph, rules)
    return programs


def enter(programs: Programs, store: OffloadStore, graph: str, name: str) -> Call:
    call = programs.enter_offload(graph, name, CPU)
    assert call is not None
    ticket = store.keep(torch.ones(2**20), name, "nvme", True)
    call.add(name, Entry(name, store, ticket, CPU, call.forward.half))
    return call


def test_calls_begin_where_names_come_again(memory_store: OffloadStore) -> None:
    programs = make_programs("ab")
    first = enter(programs, memory_store, "a", "x")
    assert enter(programs, memory_store, "a", "y") is first
    second = enter(programs, memory_store, "a", "x")
    assert second is not first
    third = enter(programs, memory_store, "b", "z")
    assert third.number == 2
    third.backward = third.forward
    assert enter(programs, memory_store, "b", "w") is not third, "its backward has begun"
    for _ in range(5):
        first.step.note_death()
    latest = enter(programs, memory_store, "a", "x")
    assert latest.step is not first.step
    assert latest.is_limited
    assert latest.limits == {"x": 5}
    latest.step.note_death()
    assert enter(programs, memory_store, "a", "y").step is not latest.step, "its values have died"
    latest = enter(programs, memory_store, "a", "x")
    with mock.patch.object(latest.step, "stop") as stop:
        programs.clear()
    stop.assert_called_once_with()
    assert programs.find_records() == []
    assert programs.enter_offload("a", "x", CPU) is None, "it follows schedules no more"


def test_the_book_of_a_thread_learns_where_its_steps_begin(memory_store: OffloadStore) -> None:
    programs = make_programs("a")
    begins, notes = ProgramBook.begin_step, ProgramBook.note_begin
    with (
        mock.patch.object(ProgramBook, "begin_step", autospec=True, side_effect=begins) as begin,
        mock.patch.object(ProgramBook, "note_begin", autospec=True, side_effect=notes) as note,
    ):
        programs.note_begin(declared=True)
        note.assert_not_called()
        enter(programs, memory_store, "a", "x").step.note_death()
        begin.assert_called_once_with(mock.ANY, CPU, "a")
        for declared in (True, False):
            programs.note_begin(declared=declared)
            note.assert_called_with(mock.ANY, declared=declared)


def test_the_schedule_of_the_next_step_is_that_of_the_one_thread(
    memory_store: OffloadStore,
) -> None:
    programs = make_programs("a")
    for _ in range(FIRST_STEPS + 1):
        enter(programs, memory_store, "a", "x").step.note_death()
    call = enter(programs, memory_store, "a", "x")
    assert call.step.program == (Half("a", 0, True),)
    assert programs.find_running() == [call.step]
    assert programs.find_next_schedule() is None, "a step runs"
    call.step.note_death()
    assert programs.find_running() == []
    (record,) = programs.find_records()
    assert programs.find_next_schedule() is record.schedule
    with ThreadPoolExecutor(1) as threads:
        threads.submit(enter, programs, memory_store, "a", "x").result().step.note_death()
        assert threads.submit(programs.find_next_schedule).result() is None
        assert programs.find_next_schedule() is None, "no step ends for both of them"
        threads.submit(enter, programs, memory_store, "a", "x").result()
        assert len(threads.submit(programs.find_records).result()) == 1
        programs.forget("a")
        assert threads.submit(programs.find_records).result() == []
    assert programs.find_records() == []
