"""Measures the speed, processor time and wear of engines and stores, with fio as the yardstick.

    python -m benchmarks.io_engine --directory /mnt/nvme --output results.jsonl

fio, engines and stores take turns in one process tree, on the same file system and with the same
bytes (random, direct I/O, space already written), once alone and once beside two compute threads
and a busy Python thread. Results are ratios of the samples of one round. fio is given the fastest
of several jobs for each size and direction. Then the bytes that stores write are compared with the
counter of the block device.
"""

from __future__ import annotations

import shutil
import tempfile
import threading
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks.block_device import BlockDevice, DeviceUnknown, count_round
from benchmarks.fio import FIO, MISSING, FioFailed, FioJob, prepare_file, rate_jobs, run_fio
from benchmarks.fresh_process import Record, run_fresh
from benchmarks.io_engine_report import find_misses, tabulate
from benchmarks.runner import Arguments, Benchmark, Show, option, parse_size
from benchmarks.transfers import (
    DIRECTIONS,
    TIER,
    EngineTransfers,
    StoreTransfers,
    Timing,
    make_values,
    time_transfers,
    time_work,
)
from fxoffload import ConfigError, OffloadConfig
from fxoffload.directories import check_directory, find_filesystem
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.runtime.measurement.load import keep_computing
from fxoffload.runtime.store.store import OffloadStore

Work = Literal["alone", "busy", "endurance"]
WORKS: tuple[Work, ...] = ("alone", "busy", "endurance")
LEAST_COUNT = 4
# Beside a thread that holds the GIL, each transfer waits up to 5 ms for it.
MOST_COUNT: dict[Work, int] = {"alone": 2048, "busy": 256, "endurance": 2048}
COMPUTE_THREADS = 2
SIZES = tuple(2**exponent for exponent in range(16, 30, 2))

# Writes, then reads.
Contestant = Callable[[], list[Timing]]
Stores = dict[str, OffloadStore]
# fio's file, and the ioengines that work there.
FioPlace = tuple[Path, frozenset[str]]


@dataclass(frozen=True, slots=True)
class IOArguments(Arguments):
    """The command line. inflight: a bound on the bytes of the `window` transfers in flight."""

    directory: str | None = option(None, "where to measure; default: see OffloadConfig")
    engines: list[Any] = option(("posix", "kvikio"), choices=["posix", "kvikio", "memory"])
    sizes: list[int] = option(SIZES, "of tensors", type=parse_size)
    total: int = option("256MiB", "bytes of a sample, at most", type=parse_size)
    rounds: int = option(4)
    window: int = option(8, "transfers in flight at most")
    inflight: int = option("512MiB", "bytes in flight at most", type=parse_size)
    works: list[Work] = option(WORKS, "what to measure", choices=WORKS)
    fio: bool = option(True, "measure without the yardstick")

    def find_count(self, work: Work, nbytes: int) -> int:
        """How many transfers of `nbytes` one sample takes."""
        return max(LEAST_COUNT, min(self.total // nbytes, MOST_COUNT[work]))

    def find_window(self, work: Work, nbytes: int) -> int:
        """The number of transfers of `nbytes` in flight at once, at least 2."""
        fitting = max(2, min(self.window, self.inflight // nbytes))
        return min(fitting, self.find_count(work, nbytes))


def measure(arguments: IOArguments, show: Show) -> Record:
    """The records of a fresh process for each work."""
    if arguments.fio and shutil.which(FIO) is None:
        raise FioFailed(MISSING)
    (directory,) = OffloadConfig(directory=arguments.directory).directories
    check_directory(directory)
    settings = replace(arguments, directory=str(directory), output=None)
    records: list[Record] = []
    for work in arguments.works:
        measure_work = measure_endurance if work == "endurance" else measure_speed
        for record in run_fresh({}, measure_work, settings, work):
            records.append(record)
            show(f"{work}: {record.get('contestant', '')} {record.get('size', '')}")
            if "unavailable" in record:
                print(f"left out, {record['engine']}: {record['unavailable']}")
    return {"filesystem": find_filesystem(directory), "records": records}


def measure_speed(arguments: IOArguments, work: Work) -> Iterator[Record]:
    """In a fresh process: fio, engines and stores in turn, several rounds for each size."""
    stores: Stores = {}
    with ExitStack() as stack:
        yield from open_stores(arguments, stores, stack)
        place: FioPlace | None = None
        if arguments.fio:
            folder = tempfile.TemporaryDirectory(prefix="fio-", dir=arguments.directory)
            largest = max(arguments.find_count(work, size) * size for size in arguments.sizes)
            path = Path(stack.enter_context(folder)) / "file"
            place = path, prepare_file(path, largest)
        if work == "busy":
            stack.enter_context(keep_busy(COMPUTE_THREADS))
        for nbytes in arguments.sizes:
            yield from measure_size(arguments, work, stores, place, nbytes)


def measure_size(
    arguments: IOArguments, work: Work, stores: Stores, place: FioPlace | None, nbytes: int
) -> Iterator[Record]:
    """Samples of each contestant: size, direction, seconds, and its processor time if known."""
    count, window = arguments.find_count(work, nbytes), arguments.find_window(work, nbytes)
    cell = {"load": work, "size": nbytes}
    values = make_values(nbytes, window)
    contestants: dict[str, Contestant] = {}
    with ExitStack() as stack:
        if place is not None:
            path, ioengines = place
            rates = rate_jobs(path, ioengines, nbytes, nbytes * count)
            jobs: list[FioJob] = []
            for direction in DIRECTIONS:  # The fastest job of fio is the yardstick.
                found = {job: rate for job, rate in rates.items() if job.direction == direction}
                jobs.append(max(found, key=found.__getitem__))
                record = {"kind": "job", **cell, "direction": direction, "job": str(jobs[-1])}
                yield {**record, "bytes_per_second": {str(job): found[job] for job in found}}
            contestants[FIO] = partial(run_fio, jobs, path, nbytes, nbytes * count)
        for name, store in stores.items():
            alone = EngineTransfers(store.engines[TIER], values, count)
            stack.callback(alone.close)
            below = StoreTransfers(store, values, count)
            contestants[f"{name} engine"] = partial(time_transfers, alone, nbytes * count)
            contestants[f"{name} store"] = partial(time_transfers, below, nbytes * count)
        for contestant in contestants.values():  # First writes of new space are slow.
            contestant()
        names = list(contestants)
        for number in range(arguments.rounds):
            turn = number % len(names)
            for name in names[turn:] + names[:turn]:
                sample = {"kind": "sample", **cell, "contestant": name, "window": window}
                for direction, timing in zip(DIRECTIONS, contestants[name](), strict=True):
                    record: Record = {**sample, "round": number, "direction": direction}
                    record |= timing._asdict()
                    # Beside a load, the processor time of this process includes that of the load.
                    if name != FIO and work == "busy":
                        record["cpu_seconds"] = None
                    yield record


def measure_endurance(arguments: IOArguments, work: Work) -> Iterator[Record]:
    """In a fresh process: by round, the bytes that stores wrote and what the system counted."""
    directory = Path(arguments.directory or "")
    try:
        device = BlockDevice(directory)
    except DeviceUnknown as error:
        yield {"kind": "device", "unknown": str(error)}
        return
    yield {"kind": "device", "name": device.name}
    # Wear does not depend on the size, so one size is enough.
    size = arguments.sizes[len(arguments.sizes) // 2]
    count = arguments.find_count(work, size)
    stores: Stores = {}
    with ExitStack() as stack:
        yield from open_stores(replace(arguments, sizes=[size]), stores, stack)
        for name, store in stores.items():
            # Not a multiple of any block, so that padding would show.
            values = make_values(size + 1000, arguments.find_window(work, size))
            transfers = StoreTransfers(store, values, count)
            seconds = time_work(transfers.write, 0).seconds  # First writes of new space.
            transfers.free()
            # Many short rounds, as other processes may write to the device during some of them.
            for number in range(3 * arguments.rounds):
                counts = count_round(device, transfers.write, seconds)
                record = {"kind": "endurance", "engine": name, "size": values.nbytes}
                sums = {"value_bytes": values.nbytes * count, "moved_bytes": transfers.moved_bytes}
                yield {**record, "round": number, **sums, **counts}
                transfers.free()


def open_stores(arguments: IOArguments, stores: Stores, stack: ExitStack) -> Iterator[Record]:
    """Fill `stores` with one on each engine that this machine has; `stack` closes them."""
    cap = 2 * max(arguments.inflight, *arguments.sizes)
    for name in arguments.engines:
        try:
            engine = open_engine(OffloadConfig(directory=arguments.directory, ioengine=name))
        except ConfigError as error:
            yield {"kind": "engine", "engine": name, "unavailable": str(error)}
            continue
        stores[name] = OffloadStore({TIER: engine}, max_inflight_bytes=cap)
        stack.callback(stores[name].close)
        yield {"kind": "engine", "engine": name, "path": engine.name}


@contextmanager
def keep_busy(compute_threads: int) -> Generator[None]:
    """Matrix products on so many threads of torch, and a thread that holds the GIL."""
    stop = threading.Event()

    def hold() -> None:
        while not stop.is_set():
            sum(range(1000))

    before = torch.get_num_threads()
    torch.set_num_threads(compute_threads)
    # A product takes long without the GIL, so that the wait for the GIL between two is no pause.
    with ThreadPoolExecutor(1) as thread, keep_computing(matrix_size=2048):
        thread.submit(hold)
        try:
            yield
        finally:
            stop.set()
            torch.set_num_threads(before)


main = Benchmark("io_engine", __doc__, IOArguments, measure, tabulate, find_misses=find_misses)

if __name__ == "__main__":
    main()
