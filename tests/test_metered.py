"""What is noted of the transfers of an engine, as long as somebody asks."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import numpy as np
import pytest

from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.metered import MeteredEngine, find_flow, open_windows
from fxoffload.schedule import Flow

NBYTES = 2**16


@pytest.fixture
def engine() -> Iterator[MeteredEngine]:
    metered = MeteredEngine(MemoryEngine(2**24))
    yield metered
    metered.close()


def move(engine: MeteredEngine) -> None:
    out, back = (memoryview(np.zeros(NBYTES, np.uint8)) for _ in range(2))
    offset = engine.allocate(NBYTES)
    assert engine.write(out, offset).result() == NBYTES
    assert engine.read(back, offset).result() == NBYTES
    engine.free(offset)


def test_periods_do_not_count_twice() -> None:
    """Two transfers that overlap, one within another, and a pause."""
    records = [(5.0, 7.0, 10), (0.0, 2.0, 1), (1.0, 3.0, 2), (1.5, 2.5, 4)]
    assert find_flow(records) == Flow(17, 5.0, 2)
    assert find_flow([]) == Flow()


def test_a_window_sees_what_begins_while_it_is_open(engine: MeteredEngine) -> None:
    move(engine)
    window, other = engine.open_window(), engine.open_window()
    for _ in range(3):
        move(engine)
    found = window.close()
    assert (found.write.nbytes, found.read.nbytes) == (3 * NBYTES, 3 * NBYTES)
    assert found.write.seconds > 0.0
    assert found.read.periods == 3
    move(engine)
    assert len(window.writes) == 3
    assert other.close().read.nbytes == 4 * NBYTES
    assert engine.windows == ()


def test_what_fails_does_not_count(engine: MeteredEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor what ends short, or is cancelled."""
    ends = [Future[int]() for _ in range(4)]
    pending = iter(ends)
    monkeypatch.setattr(engine.inner, "write", lambda view, offset: next(pending))
    window = engine.open_window()
    for _ in ends:
        engine.write(memoryview(np.zeros(NBYTES, np.uint8)), 0)
    ends[0].set_exception(OSError("no"))
    ends[1].set_result(NBYTES - 1)
    assert ends[2].cancel()
    ends[3].set_result(NBYTES)
    assert window.close().write.nbytes == NBYTES


def test_only_metered_engines_have_windows(engine: MeteredEngine) -> None:
    plain = MemoryEngine(2**20)
    assert open_windows({"nvme": engine, "host": plain}).keys() == {"nvme"}
    plain.close()
    assert engine.name == "memory"
