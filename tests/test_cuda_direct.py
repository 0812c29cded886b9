"""Device tensors that the engine moves itself, on a simulated device, in random orders."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import pytest
from simulated_device import ALIGNMENT, DirectEngine, Event, JobEngine, Wait, World
from simulated_runs import LENGTH, WHOLE_LENGTH, Run, open_run, train, train_while_memory_lacks

from fxoffload.runtime.devices.cuda import CudaDevice, CudaOutgoing
from fxoffload.runtime.devices.cuda_arrival import CudaArrival
from fxoffload.runtime.devices.cuda_direct import DirectIncoming, DirectOutgoing, moves_directly
from fxoffload.runtime.devices.streams import CudaStreams
from fxoffload.runtime.engines.checksum import CheckedEngine

SEEDS = range(40)


@pytest.fixture
def run() -> Iterator[Run]:
    yield from open_run(World(seed=1), direct=True)


def find_engine(run: Run) -> DirectEngine:
    assert isinstance(run.engine, DirectEngine)
    return run.engine


def train_all() -> int:
    """All seeds; returns how often the engine moved device memory."""
    moved = 0
    for seed in SEEDS:
        for run in open_run(World(seed), direct=True):
            train(run)
            run.check()
            moved += find_engine(run).moved
    return moved


def test_every_order_of_completion_gives_the_same_values() -> None:
    assert train_all() > 300


@pytest.mark.parametrize("seed", range(5))
def test_a_step_without_memory_is_tried_again(seed: int) -> None:
    failed = 0
    for run in open_run(World(seed), direct=True):
        failed += train_while_memory_lacks(run)
        run.check()
    assert failed >= 1


def do_nothing(*_: object) -> None:
    pass


def write_and_forget(outgoing: DirectOutgoing, engine: DirectEngine, offset: int) -> object:
    written = WRITE(outgoing, engine, offset)
    outgoing._tensor = None
    return written


def write_as_a_copy(outgoing: DirectOutgoing, engine: DirectEngine, offset: int) -> object:
    outgoing.shares_memory = False
    return WRITE(outgoing, engine, offset)


WRITE = DirectOutgoing.write


FORGOTTEN: dict[str, tuple[object, str, Callable[..., object]]] = {
    "the write waits for what makes x, the read for what used the memory of y": (
        Event, "synchronize", do_nothing,
    ),
    "release waits for the write": (DirectOutgoing, "write", write_as_a_copy),
    "x is held until it is written": (DirectOutgoing, "write", write_and_forget),
    "a value lent to another stream waits for what makes it": (
        CudaStreams, "join", lambda it, *_: it.find_current(),
    ),
    "what is lent is free behind its reader": (CudaStreams, "note_reader", do_nothing),
    "what was kept moves behind what made it": (
        CudaDevice, "find_order", lambda _: contextlib.nullcontext(),
    ),
}  # fmt: skip


@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_each_order_that_is_forgotten_is_found(
    forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*FORGOTTEN[forgotten])
    with pytest.raises(AssertionError):
        train_all()


def test_whole_units_of_an_engine_that_can_move_directly(run: Run) -> None:
    engine = find_engine(run)
    span = WHOLE_LENGTH * 4
    assert moves_directly(span, ALIGNMENT, engine)
    assert not moves_directly(LENGTH * 4, ALIGNMENT, engine)
    assert not moves_directly(0, ALIGNMENT, engine)
    assert not moves_directly(span, ALIGNMENT, JobEngine(run.world))
    assert not moves_directly(span, ALIGNMENT, CheckedEngine(engine))


def test_no_host_memory_is_taken(run: Run) -> None:
    ticket = run.offload(2)
    assert isinstance(ticket.outgoing, DirectOutgoing) or ticket.stored
    run.world.run_all()
    run.store.prefetch(ticket)
    (prefetch,) = ticket.prefetches
    assert isinstance(prefetch.arrival, DirectIncoming)
    del prefetch
    run.wait(ticket)
    run.store.free(ticket)
    run.world.run_all()
    assert find_engine(run).moved == 2
    assert run.world.host_memory == []
    record = run.store.statistics()
    assert record.written_bytes == record.read_bytes == ticket.nbytes
    assert record.staged_bytes == 0
    run.check()


def test_other_sizes_go_through_host_memory(run: Run) -> None:
    run.length = LENGTH
    ticket = run.offload(2)
    run.world.run_all()
    run.wait(ticket)
    run.store.free(ticket)
    assert find_engine(run).moved == 0
    assert run.world.host_memory != []
    run.check()


def test_what_overflows_the_host_tier_comes_back_directly(run: Run) -> None:
    """It was copied to host memory already; its slot has the same bytes."""
    tickets = [run.offload(number, tier="host") for number in (2, 4, 6)]
    assert isinstance(tickets[-1].outgoing, CudaOutgoing)
    assert [ticket.tier for ticket in tickets] == ["host", "host", "nvme"]
    run.world.run_all()
    for ticket in tickets:
        run.wait(ticket)
        run.store.free(ticket)
    assert find_engine(run).moved == 1
    run.check()


@pytest.mark.parametrize("block", [True, False])
def test_the_host_waits_for_a_write_whose_memory_is_reused(run: Run, block: bool) -> None:
    run.world.hold()
    ticket = run.offload(2, block=block)
    assert ticket.stored == block
    assert run.world.live_blocks == 1 - block
    run.world.run_all()
    run.device.let_go()
    assert run.world.live_blocks == 0
    run.store.free(ticket)
    run.check()


def test_a_private_copy_is_waited_for_by_nobody(run: Run) -> None:
    """That of a tensor with gaps."""
    run.world.hold()
    ticket = run.offload(3)
    assert not ticket.stored
    run.wait(ticket)
    run.store.free(ticket)
    run.check()


def test_what_is_still_here_is_copied_on_the_device(run: Run) -> None:
    run.world.hold()
    ticket = run.offload(2, block=False)
    run.store.prefetch(ticket)
    (prefetch,) = ticket.prefetches
    assert type(prefetch.arrival) is CudaArrival
    del prefetch
    assert any(isinstance(each, Wait) for each in run.world.current.queue), "x may be reused next"
    run.wait(ticket)
    run.store.free(ticket)
    record = run.store.statistics()
    assert (record.forwarded_bytes, record.staged_bytes) == (ticket.nbytes, 0)
    run.check()


@pytest.mark.filterwarnings("ignore:.*could not be offloaded:RuntimeWarning")
def test_what_cannot_be_written_stays_on_the_device() -> None:
    """As a copy where its memory is reused; also for a reader on another stream."""
    failed = sum(map(write_with_failures, range(12)))
    assert failed > 20


def write_with_failures(seed: int) -> int:
    """Eight values; returns the number of writes that failed."""
    failed = 0
    for run in open_run(World(seed), direct=True):
        engine = find_engine(run)
        for number in range(2, 10):
            engine.write_failures = run.world.random.choice((0, 1))
            ticket = run.offload(number, block=run.world.random.random() < 0.7)
            run.world.random.choice((run.world.progress, run.world.run_all))()
            engine.read_failures = run.world.random.choice((0, 1))
            with run.on_some_stream():
                run.store.prefetch(ticket)
            with run.on_some_stream():
                run.wait(ticket)
            run.store.free(ticket)
        engine.write_failures = engine.read_failures = 0
        failed += run.store.statistics().write_errors
        run.check()
        assert engine._bytes == {}
    return failed


def test_a_write_that_waits_for_the_device_is_cancelled(run: Run) -> None:
    run.world.hold()
    ticket = run.offload(2, block=False)
    run.store.free(ticket)
    record = run.store.statistics()
    assert (record.cancelled_bytes, record.written_bytes) == (ticket.nbytes, 0)
    run.check()
    assert find_engine(run).moved == 0
