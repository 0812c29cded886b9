"""The process that moves as many bytes as a step does."""

from __future__ import annotations

import threading
import time
from multiprocessing import Pipe
from pathlib import Path

import pytest

from benchmarks import drive_load
from benchmarks.drive_load import CHUNK_BYTES, DriveLoad, move, serve


def test_transfers_are_spread_over_the_time() -> None:
    starts: list[float] = []

    def transfer(slot: int) -> int:
        starts.append(time.monotonic())
        return CHUNK_BYTES

    begin = time.monotonic()
    move(transfer, [0, 8, 16], 0.3)
    assert [start - begin >= 0.1 * number for number, start in enumerate(starts)] == [True] * 3


def test_a_short_transfer_is_an_error() -> None:
    with pytest.raises(OSError, match=f"moved 7 of {CHUNK_BYTES} bytes"):
        move(lambda slot: 7, [0], 0.0)


def test_each_message_moves_all_bytes_both_ways(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a thread of this process, so that the transfers can be counted."""
    counts: list[int] = []

    def count(transfer: object, slots: list[int], seconds: float) -> None:
        counts.append(len(slots))
        move(transfer, slots, 0.0)  # pyright: ignore[reportArgumentType]

    monkeypatch.setattr(drive_load, "move", count)
    here, there = Pipe()
    arguments = there, spill_directory, CHUNK_BYTES + 1
    thread = threading.Thread(target=serve, args=arguments, daemon=True)
    thread.start()
    assert here.recv() is None
    here.send(0.0)
    assert here.recv() is None
    assert counts == [2, 2, 2], "once in advance, then a write and a read"
    here.close()
    thread.join(10)
    assert not thread.is_alive()


def test_a_load_runs_beside(spill_directory: Path) -> None:
    load = DriveLoad(spill_directory, CHUNK_BYTES)
    load.start(0.0)
    load.wait()
