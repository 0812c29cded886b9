"""Tests that every engine must pass; the tests of an engine derive from them."""

from __future__ import annotations

import gc
import mmap
import threading
import weakref
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
import pytest

from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.sizes import MIB

KIB = 1024
SIZES = (1, 511, 512, 513, 4095, 4096, 4097, 65 * KIB + 1, MIB, 3 * MIB + 7, 40 * MIB + 4097)


def make_view(nbytes: int, seed: int | None = None) -> memoryview:
    """Memory at the start of a page, of zeros or random."""
    view = memoryview(mmap.mmap(-1, max(nbytes, 1)))[:nbytes]
    if seed is not None:
        view[:] = np.random.default_rng(seed).bytes(nbytes)
    return view


def pad(nbytes: int, engine: IOEngine) -> int:
    return -(-nbytes // engine.alignment) * engine.alignment


class EngineContract:
    @pytest.mark.parametrize("nbytes", SIZES)
    def test_any_size_comes_back(self, engine: IOEngine, nbytes: int) -> None:
        view = make_view(pad(nbytes, engine), seed=nbytes)
        before = bytes(view)
        other, offset = engine.allocate(len(view)), engine.allocate(len(view))
        assert engine.write(make_view(len(view), seed=0), other).result() == len(view)
        assert engine.write(view, offset).result() == len(view)
        back = make_view(len(view))
        assert engine.read(back, offset).result() == len(view)
        assert bytes(back) == before
        assert bytes(view) == before
        engine.free(other)
        engine.free(offset)
        assert engine.end_bytes == 0  # type: ignore[attr-defined]

    def test_nothing_is_moved_at_once(self, engine: IOEngine) -> None:
        offset = engine.allocate(1)
        assert engine.write(memoryview(b""), offset).result() == 0
        assert engine.read(memoryview(bytearray()), offset).result() == 0

    def test_a_part_of_a_slot(self, engine: IOEngine) -> None:
        unit = engine.alignment
        offset = engine.allocate(8 * unit)
        view = make_view(8 * unit, seed=1)
        engine.write(view, offset).result()
        engine.write(view[: 2 * unit], offset + 4 * unit).result()
        back = make_view(8 * unit)
        engine.read(back, offset).result()
        assert back == bytes(view[: 4 * unit]) + bytes(view[: 2 * unit]) + bytes(view[6 * unit :])

    def test_transfers_at_once(self, engine: IOEngine) -> None:
        rng = np.random.default_rng(0)
        sizes = [pad(int(nbytes), engine) for nbytes in rng.integers(1, 2 * MIB, 48)]
        views = [make_view(nbytes, seed=nbytes) for nbytes in sizes]
        offsets = [engine.allocate(nbytes) for nbytes in sizes]
        backs = [make_view(nbytes) for nbytes in sizes]

        def move(indices: Sequence[int]) -> None:
            writes = [engine.write(views[i], offsets[i]) for i in indices]
            assert [write.result() for write in writes] == [sizes[i] for i in indices]
            reads = [engine.read(backs[i], offsets[i]) for i in reversed(indices)]
            assert [read.result() for read in reads] == [sizes[i] for i in reversed(indices)]

        with ThreadPoolExecutor(4) as threads:
            list(threads.map(move, [range(start, 48, 4) for start in range(4)]))
        assert all(back == view for back, view in zip(backs, views, strict=True))

    def test_the_end_is_told_once(self, engine: IOEngine) -> None:
        ended = threading.Event()
        told: list[Future[int]] = []

        def tell(future: Future[int]) -> None:
            told.append(future)
            ended.set()

        view = make_view(pad(MIB, engine), seed=1)
        future = engine.write(view, engine.allocate(len(view)))
        future.add_done_callback(tell)
        assert ended.wait(30)
        assert future.done()
        assert not future.cancel()
        future.add_done_callback(tell)
        assert told == [future, future]
        assert future.result() == future.result() == len(view)

    def test_memory_is_let_go_of(self, engine: IOEngine) -> None:
        nbytes = pad(MIB, engine)
        memory = mmap.mmap(-1, nbytes)
        array = np.frombuffer(memory, np.uint8)
        died = weakref.ref(array)
        future = engine.write(memoryview(array), engine.allocate(nbytes))
        del array
        future.result()
        engine.close()  # The worker may be in its last lines until then.
        gc.collect()
        assert died() is None

    def test_close_finishes_what_was_started(self, engine: IOEngine) -> None:
        view = make_view(pad(4 * MIB, engine), seed=1)
        futures = [engine.write(view, engine.allocate(len(view))) for _ in range(32)]
        engine.close()
        assert [future.result() for future in futures] == [len(view)] * 32
        engine.close()
