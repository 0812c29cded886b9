"""CUDA transfers on a simulated device: copies end in any order, freed memory is reused at once."""

from __future__ import annotations

import contextlib
import itertools
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any

import pytest
import torch
from simulated_device import Event, Stream, Wait, World, make_device
from simulated_runs import (
    LENGTH,
    Run,
    choose_pieces,
    make_run,
    open_run,
    train,
    train_while_memory_lacks,
)
from torch import Tensor

from fxoffload.errors import StoreError, TransferError
from fxoffload.runtime.devices.cuda import CudaDevice, CudaOutgoing
from fxoffload.runtime.devices.cuda_arrival import CudaArrival
from fxoffload.runtime.devices.cuda_memory import Hold
from fxoffload.runtime.devices.cuda_read import CudaRead
from fxoffload.runtime.devices.streams import CudaStreams
from fxoffload.runtime.engines.checksum import CheckedEngine
from fxoffload.runtime.store.ticket import Ticket

SEEDS = range(40)


@pytest.fixture
def run() -> Iterator[Run]:
    yield from open_run(World(seed=1))


@pytest.fixture(params=["host", "nvme"])
def tier(request: pytest.FixtureRequest) -> str:
    return request.param


def train_all(seeds: range = SEEDS) -> None:
    for seed in seeds:
        for run in open_run(World(seed), piece_bytes=choose_pieces(seed)):
            train(run)
            run.check()


def test_every_order_of_completion_gives_the_same_values() -> None:
    train_all()


@pytest.mark.parametrize("seed", range(10))
def test_a_step_without_memory_is_tried_again(seed: int) -> None:
    """In any place: where x is copied, or y is made. The next step finds everything in order."""
    failed = 0
    for run in open_run(World(seed), piece_bytes=choose_pieces(seed)):
        failed += train_while_memory_lacks(run)
        run.check()
    assert failed >= 3


def test_memory_that_copies_hold_is_waited_for_before_a_value_finds_none(run: Run) -> None:
    """The host is ahead of the copies out, whose values it has let go."""
    run.world.hold()
    first, second = (run.offload(number, block=False) for number in (2, 4))
    assert run.world.live_blocks == 2
    empty, refusals = run.device.streams.empty, [torch.OutOfMemoryError("simulated")]

    def refuse_once(*layout: Any) -> Tensor:
        if refusals:
            raise refusals.pop()
        return empty(*layout)

    run.device.streams.empty = refuse_once
    run.store.prefetch(first)
    assert not refusals
    assert run.world.live_blocks == 1, "only that of the value that comes back"
    run.wait(first)
    for ticket in (first, second):
        run.store.free(ticket)
    run.check()


@pytest.mark.parametrize("seed", range(10))
def test_two_devices_at_once(seed: int) -> None:
    """Each has its streams; the current device of the caller is the one or the other."""
    world = World(seed)
    pieces = choose_pieces(seed)
    for first in open_run(world, piece_bytes=pieces):
        other = make_device(world, torch.device("cuda", 1), piece_bytes=pieces)
        runs = [first, make_run(world, other)]
        numbers = itertools.count(1)
        for _ in range(3):
            saved: list[list[Ticket]] = [[], []]
            for run, tickets in zip(runs, saved, strict=True):
                for tier in ("nvme", "host", "nvme"):
                    world.device = world.random.randrange(2)
                    tickets.append(run.offload(next(numbers), tier=tier))
            for run, tickets in zip(runs, saved, strict=True):
                while tickets:
                    world.device = world.random.randrange(2)
                    run.store.prefetch(tickets[-1])
                    world.device = world.random.randrange(2)
                    run.wait(tickets[-1])
                    run.store.free(tickets.pop())
        world.device = 0
        world.run_all()
        for run in runs:
            for number, least, most in run.seen:
                assert (least, most) == (number, number)
        runs[1].store.close()
        first.check()


def test_refused_pinning_changes_no_value() -> None:
    world = World(seed=4)
    world.refuses_pinning = True
    for run in open_run(world):
        with pytest.warns(RuntimeWarning, match="are pinned, and .* refused: CUDA error"):
            train(run)
        assert run.device.arena.pageable_bytes > 0
        run.check()


def test_a_capture_of_a_cuda_graph_is_refused_and_leaves_nothing(run: Run) -> None:
    ticket, x = run.offload(2), run.make(4)
    run.world.captures = True
    with pytest.raises(StoreError, match="CUDA graph"):
        run.store.offload(x, "x4", "nvme", True)
    with pytest.raises(StoreError, match="CUDA graph"):
        run.store.prefetch(ticket)
    run.world.captures = False
    run.wait(ticket)
    run.store.free(ticket)
    del x
    run.check()


def release_at_once(outgoing: CudaOutgoing, block: bool) -> None:
    outgoing._tensor = None


def forget_event(device: CudaDevice, hold: Hold, *, incoming: bool = False) -> None:
    device._holds[incoming].append(Hold((), hold.buffer, hold.tensors))


def forget_tensors(device: CudaDevice, hold: Hold, *, incoming: bool = False) -> None:
    hold.tensors = ()
    device._holds[incoming].append(hold)


def join_current(
    streams: CudaStreams, events: Sequence[torch.cuda.Event], *_: torch.cuda.Stream
) -> torch.cuda.Stream:
    current = streams.find_current()
    for event in events:
        current.wait_event(event)
    return current


def forget_released(device: CudaDevice, hold: Hold, *, incoming: bool = False) -> None:
    if hold.buffer is not None or not hold.events:
        device._holds[incoming].append(hold)


def copy_in_after(
    chosen: slice,
) -> Callable[[CudaStreams, Tensor, Tensor, Sequence[torch.cuda.Event]], torch.cuda.Event]:
    copy_in = CudaStreams.copy_in
    return lambda streams, target, source, after: copy_in(streams, target, source, after[chosen])


def copy_out_and_tell_too_early(*arguments: Any) -> list[torch.cuda.Event]:
    """All pieces but the last are taken to be copied with the first."""
    events = COPY_OUT(*arguments)
    return [*(events[0] for _ in events[1:]), events[-1]]


def find_first_event(arrival: CudaArrival) -> list[torch.cuda.Event]:
    return [event for hold in arrival._holds[:1] for event in hold.events]


def copy_before_reading(read: CudaRead, start: Callable[[memoryview], Any]) -> None:
    arrive: Any = read._arrive
    incoming, (piece,) = arrive.func.__self__, arrive.args
    incoming.start(incoming._buffer.take_bytes(incoming._span), piece=piece)
    read._arrive = partial(incoming._missing.pop, piece.start)
    START(read, start)


def do_nothing(*_: object) -> None:
    pass


COPY_OUT, START = CudaStreams.copy_out, CudaRead.start


FORGOTTEN: dict[str, tuple[object, str, Callable[..., object]]] = {
    "the copy out waits for what makes x": (Stream, "wait_stream", do_nothing),
    "the write waits for the copy out": (Event, "synchronize", do_nothing),
    "release waits for the copy out": (CudaOutgoing, "release", release_at_once),
    "wait waits for the copy in": (CudaStreams, "join", lambda it, *_: it.find_current()),
    "the copy in waits for readers of its memory": (
        CudaStreams,
        "copy_in",
        copy_in_after(slice(1, None)),
    ),
    "a forwarded value waits for its copy out": (CudaStreams, "copy_in", copy_in_after(slice(1))),
    "a buffer waits for its last copy": (CudaDevice, "hold", forget_event),
    "a value that is not waited for is held until it is copied out": (
        CudaDevice,
        "hold",
        forget_released,
    ),
    "an event tells when it has passed": (Event, "query", lambda _: True),
    "the stream that owns the memory of x waits for the copy out": (
        CudaStreams, "join", join_current,
    ),
    "memory of y is free behind a reader on another stream": (
        CudaStreams, "note_reader", do_nothing,
    ),
    "what was kept moves behind what made it": (
        CudaDevice, "find_order", lambda _: contextlib.nullcontext(),
    ),
    "a value that is given up waits for its copy": (CudaDevice, "hold", forget_tensors),
    "each piece is written behind its own copy": (
        CudaStreams, "copy_out", copy_out_and_tell_too_early,
    ),
    "each piece is copied in behind its own read": (CudaRead, "start", copy_before_reading),
    "wait waits for the copies of all pieces": (CudaArrival, "_find_events", find_first_event),
}  # fmt: skip


@pytest.mark.parametrize("forgotten", FORGOTTEN)
def test_each_order_that_is_forgotten_is_found(
    forgotten: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*FORGOTTEN[forgotten])
    with pytest.raises(AssertionError):
        train_all()


@pytest.mark.parametrize("block", [True, False])
def test_release_waits_only_on_the_device(run: Run, block: bool) -> None:
    """The device waits only with `block`: otherwise each copy would delay later work."""
    run.world.hold()
    ticket = run.offload(2, block=block)
    waits = any(isinstance(command, Wait) for command in run.world.current.queue)
    assert waits == block
    assert run.world.live_blocks == 1 - block
    run.world.run_all()
    run.store.free(ticket)
    assert run.store.statistics().exposed_seconds == 0
    run.check()


def test_memory_of_a_released_value_is_free_once_it_is_copied_out(run: Run, tier: str) -> None:
    """Its bytes in host memory stay, and their write may not have ended."""
    written: Future[int] = Future()
    run.engine.write = lambda view, offset: written
    ticket = run.offload(2, block=False, tier=tier)
    run.world.run_all()
    run.device.let_go()
    assert run.world.live_blocks == 0
    assert ticket.outgoing is not None
    run.wait(ticket)
    written.set_result(1536)
    run.store.free(ticket)
    run.check()


def test_settling_orders_the_device_and_waits_for_no_write(run: Run) -> None:
    """Later work on the stream may then reuse the memory of x."""
    ticket = run.offload(3, block=False)
    (hold,) = run.device._holds[0]
    assert len(hold.tensors) == 1
    run.world.current.queue.clear()
    run.store.settle(ticket)
    assert any(isinstance(command, Wait) for command in run.world.current.queue)
    assert hold.tensors == ()
    assert ticket.write is not None
    assert not ticket.write.done()
    run.store.settle(ticket)  # Nothing is left to do.
    run.store.prefetch(ticket)
    run.wait(ticket)
    run.store.free(ticket)
    run.check()


def test_as_much_is_written_at_a_time_as_the_engine_can(run: Run) -> None:
    """If a thread waited for each write, all drives but one would be idle."""
    writing: list[Future[int]] = []
    run.engine.write = lambda view, offset: writing.append(Future()) or writing[-1]
    tickets = [run.offload(number) for number in range(5)]
    run.world.run_all()
    assert len(writing) == 5
    run.store.free(tickets[1])  # Cancels what the engine has not begun.
    assert writing[1].cancelled()
    writing[2].set_exception(OSError("simulated"))
    for future in (writing[0], *writing[3:]):
        future.set_running_or_notify_cancel()
        future.set_result(1536)
    with pytest.warns(RuntimeWarning, match="simulated"):
        record = run.store.statistics()
    assert record.written_bytes == 3 * tickets[0].nbytes
    assert record.cancelled_bytes == tickets[0].nbytes
    assert (record.write_errors, record.inflight_bytes) == (1, 0)
    for ticket in tickets:
        run.store.free(ticket)
    run.check()


def test_values_are_copied_out_while_earlier_ones_are_written(run: Run) -> None:
    """The engine gets the pinned memory that each was copied to, aligned for direct I/O."""
    views: list[memoryview] = []
    writing: list[Future[int]] = []

    def write(view: memoryview, offset: int) -> Future[int]:
        views.append(view)
        writing.append(Future())
        return writing[-1]

    run.engine.write = write
    tickets = [run.offload(number) for number in (2, 4)]
    run.world.run_all()
    assert not any(future.done() for future in writing)
    for view, number in zip(views, (2, 4), strict=True):
        came = torch.frombuffer(view, dtype=torch.float32)[:LENGTH]
        assert came.eq(number).all(), "the copy of the second waits for no write of the first"
        (pinned,) = run.world.host_memory
        assert 0 <= came.data_ptr() - pinned.data_ptr() < len(pinned), "no second copy"
        assert came.data_ptr() % 4096 == len(view) % 512 == 0
    assert run.device.arena.pageable_bytes == 0
    for future in writing:
        future.set_result(1536)
    for ticket in tickets:
        run.store.free(ticket)
    run.check()


@pytest.fixture
def run_of_pieces() -> Iterator[Run]:
    """Each value has three: 512, 512 and 176 bytes, the last one padded to 512."""
    yield from open_run(World(seed=1), piece_bytes=512)


def find_copied(world: World, y: Tensor) -> list[bool]:
    """Whether each piece of a value of 2 is on the device."""
    raw = world.alias(y).flatten()
    return [bool(raw[start : start + 128].eq(2).all()) for start in (0, 128, 256)]


def test_a_piece_is_written_while_the_next_one_is_copied(run_of_pieces: Run) -> None:
    run = run_of_pieces
    views: list[memoryview] = []
    run.engine.write = lambda view, offset: views.append(view) or Future()
    run.world.hold()
    ticket = run.offload(2)
    out = run.device.streams._out
    assert isinstance(out, Stream)
    for written in range(3):
        assert len(views) == written
        assert len(out.queue) >= 3 * (3 - written), "each copy has two steps, and its event"
        run.world.jobs.pop(0)()
        assert torch.frombuffer(views[written], dtype=torch.float32)[:40].eq(2).all()
    assert [len(view) for view in views] == [512] * 3
    assert ticket.write is not None
    assert ticket.write.cancel()
    run.store.free(ticket)
    run.check()


def test_a_piece_is_copied_back_while_the_next_one_is_read(run_of_pieces: Run) -> None:
    run = run_of_pieces
    ticket = run.offload(2)
    run.world.run_all()
    run.world.hold()
    run.store.prefetch(ticket)
    (prefetch,) = ticket.prefetches
    assert prefetch.read is not None
    copied = [False] * 3
    for index in (1, 0, 2):  # Whichever the drive is done with.
        assert not prefetch.done
        run.world.jobs.pop(index if index < 2 else 0)()
        while any(stream.can_step() for stream in run.world.streams):
            next(stream for stream in run.world.streams if stream.can_step()).step()
        copied[index] = True
        assert find_copied(run.world, prefetch.arrival.y) == copied
    assert prefetch.done
    run.wait(ticket)
    del prefetch
    run.store.free(ticket)
    run.check()


def test_what_goes_to_host_memory_is_copied_as_a_whole(run_of_pieces: Run) -> None:
    """No write waits for parts of it; if that is full, the parts wait for the whole."""
    run = run_of_pieces
    tickets = [run.offload(number, tier="host") for number in (2, 4, 6)]
    assert [ticket.tier for ticket in tickets] == ["host", "host", "nvme"]
    for ticket in tickets:
        assert isinstance(ticket.outgoing, CudaOutgoing)
        assert len(ticket.outgoing._pieces_copied) == 1
    run.world.run_all()
    assert len(run.engine._bytes) == 3
    for ticket in tickets:
        run.wait(ticket)
        run.store.free(ticket)
    run.check()


def test_a_retry_reads_what_is_missing(run_of_pieces: Run) -> None:
    """The copy of another piece may still read its part of the buffer."""
    run = run_of_pieces
    ticket = run.offload(2)
    run.world.run_all()
    run.engine.read_failures = 1
    run.store.prefetch(ticket)
    run.world.run_all()
    (prefetch,) = ticket.prefetches
    assert prefetch.read is not None
    assert prefetch.done
    y, reads = prefetch.arrival.y, list[int]()
    assert sum(find_copied(run.world, y)) == 2
    read = run.engine.read
    run.engine.read = lambda view, offset: reads.append(len(view)) or read(view, offset)
    run.wait(ticket)
    assert reads == [512]
    assert find_copied(run.world, y) != [True] * 3 or run.world.run_all() is None
    del y, prefetch
    run.store.free(ticket)
    record = run.store.statistics()
    assert (record.read_errors, record.read_bytes) == (1, ticket.nbytes)
    run.check()


@pytest.mark.filterwarnings("ignore:.*could not be offloaded:RuntimeWarning")
@pytest.mark.parametrize("checked", [False, True])
def test_pieces_that_fail_fail_their_value(checked: bool) -> None:
    """Written or not, read again or not, cancelled half way: the value, or an error."""
    failed = 0
    for seed in range(12):
        world = World(seed)
        for run in open_run(world, piece_bytes=(1024, 512)[seed % 2]):
            if checked:
                run.store.engines["nvme"] = CheckedEngine(run.engine, run.device.piece_bytes)
            for number in range(2, 10):
                run.engine.write_failures = world.random.choice((0, 0, 1, 2))
                ticket = run.offload(number, block=world.random.random() < 0.5)
                world.random.choice((world.progress, world.run_all, world.run_all))()
                run.engine.read_failures = world.random.choice((0, 0, 1, 4))
                with run.on_some_stream():
                    run.store.prefetch(ticket)
                if world.random.random() < 0.8:
                    try:
                        run.wait(ticket)
                    except TransferError:
                        failed += 1
                run.store.free(ticket)
                if world.random.random() < 0.2:
                    world.empty_cache()
            run.engine.write_failures = run.engine.read_failures = 0
            run.check()
            assert run.store.statistics().inflight_bytes == 0
            assert run.engine._bytes == {}
            nvme = run.store.engines["nvme"]
            assert not isinstance(nvme, CheckedEngine) or nvme._written == {}
    assert failed >= 3


def test_a_store_that_is_closed_ends_all_pieces(run_of_pieces: Run) -> None:
    run = run_of_pieces
    run.world.hold()
    written, read = run.offload(2), run.offload(3)
    run.world.run_all()
    run.store.prefetch(read)
    late = run.offload(4)
    run.store.close()
    assert late.write is None
    assert late.stored
    for ticket in (written, read, late):
        run.store.free(ticket)
    run.check()


def test_a_write_that_waits_for_its_copy_is_cancelled(run: Run, tier: str) -> None:
    run.world.hold()
    ticket = run.offload(2, tier=tier)
    run.store.free(ticket)
    record = run.store.statistics()
    assert (record.cancelled_bytes, record.written_bytes) == (ticket.nbytes, 0)
    run.check()
    assert run.store.statistics().written_bytes == 0


def test_a_reload_is_copied_before_anybody_waits(run: Run) -> None:
    ticket = run.offload(2)
    run.world.run_all()
    run.store.prefetch(ticket)
    run.world.run_all()
    y = ticket.prefetches[0].arrival.y
    assert torch.equal(run.world.alias(y), torch.full((LENGTH,), 2.0))
    assert run.wait(ticket) is y
    del y
    run.store.free(ticket)
    assert run.store.statistics().read_bytes == ticket.nbytes
    run.check()


def test_memory_of_a_value_is_not_held_after_its_wait(run: Run) -> None:
    """The last reference of the program frees it, even if no buffer is requested later."""
    ticket = run.offload(2)
    for forwarded in (True, False):
        run.store.prefetch(ticket)
        y = run.wait(ticket)
        run.world.run_all()
        assert run.world.live_blocks == 1
        del y
        assert run.world.live_blocks == 0
        assert (run.store.statistics().read_bytes == 0) == forwarded
    run.store.free(ticket)
    run.check()


def test_what_goes_to_host_memory_stays_where_it_was_copied_to(run: Run) -> None:
    """There is no second copy on the host; the slot only counts the bytes used."""
    tickets = [run.offload(number, tier="host") for number in (2, 4, 6)]
    run.world.run_all()
    done = run.store.statistics()
    assert done.host_written_bytes == 2 * tickets[0].nbytes
    assert done.written_bytes == 3 * tickets[0].nbytes
    assert done.host_overflow_bytes == tickets[2].nbytes
    assert [ticket.outgoing is None for ticket in tickets] == [False, False, True]
    held = run.device.arena.used_bytes
    for _ in range(2):
        for ticket in tickets:
            run.store.prefetch(ticket)
            run.world.run_all()
            run.wait(ticket)
    done = run.store.statistics()
    assert done.host_read_bytes == 2 * done.host_written_bytes
    assert done.read_bytes == 2 * done.written_bytes
    assert done.forwarded_bytes == 0
    assert run.device.arena.used_bytes >= held
    for ticket in tickets:
        run.store.free(ticket)
    run.check()


def test_no_thread_is_woken_for_what_stays_in_host_memory(run: Run) -> None:
    """It would contend for the interpreter with the program; later ops look at the event."""
    run.world.hold()
    ticket = run.offload(2, tier="host")
    assert run.world.jobs == []
    assert run.store.statistics().inflight_bytes == ticket.nbytes
    run.world.run_all()
    other = run.offload(4, tier="nvme")
    assert (ticket.write, len(run.world.jobs)) == (None, 1)
    for each in (ticket, other):
        run.store.free(each)
    run.check()


def run_without(lock: threading.Lock, world: World) -> None:
    """Replaces a condition's wait: releases the lock while the world runs."""
    lock.release()
    world.run_all()
    lock.acquire()


def test_what_stays_where_it_is_copied_to_waits_for_no_room() -> None:
    """The host runs ahead of a GPU: it would wait for copies of what is not even computed."""
    for tier, waits in (("nvme", True), ("host", False)):
        world = World(seed=1)
        for run in open_run(world):
            world.hold()
            run.store._ledger._max_inflight_bytes = 1
            first = run.offload(2, tier=tier)

            run.store._ledger._changed.wait = partial(run_without, run.store._ledger.lock, world)
            second = run.offload(4, tier=tier)
            assert (run.store.statistics().inflight_bytes == first.nbytes) == waits
            world.run_all()
            assert run.store.statistics().inflight_bytes == 0
            for ticket in (first, second):
                run.store.free(ticket)
            run.check()


def test_what_finds_host_memory_full_counts_towards_the_cap() -> None:
    for run in open_run(World(seed=1)):
        run.world.hold()
        tickets = [run.offload(number, tier="host") for number in (2, 4, 6)]
        assert [ticket.tier for ticket in tickets] == ["host", "host", "nvme"]
        assert run.store._ledger._capped_bytes == tickets[2].nbytes
        run.world.run_all()
        assert run.store._ledger._capped_bytes == 0
        for ticket in tickets:
            run.store.free(ticket)
        run.check()


def test_what_comes_back_over_the_bus_is_not_forwarded(run: Run, tier: str) -> None:
    """The same holds if the host requests it before the copy out has begun."""
    run.world.hold()
    ticket = run.offload(2, tier=tier)
    run.store.prefetch(ticket)
    run.wait(ticket)
    run.store.free(ticket)
    run.world.run_all()
    done = run.store.statistics()
    assert done.forwarded_bytes == 0
    crossed = (ticket.nbytes, 0) if tier == "host" else (0, ticket.nbytes)
    assert (done.host_read_bytes, done.staged_bytes) == crossed
    run.check()


def test_expanded_values_come_back(run: Run) -> None:
    """An expanded row is copied once, and expanded again."""
    world = run.world
    x = world.empty_strided((4, LENGTH), (0, 1), dtype=torch.float32)
    raw = world.alias(x)
    world.launch(lambda: raw[0].fill_(3))
    ticket = run.store.offload(x, "x3", "nvme", True)
    run.store.release(ticket, block=True)
    del x
    for _ in range(2):
        run.store.prefetch(ticket)
        y = run.wait(ticket)
        assert (y.shape, y.stride()) == ((4, LENGTH), (0, 1))
        world.run_all()
    del y
    run.store.free(ticket)
    assert ticket.nbytes == LENGTH * 4
    assert run.store.statistics().read_bytes == ticket.nbytes
    assert len(run.seen) == 2
    run.check()


def test_a_read_that_fails_for_good_leaves_nothing(run: Run) -> None:
    ticket = run.offload(2)
    run.world.run_all()
    run.engine.read_failures = 2
    run.store.prefetch(ticket)
    with pytest.raises(TransferError, match=r"x2: .*read"):
        run.wait(ticket)
    run.store.prefetch(ticket)
    run.wait(ticket)
    run.store.free(ticket)
    run.check()


def test_a_value_that_dies_unreleased_is_held_until_its_copy_is_done(run: Run) -> None:
    world = run.world
    x = world.empty_strided((LENGTH,), (1,), dtype=torch.float32)
    world.hold()
    outgoing = run.device.send(x, 512, run.engine)
    del x
    outgoing.close()
    assert world.live_blocks == 1
    world.run_all()
    run.check()


def test_steps_alike_pin_nothing_new() -> None:
    """Equal steps pin no new memory; buffers beyond the bound are pageable, with equal values."""
    for staging_bytes, least_pinned_bytes in ((2**20, 2**16), (2**14, 2**12), (0, 0)):
        world = World(seed=3)
        for run in open_run(world, staging_bytes):
            train(run, 4)
            pinned = list(world.pinned_bytes)
            assert least_pinned_bytes <= sum(pinned) <= staging_bytes
            train(run, 6)
            if staging_bytes != 2**14:
                assert world.pinned_bytes == pinned
            assert sum(world.pinned_bytes) <= staging_bytes
            run.check()
