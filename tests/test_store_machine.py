"""A state machine that runs thousands of random store operations against a model.

The engines are real. Between them and the store, the state machine delays writes and reads, makes
them fail or come up short, or makes the tier full. The model knows the calls that it made and the
calls that the engines got; of a ticket it reads only `lent`.
"""

from __future__ import annotations

import errno
import os
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, precondition, rule

from fxoffload.errors import ModifiedError, StoreError, StoreFull, TransferError
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture, find_outcome
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket
from fxoffload.torch_internals import is_shared, make_version_counter

CPU = torch.device("cpu")
CAP_BYTES = 400_000
HOST_BYTES = 500_000
# How a transfer goes: at once, not before it is let go, not before that and beyond cancelling, ...
GOOD = ("now", "queued", "running")
ERRORS = {
    "OSError": OSError(errno.EIO, os.strerror(errno.EIO)),
    "RuntimeError": RuntimeError("CUDA error: an illegal memory access was encountered"),
    "MemoryError": MemoryError(),
}
BAD = (*ERRORS, "short")
READS = st.lists(st.sampled_from([*GOOD, *BAD]), max_size=2)
COUNTED = (
    "offloads", "offloaded_bytes", "read_bytes", "host_read_bytes", "forwarded_bytes",
    "host_overflow_bytes", "read_errors", "kept_bytes", "deduplicated_bytes",
)  # fmt: skip


@dataclass
class Slot:
    """A place in an engine, and how the write to it ended."""

    tier: str
    offset: int
    written: str = "unknown"  # Then "all", "error", "short" or "cancelled".
    transfers: set[IOFuture] = field(default_factory=set)


class Held(Future[int]):
    """A transfer that begins when it is let go."""

    def __init__(self, begin: Callable[[], int], running: bool) -> None:
        super().__init__()
        self._begin = begin
        if running:
            assert self.set_running_or_notify_cancel()

    def let_go(self) -> None:
        begin, self._begin = self._begin, lambda: 0  # It has the value's memory.
        if self.running() or (not self.done() and self.set_running_or_notify_cancel()):
            self.set_result(begin())


@dataclass
class ScriptedEngine:
    """`inner`, with transfers that go as told; notes every slot."""

    inner: IOEngine
    tier: str
    waits: bool  # For each transfer that is not held up, so that the same steps do the same.
    full: bool = False
    next_write: str = "now"
    next_reads: list[str] = field(default_factory=list)
    slots: dict[int, Slot] = field(default_factory=dict)
    last_slot: Slot | None = None
    held: list[Held] = field(default_factory=list)
    reads: int = 0
    refusals: int = 0

    def __post_init__(self) -> None:
        self.name, self.alignment = self.inner.name, self.inner.alignment
        self.move_device = None
        self.reserve, self.describe = self.inner.reserve, self.inner.describe

    def allocate(self, nbytes: int) -> int:
        try:
            if self.full:
                raise StoreFull(f"{self.tier}: full on purpose")
            offset = self.inner.allocate(nbytes)
        except StoreFull:
            self.refusals += 1
            raise
        assert offset not in self.slots
        self.last_slot = self.slots[offset] = Slot(self.tier, offset)
        return offset

    def free(self, offset: int) -> None:
        assert not self.slots.pop(offset).transfers
        self.inner.free(offset)

    def write(self, view: memoryview, offset: int) -> IOFuture:
        slot, self.next_write, kind = self.slots[offset], "now", self.next_write

        def note(future: IOFuture) -> None:
            outcome = find_outcome(future)
            if isinstance(outcome, Exception):
                slot.written = "error"
            else:
                slot.written = {None: "cancelled", len(view): "all"}.get(outcome, "short")

        return self._start(self.inner.write, view, slot, kind, note)

    def read(self, view: memoryview, offset: int) -> IOFuture:
        slot = self.slots[offset]
        assert slot.written == "all"
        self.reads += 1
        kind = self.next_reads.pop(0) if self.next_reads else "now"
        return self._start(self.inner.read, view, slot, kind, lambda _: None)

    def let_go(self) -> None:
        """Begin what is held, and end it."""
        while self.held:
            self.held.pop(0).let_go()

    def close(self) -> None:
        self.let_go()
        self.inner.close()

    def _start(
        self,
        move: Callable[[memoryview, int], IOFuture],
        view: memoryview,
        slot: Slot,
        kind: str,
        note: Callable[[IOFuture], None],
    ) -> IOFuture:
        if kind == "now":
            future = move(view, slot.offset)
            if self.waits:
                find_outcome(future)
        elif kind in BAD:
            future = Future[int]()
            if kind in ERRORS:
                future.set_exception(ERRORS[kind])
            else:
                future.set_result(len(view) - 1)
        else:
            future = Held(lambda: move(view, slot.offset).result(), kind == "running")
            self.held.append(future)
        slot.transfers.add(future)

        def end(future: IOFuture) -> None:
            note(future)
            slot.transfers.discard(future)

        future.add_done_callback(end)  # Before those of the store.
        return future


@dataclass
class Value:
    """What was offloaded, and all that came of it."""

    ticket: Ticket
    x: torch.Tensor | None  # None when the program has dropped it.
    expected: torch.Tensor
    owned: bool
    slot: Slot | None
    tier: str
    holders: int = 1
    offset: int = 0
    kept: bool = False
    changed: bool = False
    released: bool = False
    lent: bool = False
    # How the read of each prefetch went, or nothing when it was forwarded.
    prefetched: list[list[str]] = field(default_factory=list)

    @property
    def nbytes(self) -> int:
        return self.ticket.nbytes

    @property
    def shared(self) -> bool:
        """Whether what comes back is the caller's own tensor."""
        return self.kept and not self.offset

    @property
    def in_slot(self) -> bool:
        """Whether its slot must still be held, once every write has ended."""
        return self.slot is not None and self.slot.written == "all" and not self.lent


@dataclass
class Sums:
    """What the counters must be; of writes, the slots, as they end at any time."""

    offloads: int = 0
    offloaded_bytes: int = 0
    read_bytes: int = 0
    host_read_bytes: int = 0
    forwarded_bytes: int = 0
    host_overflow_bytes: int = 0
    read_errors: int = 0
    kept_bytes: int = 0
    deduplicated_bytes: int = 0
    refused: int = 0
    writes: list[tuple[Slot, int]] = field(default_factory=list)

    def written(self, *ends: str, tier: str = "") -> int:
        return sum(
            nbytes for slot, nbytes in self.writes if slot.written in ends and tier in slot.tier
        )


class StoreMachine(RuleBasedStateMachine):
    """Random use of a store, on memory; one transfer after the other."""

    waits = True

    def open_inner(self) -> IOEngine:
        return MemoryEngine(2**24)

    def __init__(self) -> None:
        super().__init__()
        self.nvme = ScriptedEngine(self.open_inner(), "nvme", self.waits)
        self.host = ScriptedEngine(MemoryEngine(HOST_BYTES), "host", self.waits)
        self.engines = (self.nvme, self.host)
        self.last = False
        self.store = OffloadStore(
            {"nvme": self.nvme, "host": self.host},
            max_inflight_bytes=CAP_BYTES,
            keeps_graph=lambda: not self.last,
            is_shared=is_shared,
            make_counter=make_version_counter,
        )
        self.values: list[Value] = []
        self.sums = Sums()
        self.count = 0
        self.largest_bytes = 0
        self.failed = False
        self.warned = 0

    @rule(
        numel=st.sampled_from([1, 500, 16_383, 16_384, 30_011, 70_001, 0]),
        dtype=st.sampled_from([torch.float32, torch.bfloat16]),
        layout=st.sampled_from(["plain", "gaps", "offset", "transposed"]),
        owned=st.booleans(),
        tier=st.sampled_from(["nvme", "host"]),
        stays=st.sampled_from([False, False, False, True]),
        write=st.sampled_from([*GOOD, *GOOD, *BAD]),
        block=st.sampled_from([True, True, False, None]),
    )
    def offload(
        self,
        numel: int,
        dtype: torch.dtype,
        layout: str,
        owned: bool,
        tier: str,
        stays: bool,
        write: str,
        block: bool | None,
    ) -> None:
        """`block` is that of the release, which comes later, or not at all, when it is None.

        stays: whether a value of the caller's is kept where it is.
        """
        self.count += 1
        generator = torch.Generator().manual_seed(self.count)
        x = torch.randn(2 * numel + 6, generator=generator).to(dtype)
        if layout == "plain":
            x = x[:numel].clone()
        elif layout == "gaps":
            x = x[: 2 * numel : 2]
        elif layout == "offset":
            x = x[5 : 5 + numel]
        else:
            x = x[: numel // 2 * 2].view(2, -1).t()
        engine = self.nvme if tier == "nvme" else self.host
        refusals = self.nvme.refusals, self.host.refusals
        for each in self.engines:
            each.next_write, each.last_slot = write, None
        with self.count_warnings():
            inflight_bytes = self.store.statistics().inflight_bytes
        if inflight_bytes + x.nbytes > CAP_BYTES:
            self.let_go()  # It waits until writes end.
        name, stays = f"value_{self.count}", stays and not owned
        with self.count_warnings():
            if stays:
                ticket = self.store.keep(x, name, tier, owned)
            else:
                ticket = self.store.offload(x, name, tier, owned)
        for each in self.engines:
            each.next_write = "now"
        slot = self.nvme.last_slot or self.host.last_slot
        value = Value(ticket, x, x.clone(), owned, slot, slot.tier if slot else tier)
        value.offset = x.storage_offset()
        self.values.append(value)
        sums = self.sums
        if stays:
            assert slot is None
            value.kept = True
            sums.kept_bytes += value.nbytes
            return
        self.largest_bytes = max(self.largest_bytes, value.nbytes)
        sums.offloads += 1
        sums.offloaded_bytes += value.nbytes
        refused = (self.nvme.refusals, self.host.refusals) != refusals
        if value.nbytes == 0:
            assert slot is None
        elif slot is None:
            assert refused
            sums.refused += 1
            self.failed = True
        else:
            sums.writes.append((slot, value.nbytes))
            if refused:
                assert (engine, slot.tier) == (self.host, "nvme")
                sums.host_overflow_bytes += value.nbytes
            self.failed |= write in BAD
        if block is not None:
            self.release_value(value, block)

    @precondition(lambda self: self.values)
    @rule(data=st.data(), block=st.booleans())
    def share(self, data: st.DataObject, block: bool) -> None:
        """Another graph saves the same tensor of the caller's."""
        value = self.pick(data)
        if value.owned or value.x is None or value.changed or value.lent:
            return
        save = self.store.keep if value.kept else self.store.offload
        with self.count_warnings():
            assert save(value.x, "other", value.tier, False) is value.ticket
        value.holders += 1
        if not value.kept:
            self.sums.deduplicated_bytes += value.nbytes
        self.release_value(value, block)

    @precondition(lambda self: self.values)
    @rule(data=st.data(), block=st.booleans())
    def release(self, data: st.DataObject, block: bool) -> None:
        value = self.pick(data)
        if not value.released:
            self.release_value(value, block)

    @precondition(lambda self: self.values)
    @rule(data=st.data())
    def forget(self, data: st.DataObject) -> None:
        """The program drops the tensor."""
        value = self.pick(data)
        if value.released or value.kept:
            value.x = None

    @precondition(lambda self: self.values)
    @rule(data=st.data())
    def change(self, data: st.DataObject) -> None:
        """The caller writes to a tensor of its own."""
        value = self.pick(data)
        if not value.owned and value.released and value.x is not None:
            value.x.add_(1)
            value.changed = True

    def release_value(self, value: Value, block: bool) -> None:
        if block:
            self.let_go()  # It waits for the write.
        with self.count_warnings():
            self.store.release(value.ticket, block)
        value.released = True
        if block and not value.kept:
            assert value.x is not None
            value.x.data.zero_()  # As what reuses the memory does: no version tells of it.

    @precondition(lambda self: self.values)
    @rule(data=st.data(), last=st.booleans(), reads=READS)
    def prefetch(self, data: st.DataObject, last: bool, reads: list[str]) -> None:
        value = self.pick(data)
        self.plan_reads(reads)
        self.last = last
        refusal = "modified by an inplace" if value.changed else "was to be the last"
        if value.lent or value.changed:
            with self.count_warnings(), pytest.raises(StoreError, match=refusal):
                self.store.prefetch(value.ticket)
            return
        plan, before = self.find_plan(value), self.count_reads()
        with self.count_warnings():
            self.store.prefetch(value.ticket)
        attempts = plan[: self.count_reads() - before]
        self.note_forward(value, attempts)
        value.prefetched.append(attempts)

    @precondition(lambda self: self.values)
    @rule(data=st.data(), last=st.booleans(), reads=READS)
    def wait(self, data: st.DataObject, last: bool, reads: list[str]) -> None:
        """What was prefetched, the latest first; what was not is brought back now."""
        self.plan_reads(reads)
        value = self.pick(data)
        self.last = last
        attempts = value.prefetched.pop() if value.prefetched else None
        if value.shared and value.changed and attempts is not None:
            with self.count_warnings(), pytest.raises(ModifiedError):
                self.store.wait(value.ticket)
            return
        if attempts is not None or not (value.lent or value.changed):
            self.end_transfer(value, attempts)

    @precondition(lambda self: self.values)
    @rule(data=st.data())
    def drop(self, data: st.DataObject) -> None:
        value = self.pick(data)
        value.holders -= 1
        if not value.holders:
            self.values.remove(value)
        self.store.free(value.ticket)

    @rule(tier=st.sampled_from(["nvme", "host"]), full=st.booleans())
    def fill(self, tier: str, full: bool) -> None:
        (self.nvme if tier == "nvme" else self.host).full = full

    @rule()
    def let_go(self) -> None:
        for engine in self.engines:
            engine.let_go()

    @rule(reset=st.booleans())
    def settle(self, reset: bool) -> None:
        """When every transfer has ended, the store is what the model is."""
        self.let_go()
        deadline = time.monotonic() + 5
        while True:
            with self.count_warnings():
                record = self.store.statistics()
            found = record.inflight_bytes, record.live_bytes, record.host_live_bytes
            slots = [value for value in self.values if value.in_slot]
            live_bytes = sum(value.nbytes for value in slots)
            host_bytes = sum(value.nbytes for value in slots if value.tier == "host")
            if found == (0, live_bytes, host_bytes):
                break
            assert time.monotonic() < deadline, (found, live_bytes, host_bytes)
            time.sleep(0.001)
        held = {id(slot) for engine in self.engines for slot in engine.slots.values()}
        assert held == {id(value.slot) for value in slots}
        sums = self.sums
        assert record.peak_inflight_bytes <= max(CAP_BYTES, self.largest_bytes)
        for name in COUNTED:
            assert getattr(record, name) == getattr(sums, name), name
        assert record.written_bytes == sums.written("all")
        assert record.host_written_bytes == sums.written("all", tier="host")
        assert record.cancelled_bytes == sums.written("cancelled")
        failed = sum(slot.written in ("error", "short") for slot, _ in sums.writes)
        assert record.write_errors == sums.refused + failed
        assert self.warned == self.failed
        if reset:
            self.store.reset_statistics()
            self.sums = Sums()

    def teardown(self) -> None:
        self.settle(reset=False)
        for value in self.values[::2]:
            for _ in range(value.holders):
                self.store.free(value.ticket)
        with self.count_warnings():
            self.store.close()
        for value in self.values[1::2]:
            for _ in range(value.holders):
                self.store.free(value.ticket)
        self.values.clear()
        self.settle(reset=False)
        for engine in self.engines:
            assert not engine.slots
            assert engine.inner.end_bytes == 0

    @contextmanager
    def count_warnings(self) -> Iterator[None]:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            yield
        self.warned += len(caught)
        assert all("could not be offloaded" in str(each.message) for each in caught)

    def pick(self, data: st.DataObject) -> Value:
        """Mostly one of the latest, so that several steps meet at one value."""
        largest = len(self.values) - 1
        return self.values[
            -1 - data.draw(st.integers(0, min(1, largest)) | st.integers(0, largest))
        ]

    def plan_reads(self, kinds: list[str]) -> None:
        for engine in self.engines:
            engine.next_reads = list(kinds)

    def count_reads(self) -> int:
        return sum(engine.reads for engine in self.engines)

    def find_plan(self, value: Value) -> list[str]:
        """How the next two reads of `value` go."""
        engine = self.nvme if value.tier == "nvme" else self.host
        return [*engine.next_reads, "now", "now"][:2]

    def note_forward(self, value: Value, attempts: list[str]) -> None:
        if value.kept and self.last and value.holders == 1:
            value.lent = True
        if attempts or value.kept:
            return
        self.sums.forwarded_bytes += value.nbytes
        if value.ticket.lent:
            assert value.owned
            assert value.released
            assert self.last
            value.lent = True

    def end_transfer(self, value: Value, attempts: list[str] | None) -> None:
        """Check what comes back; `attempts` are the reads that are waited for, None if none is
        known."""
        self.let_go()
        for engine in self.engines:  # Nobody lets go of a read while it is waited for.
            engine.next_reads = [kind if kind in BAD else "now" for kind in engine.next_reads]
        plan, reads = self.find_plan(value), self.count_reads()
        y = error = None
        with self.count_warnings():
            try:
                y = self.store.wait(value.ticket)
            except TransferError as caught:
                error = str(caught)
        made = plan[: self.count_reads() - reads]
        if attempts is None:
            self.note_forward(value, made)
        attempts = [*(attempts or []), *made]
        failures = sum(kind in BAD for kind in attempts)
        assert len(attempts) == (0 if not attempts else 2 if attempts[0] in BAD else 1)
        assert (y is None) == (failures == 2)
        self.sums.read_errors += failures
        if y is None:
            assert f"{value.ticket.name}: " in error
            return
        assert torch.equal(y, value.expected)
        if value.shared:
            return  # It is the caller's tensor.
        y.zero_()  # It is the backward's: nobody else may need it.
        if attempts:
            self.sums.read_bytes += value.nbytes
            self.sums.host_read_bytes += value.nbytes if value.tier == "host" else 0


class PosixStoreMachine(StoreMachine):
    """On a spill file; transfers end at any time."""

    waits = False
    directory: Path

    def open_inner(self) -> IOEngine:
        return PosixEngine([SpillFile(self.directory)])


@pytest.fixture(autouse=True, scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> None:
    PosixStoreMachine.directory = tmp_path_factory.mktemp("machine")


TestMemoryMachine = StoreMachine.TestCase
TestPosixMachine = PosixStoreMachine.TestCase
TestMemoryMachine.settings = TestPosixMachine.settings = settings(
    max_examples=100, stateful_step_count=60, deadline=None
)
