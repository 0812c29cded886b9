"""The choice of the file for a new slot: by bytes in flight, by room, and by failures."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from pathlib import Path

import pytest

from fxoffload.errors import StoreFull
from fxoffload.runtime.engines import striping
from fxoffload.runtime.engines.spill_file import GROWTH_BYTES, SpillFile
from fxoffload.runtime.engines.striping import AVOIDED_SECONDS, FAILURES, StripedEngine

NBYTES = 64 * 1024
VIEW = memoryview(bytes(NBYTES))


class ToyEngine(StripedEngine):
    """Its transfers end when the test says so."""

    def __init__(self, count: int, directory: Path, speeds: tuple[float, ...] = ()) -> None:
        self.files = [SpillFile(directory) for _ in range(count)]
        super().__init__(self.files, library="toy", alignment=512, bytes_per_second=speeds)
        self.started: list[tuple[int, int, bool]] = []

    def _start(self, index: int, view: memoryview, position: int, *, write: bool) -> Future[int]:
        self.started.append((index, position, write))
        return Future()

    def find_file(self, offset: int) -> int:
        """The file of the slot at `offset`."""
        self.read(VIEW, offset).set_result(NBYTES)
        return self.started.pop()[0]

    def take(self, count: int, nbytes: int = NBYTES) -> list[int]:
        """The files of `count` new slots."""
        return [self.find_file(self.allocate(nbytes)) for _ in range(count)]


Make = Callable[..., ToyEngine]


@pytest.fixture
def make(tmp_path: Path) -> Iterator[Make]:
    engines: list[ToyEngine] = []

    def make(count: int = 2, speeds: tuple[float, ...] = ()) -> ToyEngine:
        engines.append(ToyEngine(count, tmp_path, speeds))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def test_idle_files_are_filled_evenly(make: Make) -> None:
    engine = make(2)
    sizes = [3 * NBYTES, NBYTES, NBYTES, NBYTES, NBYTES]
    offsets = [engine.allocate(size) for size in sizes]
    assert len(set(offsets)) == 5
    assert [engine.find_file(offset) for offset in offsets] == [0, 1, 1, 1, 0]
    assert engine.end_bytes == sum(sizes)
    for offset in offsets:
        engine.free(offset)
    assert engine.end_bytes == 0


def test_idle_files_are_filled_by_speed(make: Make) -> None:
    engine = make(2, speeds=(3e9, 1e9))
    assert sorted(engine.take(40)) == [0] * 30 + [1] * 10


def test_a_busy_file_gets_nothing_until_it_is_idle(make: Make) -> None:
    engine = make(2)
    first = engine.allocate(NBYTES)
    write = engine.write(VIEW, first)
    assert engine.take(5) == [1] * 5
    write.set_result(NBYTES)
    assert engine.take(4) == [0] * 4  # It has the least in it.


def test_busy_files_are_compared_by_speed(make: Make) -> None:
    engine = make(2, speeds=(4e9, 1e9))
    for _ in range(10):
        engine.write(VIEW, engine.allocate(NBYTES))
    files = [index for index, _, _ in engine.started]
    assert files.count(0) == 8
    assert files.count(1) == 2


def test_reads_make_a_file_busy_too(make: Make) -> None:
    engine = make(2)
    engine.read(VIEW, engine.allocate(NBYTES))
    assert engine.take(3) == [1] * 3


def test_a_full_file_is_passed_over(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = make(2)

    def full(end_bytes: int) -> None:
        raise StoreFull(f"no room for {end_bytes}")

    monkeypatch.setattr(engine.files[0], "reserve", full)
    assert engine.take(3) == [1] * 3
    monkeypatch.setattr(engine.files[1], "reserve", full)
    with pytest.raises(StoreFull, match="no room"):
        engine.allocate(NBYTES)
    assert engine.end_bytes == 3 * NBYTES


def fail(engine: ToyEngine, offset: int) -> None:
    engine.write(VIEW, offset).set_exception(OSError(errno.EIO, "broken"))


def test_a_file_that_fails_is_avoided_for_a_while(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = 1000.0
    monkeypatch.setattr(striping.time, "monotonic", lambda: now)
    engine = make(2)
    broken = engine.allocate(NBYTES)
    for _ in range(FAILURES - 1):
        fail(engine, broken)
    assert engine.take(2) == [1, 0]
    fail(engine, broken)
    assert engine.take(6) == [1] * 6
    now += AVOIDED_SECONDS - 1
    assert engine.take(1) == [1]
    now += 2  # Tried again; one more failure is enough now.
    assert engine.take(1) == [0]
    fail(engine, broken)
    assert engine.take(1) == [1]
    now += AVOIDED_SECONDS + 1
    engine.write(VIEW, broken).set_result(NBYTES)
    fail(engine, broken)
    assert engine.take(1) == [0]


def test_a_file_that_fails_is_used_when_the_others_are_full(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(2)
    broken = engine.allocate(NBYTES)
    for _ in range(FAILURES):
        fail(engine, broken)

    def full(end_bytes: int) -> None:
        raise StoreFull(f"no room for {end_bytes}")

    monkeypatch.setattr(engine.files[1], "reserve", full)
    assert engine.take(2) == [0, 0]


def test_only_failed_writes_count_as_failures(make: Make) -> None:
    engine = make(2)
    offset = engine.allocate(NBYTES)
    for _ in range(FAILURES):
        engine.read(VIEW, offset).set_exception(OSError(errno.EIO, "broken"))
        assert engine.write(VIEW, offset).cancel()
    assert engine.take(3) == [1, 0, 1]


def test_a_transfer_that_did_not_start_is_not_in_flight(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(2)
    offset = engine.allocate(NBYTES)

    def refuse(*_: object, **__: object) -> Future[int]:
        raise RuntimeError("cannot schedule")

    with monkeypatch.context() as patch:
        patch.setattr(engine, "_start", refuse)
        with pytest.raises(RuntimeError, match="cannot schedule"):
            engine.write(VIEW, offset)
    assert engine.take(2) == [1, 0]


def test_reserve_shares_the_space(make: Make) -> None:
    engine = make(2)
    engine.reserve(100 * 2**20)
    assert [file.size_bytes for file in engine.files] == [GROWTH_BYTES] * 2
    with pytest.raises(StoreFull):
        engine.reserve(2**60)


def test_reserve_takes_more_of_the_files_with_room(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = make(3)
    asked: dict[int, int] = {}
    for index, file in enumerate(engine.files):
        monkeypatch.setattr(file, "reserve", lambda nbytes, i=index: asked.update({i: nbytes}))
    rooms = {id(file): room for file, room in zip(engine.files, (50, 2, 9), strict=True)}
    unit = 2**20
    monkeypatch.setattr(SpillFile, "room_bytes", property(lambda file: rooms[id(file)] * unit))
    engine.reserve(30 * unit)
    assert asked == {0: 19 * unit, 1: 2 * unit, 2: 9 * unit}
    engine.reserve(70 * unit)  # More than there is: the roomiest is asked, and says so.
    assert asked == {0: 59 * unit, 1: 2 * unit, 2: 9 * unit}


def test_offsets_say_where_they_lie(make: Make) -> None:
    engine = make(2)
    engine.allocate(NBYTES), engine.allocate(NBYTES)
    offset = engine.allocate(NBYTES)
    engine.write(VIEW, offset)
    assert engine.started == [(0, NBYTES, True)]
    path = "direct" if all(file.direct for file in engine.files) else "buffered"
    expected = f"the spill file in {engine.files[0].directory} at {NBYTES} (toy {path})"
    assert engine.describe(offset) == expected
