"""The calls of one step: what follows which schedule, and what is measured."""

from __future__ import annotations

import gc
import logging
from collections.abc import Iterable
from dataclasses import replace

import pytest
import torch
from waiting import wait_until

from fxoffload.runtime.program import calls
from fxoffload.runtime.program.calls import Call, Entry, StepRun
from fxoffload.runtime.program.entry import sum_resident_bytes
from fxoffload.runtime.program.live_bytes import count_live_bytes
from fxoffload.runtime.program.sampler import RATE
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket
from fxoffload.schedule import CallSchedule, Half, Schedule

CPU = torch.device("cpu")
NBYTES = 4 * 2**20


def make_schedule(*calls: CallSchedule) -> Schedule:
    forwards = tuple(Half("a", index, True) for index in range(len(calls)))
    backwards = tuple(Half("a", index, False) for index in reversed(range(len(calls))))
    return Schedule(forwards + backwards, calls, 1, 1, 1, 1.0, 0.0, 1, 0)


def keep(store: OffloadStore, call: Call, name: str) -> Entry:
    ticket = store.keep(torch.ones(NBYTES // 4), name, "nvme", True)
    entry = Entry(name, store, ticket, CPU, call.forward.half)
    call.add(name, entry)
    return entry


def offload(store: OffloadStore, call: Call, name: str) -> Entry:
    ticket = store.offload(torch.ones(NBYTES // 4), name, "nvme", True)
    entry = Entry(name, store, ticket, CPU, call.forward.half)
    call.add(name, entry)
    return entry


def test_forwards_and_backwards_make_a_program() -> None:
    step = StepRun([], measures=False)
    first, second = (
        step.add_call("a", CPU, is_limited=True),
        step.add_call("b", CPU, is_limited=True),
    )
    for call in (second, first):
        for kind in ("prefetch", "wait"):
            assert call.find_run(kind, CPU) is None, "nothing is measured"
    assert step.program == (
        Half("a", 0, True), Half("b", 1, True), Half("b", 1, False), Half("a", 0, False),
    )  # fmt: skip


def test_the_first_schedule_that_foresaw_all_is_followed() -> None:
    short, long = make_schedule(CallSchedule({})), make_schedule(CallSchedule({}), CallSchedule({}))
    step = StepRun([short, long], measures=False)
    assert step.add_call("a", CPU, is_limited=True).schedule is short.calls[0]
    assert step.add_call("a", CPU, is_limited=True).schedule is long.calls[1]
    assert step.add_call("a", CPU, is_limited=True).schedule is None
    assert step.followed is None


def test_what_is_in_memory_counts_once(memory_store: OffloadStore) -> None:
    step = StepRun([], measures=False)
    assert step.list_held() == {}
    first, second = (step.add_call("a", CPU, is_limited=True) for _ in range(2))
    kept, moved = keep(memory_store, first, "kept"), offload(memory_store, first, "moved")
    second.add("same", Entry("same", memory_store, kept.ticket, CPU, second.forward.half))
    memory_store.release(moved.ticket, True)  # Waits until it is written.
    assert step.list_held() == {(0, "kept"): NBYTES}


def test_what_was_kept_moves_when_more_follows_than_foreseen(memory_store: OffloadStore) -> None:
    step = StepRun([make_schedule(CallSchedule({"x": "keep"}))], measures=False)
    entry = keep(memory_store, step.add_call("a", CPU, is_limited=True), "x")
    memory_store.release(entry.ticket, False)
    kept = entry.ticket
    step.add_call("a", CPU, is_limited=True)
    assert (kept.kept, kept.holders) == (None, 0)
    assert entry.ticket is not kept
    assert entry.count_resident_bytes(None) == 0
    assert memory_store.statistics().written_bytes == NBYTES
    memory_store.prefetch(entry.ticket)
    assert torch.equal(memory_store.wait(entry.ticket), torch.ones(NBYTES // 4))


def test_without_a_budget_nothing_waits_and_what_was_kept_stays(memory_store: OffloadStore) -> None:
    step = StepRun([make_schedule(CallSchedule({"x": "keep"}))], measures=False)
    entry = keep(memory_store, step.add_call("a", CPU, is_limited=False), "x")
    other = step.add_call("a", CPU, is_limited=False)
    assert (other.schedule, other.blocks, other.reads_early) == (None, False, True)
    assert entry.count_resident_bytes(None) == NBYTES


def test_a_schedule_that_was_left_is_not_followed_again(memory_store: OffloadStore) -> None:
    schedule = make_schedule(CallSchedule({"x": "keep"}), CallSchedule({"x": "keep"}))
    step = StepRun([replace(schedule, sizes={"a": {"x": 100}})], measures=False)
    first = step.add_call("a", CPU, is_limited=True)
    assert first.find_destination("x", "nvme", 101) == "nvme"
    assert step.add_call("a", CPU, is_limited=True).schedule is None


def test_a_step_without_a_schedule_leaves_none(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    step = StepRun([], measures=False)
    for _ in range(2):
        step.add_call("a", CPU, is_limited=True)
    assert caplog.messages == []


def test_ops_wait_and_read_as_the_schedule_says(
    memory_store: OffloadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At an op of another call, if that is where the schedule has it."""
    first = CallSchedule({"x": "nvme"})
    second = CallSchedule(
        {"y": "keep"},
        waits={("release", "y"): ((0, "x"),)},
        reads={("prefetch", "y"): ((0, "x"), (1, "missing"))},
    )
    step = StepRun([make_schedule(first, second)], measures=False)
    call = step.add_call("a", CPU, is_limited=True)
    assert call.find_destination("x", "host", 1) == "nvme"
    assert call.find_destination("new", "host", 1) == "host"
    x = offload(memory_store, call, "x")
    memory_store.release(x.ticket, call.blocks)
    other = step.add_call("a", CPU, is_limited=True)
    keep(memory_store, other, "y")
    settled: list[Ticket] = []
    monkeypatch.setattr(memory_store, "settle", settled.append)
    other.act("offload", "y")
    assert settled == []
    other.act("release", "y")
    assert settled == [x.ticket]
    monkeypatch.undo()
    memory_store.settle(x.ticket)
    assert x.count_resident_bytes(None) == 0
    other.find_run("prefetch", CPU)
    other.act("prefetch", "y")
    assert x.count_resident_bytes(None) == NBYTES, "it is being read"
    (prefetch,) = x.ticket.prefetches
    x.start_reading()
    assert x.ticket.prefetches == [prefetch], "started once"
    y = x.wait(is_measured=True)
    assert x.count_resident_bytes(None) == NBYTES, "the backward has it"
    del y, prefetch
    # The thread that read it lets go of it a little later.
    wait_until(lambda: x.count_resident_bytes(None) == 0)
    x.start_reading()
    assert len(x.ticket.prefetches) == 1, "for another backward"


def test_a_value_that_is_larger_than_foreseen_ends_a_schedule(memory_store: OffloadStore) -> None:
    schedule = make_schedule(CallSchedule({"x": "keep", "y": "keep"}), CallSchedule({}))
    schedule = replace(schedule, sizes={"a": {"x": 200, "y": 100}})
    step = StepRun([schedule], measures=False)
    call = step.add_call("a", CPU, is_limited=True, sizes={"x": 20, "y": 20})
    assert call.find_destination("x", "nvme", 200) == "keep"
    kept = keep(memory_store, call, "x")
    assert call.find_destination("y", "nvme", 101) == "nvme"
    assert step.followed is None
    assert call.blocks, "from here on by the safe rule"
    assert kept.ticket.resident_bytes == 0, "what was kept has moved"
    other = step.add_call("b", CPU, is_limited=True)
    assert (other.schedule, other.limits) == (None, {})
    assert other.find_destination("z", "nvme", 2**30) == "nvme"
    sizes = {"a": {"x": 200, "y": 100}}, {"a": {"x": 200, "y": 101}}
    assert step.find_sizes() == sizes
    unscheduled = StepRun([], measures=False)
    first = unscheduled.add_call("a", CPU, is_limited=True, sizes={"x": 20})
    first.find_destination("x", "nvme", 30)
    assert unscheduled.find_sizes() == ({"a": {"x": 20}}, {"a": {"x": 30}})


def test_what_a_wait_returns_is_passed_on(memory_store: OffloadStore) -> None:
    """To the call that has the same ticket, and to no other."""
    first = CallSchedule({"x": "nvme", "z": "nvme"})
    second = CallSchedule({"y": "nvme"}, passes={"y": (0, "x"), "missing": (0, "z")})
    step = StepRun([make_schedule(first, second)], measures=False)
    call = step.add_call("a", CPU, is_limited=True)
    x, z = torch.ones(NBYTES // 4), torch.ones(NBYTES // 4)
    for name, saved in (("x", x), ("z", z)):
        ticket = memory_store.offload(saved, name, "nvme", False)
        memory_store.release(ticket, True)
        call.add(name, Entry(name, memory_store, ticket, CPU, call.forward.half))
    other = step.add_call("a", CPU, is_limited=True)
    other.add("y", Entry("y", memory_store, call.entries["x"].ticket, CPU, other.forward.half))
    y = other.entries["y"].wait(is_measured=True)
    other.pass_on("y", y)
    assert call.entries["x"].passed is y
    other.entries["missing"] = other.entries["y"]
    other.pass_on("missing", y)
    assert call.entries["z"].passed is None
    call.pass_on("x", y)  # Nothing is to be passed on.
    assert step.find_entry(2, "x") is None, "a call that has not begun"


def test_measurements(memory_store: OffloadStore) -> None:
    gc.collect()  # What other tests left must not die meanwhile.
    step = StepRun([], measures=True, rate=RATE)
    call = step.add_call("a", CPU, is_limited=True)
    x = keep(memory_store, call, "x")
    run = call.find_run("offload", CPU)
    assert run is call.forward
    call.step.note_op(run, ("offload", "x"), 1.0, 2.0)
    call.step.note_op(run, ("release", "x"), 3.5, 4.0)
    foreign = torch.ones(2 * NBYTES // 4)
    run = call.find_run("prefetch", CPU)
    assert run is call.backward
    call.step.note_op(run, ("prefetch", "x"), 6.0, 7.0)
    measured = step.measure()
    assert measured.sampled
    assert measured.unseen_seconds == max(run.unseen_seconds for run in step.runs) > 0.0
    forward, backward = measured.halves
    assert forward.clocks == {("offload", "x"): 0.0, ("release", "x"): 1.5}
    assert backward.clocks == {("prefetch", "x"): 0.0}
    assert (forward.gap_seconds, backward.gap_seconds) == (0.0, 2.0)
    # The value itself is ours; what else is held counts from the first op of the step on.
    assert forward.held_bytes == 0
    # The value and the foreign bytes, which came behind the last op of the forward.
    assert abs(forward.live_bytes["release", "x"] - 3 * NBYTES) < 2**16
    assert backward.held_bytes is not None
    assert abs(backward.held_bytes - 2 * NBYTES) < 2**16
    assert foreign.nbytes == 2 * NBYTES
    assert x.count_resident_bytes(None) == NBYTES


def test_a_step_may_begin_before_its_first_op() -> None:
    """What was held then is not the step's, nor what has ended since."""
    held_bytes = count_live_bytes(CPU)
    assert held_bytes is not None
    step = StepRun([], measures=True, begun_bytes=held_bytes - NBYTES)
    step.add_call("a", CPU, is_limited=True)
    assert step.base_bytes == held_bytes - NBYTES
    (forward,) = step.measure().halves
    assert forward.held_bytes is not None
    assert abs(forward.held_bytes - NBYTES) < 2**16
    ended = StepRun([], measures=True, begun_bytes=held_bytes + NBYTES)
    ended.add_call("a", CPU, is_limited=True)
    assert [half.held_bytes for half in ended.measure().halves] == [0]


def test_the_last_half_of_values_that_nothing_reads(memory_store: OffloadStore) -> None:
    step = StepRun([], measures=True)
    first, second, third = (step.add_call("a", CPU, is_limited=True) for _ in range(3))
    first.note_death()
    second.find_run("wait", CPU)
    second.note_death()
    third.note_death()
    step.stop()
    assert [half.last_half for half in step.measure().halves] == [2, None, 3, None]


def test_a_value_that_dies_while_memory_is_counted_is_not_held(
    memory_store: OffloadStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else its bytes would be those of others."""
    step = StepRun([], measures=True)
    entry = keep(memory_store, step.add_call("a", CPU, is_limited=True), "x")
    live = [100 + NBYTES]

    def sum_before_death(entries: Iterable[Entry], half: Half | None) -> int:
        found = sum_resident_bytes(entries, half)
        live[0] = 100
        return found

    monkeypatch.setattr(calls, "count_live_bytes", lambda device: live[0])
    monkeypatch.setattr(calls, "sum_resident_bytes", sum_before_death)
    assert step._count_held(CPU) == (100, 100 - NBYTES)
    memory_store.free(entry.ticket)


def test_memory_of_others_counts_before_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(calls, "count_foreign_bytes", lambda device: 7)
    step = StepRun([], measures=False, begun_bytes=100)
    step.add_call("a", CPU, is_limited=True)
    assert step.base_bytes == 107


def test_samples_end_with_the_step(memory_store: OffloadStore) -> None:
    step = StepRun([], measures=True)
    call = step.add_call("a", CPU, is_limited=True)
    assert step._count_held(CPU) is not None, "no ticket has been made yet"
    entry = keep(memory_store, call, "x")
    assert step._count_held(CPU) is not None
    memory_store.free(entry.ticket)
    step.note_death()
    assert step.ended
    assert step._count_held(CPU) is None
    step.stop()
