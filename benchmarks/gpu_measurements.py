"""Measures models and the store on the GPU, each part in a fresh process of gpu_suite.py.

On the CPU it runs with tiny sizes, which shows that it works and nothing else.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.batch_search import measure_methods
from benchmarks.drive_load import LoadedTrainer
from benchmarks.fresh_process import Record
from benchmarks.gpu_models import CAPS, SHAPES, GpuWork, list_variants
from benchmarks.gpu_timeline import record_timeline
from benchmarks.graph_calls import make_calls, open_store
from benchmarks.trainer import Trainer, synchronize, wait_for_writes
from benchmarks.transfers import DIRECTIONS, EngineTransfers, Values, time_transfers
from benchmarks.variants import Variant, measure_variants
from fxoffload import OffloadConfig, OffloadError
from fxoffload.runtime.devices.staging import StagingArena
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.sizes import MIB

ENGINES = ("posix", "kvikio")
OP_STEPS = 10
TIMED = ("offload", "release", "written", "prefetch", "wait")


def measure_transfers(work: GpuWork) -> Iterator[Record]:
    """Copies to and from pinned memory on a side stream: alone, and beside matrix products.

    compute_ratio: the seconds of the products with the copies over those without.
    """
    width, products = (128, 2) if work.tiny else (8192, 60)
    matrix = torch.randn(width, width, device=work.device, dtype=torch.bfloat16)
    side = torch.cuda.Stream() if work.on_cuda else None

    def compute() -> None:
        for _ in range(products):
            torch.mm(matrix, matrix)

    def time_work(*works: Callable[[], None]) -> tuple[float, float]:
        """Seconds until the side stream is done, and until the products are done as well."""
        synchronize(matrix)
        start = time.perf_counter()
        for call in works:
            call()
        if side is not None:
            side.synchronize()
        copied = time.perf_counter() - start
        synchronize(matrix)
        return copied, time.perf_counter() - start

    time_work(compute)
    _, compute_seconds = time_work(compute)
    for nbytes in (2**16,) if work.tiny else (MIB, 16 * MIB, 256 * MIB):
        host = torch.zeros(nbytes, dtype=torch.uint8, pin_memory=work.on_cuda)
        device = torch.zeros(nbytes, dtype=torch.uint8, device=work.device)
        repeats = 2 if work.tiny else max(2, 2 * 2**30 // nbytes)
        for name, target, source in (("out", host, device), ("in", device, host)):

            def copy(count: int = repeats, to: Tensor = target, of: Tensor = source) -> None:
                with torch.cuda.stream(side):
                    for _ in range(count):
                        to.copy_(of, non_blocking=True)

            time_work(partial(copy, 1))
            alone_seconds, _ = time_work(copy)
            busy_seconds, whole_seconds = time_work(compute, copy)
            yield {
                "direction": name,
                "nbytes": nbytes,
                "alone_bytes_per_second": repeats * nbytes / alone_seconds,
                "busy_bytes_per_second": repeats * nbytes / busy_seconds,
                "compute_seconds": compute_seconds,
                "compute_ratio": whole_seconds / compute_seconds,
            }


def measure_ops(work: GpuWork) -> Iterator[Record]:
    """Host seconds of one call of each op: medians, with nothing in flight that it waits for.

    "written": from the end of release to that of the write.
    """
    with open_store(None, ioengine="memory") as store:
        for nbytes in (4096,) if work.tiny else (MIB, 16 * MIB):
            seconds: dict[str, list[float]] = {name: [] for name in TIMED}
            for _ in range(OP_STEPS + 5):
                x = torch.zeros(nbytes, dtype=torch.uint8, device=work.device)
                calls = make_calls(store, [x], [])
                calls["written"] = lambda _: wait_for_writes()
                synchronize(x)
                for name in TIMED:
                    if name == "wait":
                        time.sleep(0.002 + nbytes / 2e9)  # The read, and its copy.
                    start = time.perf_counter()
                    calls[name](0)
                    seconds[name].append(time.perf_counter() - start)
            # The first ones allocate.
            medians = {name: statistics.median(times[5:]) for name, times in seconds.items()}
            yield {"nbytes": nbytes, "median_seconds": medians, "calls": OP_STEPS}


def measure_engines(work: GpuWork) -> Iterator[Record]:
    """Each engine from and to pinned memory: all writes at once, then all reads."""
    (parent, *_) = OffloadConfig(directory=work.directory).directories
    for name in ENGINES:
        with tempfile.TemporaryDirectory(dir=parent) as directory:
            try:
                engine = open_engine(OffloadConfig(directory=directory, ioengine=name))
            except (OffloadError, OSError) as error:
                yield {"ioengine": name, "unavailable": str(error)}
                continue
            yield {"ioengine": name, **time_engine(engine, work)}
            engine.close()


def time_engine(engine: IOEngine, work: GpuWork) -> Record:
    """Bytes per second; the second round counts, when the space has been written before."""
    nbytes, count = (2**16, 4) if work.tiny else (64 * MIB, 16)
    arena = StagingArena(
        lambda size, pinned: torch.zeros(
            size, dtype=torch.uint8, pin_memory=pinned and work.on_cuda
        ),
        0,
        2 * nbytes * count,
    )
    views = [arena.take(nbytes).view for _ in range(count)]
    transfers = EngineTransfers(engine, Values(nbytes, views, views), count)
    time_transfers(transfers, nbytes * count)
    timings = zip(DIRECTIONS, time_transfers(transfers, nbytes * count), strict=True)
    rates = {direction: timing.nbytes / timing.seconds for direction, timing in timings}
    return {"path": engine.name, "nbytes": nbytes, "count": count, "bytes_per_second": rates}


def measure_points(work: GpuWork, model: str, until: float) -> Iterator[Record]:
    """The ways to train a model, and for the GPT the timeline of a step without a budget."""
    finish = partial(trace_step, work) if model == "gpt" else None
    variants, rounds = list_variants(model), 2 if work.tiny else 5
    workload = work.make_workload(model).share_parameters()
    yield from measure_variants(
        workload, variants, rounds, None, until=until, goes_on=True, finish=finish
    )


def trace_step(work: GpuWork, trainers: Mapping[str, Trainer | LoadedTrainer]) -> Iterator[Record]:
    """The timeline of a step of fxoffload without a budget."""
    label = Variant("fxoffload").label
    if label not in trainers:
        yield {"error": f"timeline: {label} has no trainer"}
        return
    yield record_timeline(trainers[label].step, work.folder / "timeline.json.gz")


def measure_throughput(work: GpuWork, until: float) -> Iterator[Record]:
    """The best rates of the GPT under caps of memory, see throughput.py."""
    workload, methods = work.make_workload("gpt"), work.list_methods()
    # A cap of 1 is what the largest batch takes.
    workload = replace(workload, shape=replace(workload.shape, batch=max(work.batches)))
    yield {"caps": CAPS}
    yield from measure_methods(workload, methods, work.batches, CAPS, 2, until=until, goes_on=True)


def measure_nvme(work: GpuWork, until: float) -> Iterator[Record]:
    """The drive by itself, then the GPT under a budget that is kept by moving values to it."""
    yield from measure_engines(work)
    workload = work.make_workload("gpt").share_parameters()
    variants = work.list_nvme_variants()
    yield from measure_variants(workload, variants, 2, None, until=until, goes_on=True)


def main() -> None:
    """Print the records of a measurement, whose place comes as JSON."""
    part, text = sys.argv[1:]
    place = json.loads(text)
    folder = Path(place["folder"])
    work = GpuWork(place["device"], place["tiny"], place["directory"], folder)
    until = time.monotonic() + float(os.environ.get("SECTION_SECONDS", "inf"))
    parts: dict[str, Callable[[], Iterator[Record]]] = {
        **{model: partial(measure_points, work, model, until) for model in SHAPES},
        "throughput": partial(measure_throughput, work, until),
        "nvme": partial(measure_nvme, work, until),
        "transfers": partial(measure_transfers, work),
        "ops": partial(measure_ops, work),
    }
    for record in parts[part]():
        print(json.dumps(record), flush=True)


if __name__ == "__main__":
    main()
