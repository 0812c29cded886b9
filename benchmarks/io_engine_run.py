"""What io_engine.py measures, each in the fresh process that it starts.

speed      fio, engines and stores in turn, several rounds for each size; alone or beside a load
endurance  bytes that stores wrote, and what the block device and the kernel counted meanwhile
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

from fxoffload import ConfigError, OffloadConfig
from fxoffload.config import IOEngineName
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.runtime.store.store import OffloadStore

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.block_device import BlockDevice, DeviceUnknown, count_round
from benchmarks.busy_threads import keep_busy
from benchmarks.fio import FIO, FioJob, find_jobs, prepare_file, run_fio
from benchmarks.fresh_process import report, run_child
from benchmarks.transfers import (
    DIRECTIONS,
    TIER,
    EngineTransfers,
    StoreTransfers,
    Timing,
    Values,
    time_transfers,
    time_work,
)

LEAST_COUNT = 4
# A transfer waits up to 5 ms for the GIL beside a thread that does not give it up.
MOST_COUNT = {"alone": 2048, "busy": 256, "endurance": 2048}
COMPUTE_THREADS = 2
_TRIALS = 2

# Writes, then reads.
Contestant = Callable[[], list[Timing]]


@dataclass(frozen=True, slots=True)
class RunSettings:
    """`window`: transfers in flight at most, fewer where they hold more than `inflight_bytes`."""

    work: Literal["alone", "busy", "endurance"]
    directory: str
    engines: Sequence[IOEngineName]
    sizes: Sequence[int]
    total_bytes: int
    rounds: int
    window: int
    inflight_bytes: int
    fio: bool

    def find_count(self, nbytes: int) -> int:
        """How many transfers of `nbytes` one sample takes."""
        return max(LEAST_COUNT, min(self.total_bytes // nbytes, MOST_COUNT[self.work]))

    def find_window(self, nbytes: int) -> int:
        """How many of `nbytes` are in flight at once; one on its way while the next is made."""
        fitting = max(2, min(self.window, self.inflight_bytes // nbytes))
        return min(fitting, self.find_count(nbytes))


@dataclass(frozen=True, slots=True)
class FioPlace:
    """A file that fio may use, and the ioengines that work there."""

    path: Path
    ioengines: frozenset[str]


def measure_speed(settings: RunSettings) -> None:
    """Report samples: contestant, size, direction, seconds, and process time where it is ours."""
    with ExitStack() as stack:
        stores = stack.enter_context(open_stores(settings))
        place = None
        if settings.fio:
            folder = tempfile.TemporaryDirectory(prefix="fio-", dir=settings.directory)
            path = Path(stack.enter_context(folder)) / "file"
            total_bytes = max(settings.find_count(size) * size for size in settings.sizes)
            place = FioPlace(path, prepare_file(path, total_bytes))
        if settings.work == "busy":
            stack.enter_context(keep_busy(COMPUTE_THREADS))
        for nbytes in settings.sizes:
            _measure_size(settings, stores, place, nbytes)


def measure_endurance(settings: RunSettings) -> None:
    """Report bytes of values, bytes moved, and what others counted, round by round."""
    try:
        device = BlockDevice(Path(settings.directory))
    except DeviceUnknown as error:
        report({"kind": "device", "unknown": str(error)})
        return
    report({"kind": "device", "name": device.name})
    with open_stores(settings) as stores:
        for name, store in stores.items():
            for size in settings.sizes:
                # Not a multiple of any block, so that padding would show.
                values = Values(size + 1000, settings.find_window(size))
                count = settings.find_count(size)
                transfers = StoreTransfers(store, values, count)
                seconds = time_work(transfers.write, 0).seconds  # First writes of new space.
                transfers.free()
                for number in range(settings.rounds):
                    counts = count_round(device, transfers.write, seconds)
                    record = {"kind": "endurance", "engine": name, "size": values.nbytes}
                    moved_bytes, value_bytes = transfers.moved_bytes, values.nbytes * count
                    sums = {"round": number, "value_bytes": value_bytes, "moved_bytes": moved_bytes}
                    report({**record, **sums, **counts})
                    transfers.free()


@contextmanager
def open_stores(settings: RunSettings) -> Generator[Mapping[str, OffloadStore]]:
    """A store on each engine that this machine has; the others are reported with their reason."""
    stores: dict[str, OffloadStore] = {}
    cap = 2 * max(settings.inflight_bytes, *settings.sizes)
    try:
        for name in settings.engines:
            try:
                engine = open_engine(OffloadConfig(directory=settings.directory, ioengine=name))
            except ConfigError as error:
                report({"kind": "engine", "engine": name, "unavailable": str(error)})
                continue
            stores[name] = OffloadStore({TIER: engine}, max_inflight_bytes=cap)
            report({"kind": "engine", "engine": name, "path": engine.name})
        yield stores
    finally:
        for store in stores.values():
            store.close()


def _measure_size(
    settings: RunSettings,
    stores: Mapping[str, OffloadStore],
    place: FioPlace | None,
    nbytes: int,
) -> None:
    with ExitStack() as stack:
        contestants = _make_contestants(settings, stores, place, nbytes, stack)
        for contestant in contestants.values():  # First writes of new space are slow.
            contestant()
        names = list(contestants)
        for number in range(settings.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                for direction, timing in zip(DIRECTIONS, contestants[name](), strict=True):
                    # Beside a load the processor time of this process is the load's.
                    known = name == FIO or settings.work == "alone"
                    report(
                        {
                            "kind": "sample",
                            "load": settings.work,
                            "contestant": name,
                            "size": nbytes,
                            "window": settings.find_window(nbytes),
                            "direction": direction,
                            "round": number,
                            "nbytes": timing.nbytes,
                            "seconds": timing.seconds,
                            "cpu_seconds": timing.cpu_seconds if known else None,
                        }
                    )


def _make_contestants(
    settings: RunSettings,
    stores: Mapping[str, OffloadStore],
    place: FioPlace | None,
    nbytes: int,
    stack: ExitStack,
) -> dict[str, Contestant]:
    """What takes turns, by name; `stack` gives it back."""
    count, values = settings.find_count(nbytes), Values(nbytes, settings.find_window(nbytes))
    contestants: dict[str, Contestant] = {}
    if place is not None:
        jobs = _choose_jobs(settings, place, nbytes)
        contestants[FIO] = partial(run_fio, jobs, place.path, nbytes, nbytes * count)
    for name, store in stores.items():
        alone = EngineTransfers(store.engines[TIER], values, count)
        stack.callback(alone.close)
        contestants[f"{name} engine"] = partial(time_transfers, alone, nbytes * count)
        below_store = StoreTransfers(store, values, count)
        contestants[f"{name} store"] = partial(time_transfers, below_store, nbytes * count)
    return contestants


def _choose_jobs(settings: RunSettings, place: FioPlace, nbytes: int) -> list[FioJob]:
    """fio's fastest job for each direction, so that the comparison is with its best."""
    total_bytes = settings.find_count(nbytes) * nbytes
    candidates = [
        job
        for direction in DIRECTIONS
        for job in find_jobs(direction, nbytes, total_bytes)
        if job.ioengine in place.ioengines
    ]
    rates = dict.fromkeys(candidates, 0.0)
    for _ in range(_TRIALS):
        results = run_fio(candidates, place.path, nbytes, total_bytes)
        for job, timing in zip(candidates, results, strict=True):
            rates[job] += timing.nbytes / timing.seconds / _TRIALS
    chosen: list[FioJob] = []
    for direction in DIRECTIONS:
        found = {job: rate for job, rate in rates.items() if job.direction == direction}
        job = max(found, key=found.__getitem__)
        chosen.append(job)
        cell = {"load": settings.work, "size": nbytes, "direction": direction}
        speeds = {str(each): rate for each, rate in found.items()}
        report({"kind": "job", **cell, "job": str(job), "bytes_per_second": speeds})
    return chosen


def main(fields: dict[str, Any]) -> None:
    """Do the work that the parent asks for."""
    settings = RunSettings(**fields)
    if settings.work == "endurance":
        measure_endurance(settings)
    else:
        measure_speed(settings)


if __name__ == "__main__":
    run_child(main)
