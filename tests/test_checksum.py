"""Digests: a flipped bit is detected and reported, and after a transient fault the read repeats."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
from engine_contract import EngineContract, make_view
from waiting import wait_for_writes

from fxoffload.config import OffloadConfig
from fxoffload.errors import ChecksumError, ConfigError, TransferError
from fxoffload.runtime import find_store, register_store, stores
from fxoffload.runtime.engines.checksum import CheckedEngine, DigestMismatch
from fxoffload.runtime.engines.ioengine import find_outcome
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket

CPU = torch.device("cpu")
Flip = Callable[[Ticket], None]


class Checked(CheckedEngine):
    """What the contract asks for besides the protocol."""

    @property
    def end_bytes(self) -> int:
        assert isinstance(self._inner, MemoryEngine)
        return self._inner.end_bytes


class TestContract(EngineContract):
    @pytest.fixture
    def engine(self) -> Iterator[CheckedEngine]:
        engine = Checked(MemoryEngine(2**29))
        yield engine
        engine.close()

    def test_a_part_of_a_slot(self, engine: CheckedEngine) -> None:
        """Digests are of whole slots: a slot that was changed in part is not what was written."""
        offset = engine.allocate(8)
        engine.write(make_view(8, seed=1), offset).result()
        engine._inner.write(make_view(2, seed=2), offset + 4).result()
        with pytest.raises(DigestMismatch):
            engine.read(make_view(8), offset).result()


@pytest.fixture(params=["posix", "memory"])
def store_and_flip(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple]:
    """A checked store, and what flips one bit of a value that it holds."""
    if request.param == "posix":
        file = SpillFile(tmp_path)
        inner = PosixEngine([file])
    else:
        inner = MemoryEngine(2**26)

    def flip(ticket: Ticket) -> None:
        assert ticket.slot is not None
        position = ticket.slot + 777
        if isinstance(inner, MemoryEngine):
            inner._memory[position] ^= 4
            return
        with open(f"/proc/self/fd/{file.fd}", "r+b", buffering=0) as disk:
            disk.seek(position)
            byte = disk.read(1)[0]
            disk.seek(position)
            disk.write(bytes([byte ^ 4]))

    store = OffloadStore({"nvme": CheckedEngine(inner)}, max_inflight_bytes=2**26)
    yield store, flip
    assert store.statistics().live_bytes == 0
    store.close()


def put(store: OffloadStore, nbytes: int) -> tuple[Ticket, torch.Tensor]:
    generator = torch.Generator().manual_seed(nbytes)
    x = torch.randint(0, 256, (nbytes,), dtype=torch.uint8, generator=generator)
    ticket = store.offload(x, "layer_3.mlp", "nvme", True)
    store.release(ticket, block=True)
    wait_for_writes(store.statistics)
    return ticket, x


def get(store: OffloadStore, ticket: Ticket, like: torch.Tensor) -> torch.Tensor:
    store.prefetch(ticket)
    return store.wait(ticket)


@pytest.mark.parametrize("nbytes", [1000, 64 * 1024, 300_001])
def test_values_come_back(store_and_flip: tuple[OffloadStore, Flip], nbytes: int) -> None:
    store, _ = store_and_flip
    ticket, x = put(store, nbytes)
    assert torch.equal(get(store, ticket, x), x)
    record = store.statistics()
    assert record.written_bytes == record.read_bytes == nbytes
    assert record.read_errors == record.checksum_errors == record.write_errors == 0
    store.free(ticket)


@pytest.mark.parametrize("nbytes", [1000, 300_001])
def test_a_flipped_bit_is_named(store_and_flip: tuple[OffloadStore, Flip], nbytes: int) -> None:
    store, flip = store_and_flip
    ticket, x = put(store, nbytes)
    flip(ticket)
    with pytest.raises(ChecksumError) as caught:
        get(store, ticket, x)
    assert isinstance(caught.value, TransferError)
    mismatch = caught.value.__cause__
    assert isinstance(mismatch, DigestMismatch)
    assert mismatch.written != mismatch.found
    message = str(caught.value)
    assert message.startswith("layer_3.mlp: ")
    for words in (
        f"({nbytes} bytes)",
        ticket.describe_place(),
        f"{mismatch.written:016x}",
        f"{mismatch.found:016x}",
    ):
        assert words in message
    record = store.statistics()
    assert (record.read_bytes, record.read_errors, record.checksum_errors) == (0, 2, 2)
    flip(ticket)  # Back.
    assert torch.equal(get(store, ticket, x), x)
    assert store.statistics().read_bytes == nbytes
    store.free(ticket)


def test_a_passing_fault_is_read_again() -> None:
    inner = MemoryEngine(2**26)
    read, spoiled = inner.read, []

    def spoil_once(view: memoryview, offset: int) -> Future[int]:
        future = read(view, offset)
        future.result()
        if not spoiled:
            view[5] ^= 1
            spoiled.append(offset)
        return future

    inner.read = spoil_once
    store = OffloadStore({"nvme": CheckedEngine(inner)}, max_inflight_bytes=2**26)
    ticket, x = put(store, 100_000)
    assert torch.equal(get(store, ticket, x), x)
    record = store.statistics()
    assert (record.read_errors, record.checksum_errors, record.read_bytes) == (1, 1, 100_000)
    store.free(ticket)
    store.close()


def test_without_digests_nothing_is_found() -> None:
    """What the option is for: the same fault, unnoticed."""
    inner = MemoryEngine(2**26)
    store = OffloadStore({"nvme": inner}, max_inflight_bytes=2**26)
    ticket, x = put(store, 100_000)
    assert ticket.slot is not None
    inner._memory[ticket.slot + 7] ^= 1
    assert not torch.equal(get(store, ticket, x), x)
    store.free(ticket)
    store.close()


def test_a_slot_forgets_its_digest() -> None:
    engine = CheckedEngine(MemoryEngine(2**20))
    offset = engine.allocate(64)
    engine.write(make_view(64, seed=1), offset).result()
    assert engine._written.keys() == {offset}
    engine.free(offset)
    assert not engine._written
    engine.close()


def test_errors_and_short_transfers_are_passed_on() -> None:
    inner = MemoryEngine(2**20)
    engine = CheckedEngine(inner)
    offset = engine.allocate(64)
    for outcome in (OSError(5, "Input/output error"), 63):
        future: Future[int] = Future()
        inner.write = inner.read = lambda *_, future=future: future
        view = make_view(64)
        results = [engine.write(view, offset), engine.read(view, offset)]
        assert not any(result.done() for result in results)
        if isinstance(outcome, OSError):
            future.set_exception(outcome)
            for result in results:
                with pytest.raises(OSError, match="Input/output error"):
                    result.result()
        else:
            future.set_result(outcome)
            assert [result.result() for result in results] == [63, 63]
    assert not engine._written
    engine.close()


def test_a_cancelled_transfer_is_cancelled_and_lets_go() -> None:
    inner = MemoryEngine(2**20)
    engine = CheckedEngine(inner)
    started: Future[int] = Future()
    inner.write = lambda *_: started
    future = engine.write(make_view(64), engine.allocate(64))
    assert future.cancel()
    assert started.cancelled()
    assert find_outcome(future) is None
    assert future._view is None
    started = Future()
    future = engine.write(make_view(64), engine.allocate(64))
    assert started.set_running_or_notify_cancel()
    assert not future.cancel()
    started.set_result(64)
    assert future.result() == 64
    assert not future.cancel()
    engine.close()


def test_the_option(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = OffloadConfig(directory=tmp_path, ioengine="memory", checksum=True)
    key = register_store(config)
    assert isinstance(find_store(key).engines["nvme"].inner, CheckedEngine)
    x = torch.randn(100_000)
    ticket = torch.ops.fxoffload.offload(x, key, "x", "nvme", True, 0)
    torch.ops.fxoffload.release(ticket, x)
    torch.ops.fxoffload.prefetch(ticket)
    y = torch.ops.fxoffload.wait(ticket, x.shape, x.stride(), x.dtype, CPU)
    assert torch.equal(y, x)
    del ticket
    stores._stores.pop(key).close()
    monkeypatch.setitem(sys.modules, "xxhash", None)
    monkeypatch.setattr(stores, "open_engine", lambda _: pytest.fail("opened before the check"))
    with pytest.raises(ConfigError, match=r"checksum=True needs .* xxhash; pip install") as caught:
        register_store(config)
    assert "fxoffload[checksum]" in str(caught.value)
    assert key not in stores._stores


def test_pieces_of_a_slot_have_digests_of_their_own() -> None:
    """All are forgotten with the slot, which another value may use as a whole."""
    inner = MemoryEngine(2**20)
    engine = CheckedEngine(inner, piece_bytes=512)
    before, offset, behind = (engine.allocate(nbytes) for nbytes in (512, 1200, 512))
    for start in (before, offset, offset + 512, offset + 1024, behind):
        engine.write(make_view(512, seed=start), start).result()
    inner._memory[offset + 600] ^= 4
    assert engine.read(make_view(512), offset).result() == 512
    with pytest.raises(DigestMismatch):
        engine.read(make_view(512), offset + 512).result()
    engine.free(offset)
    assert set(engine._written) == {before, behind}
    engine.close()
