"""Measures how long the thread that runs the graph is busy with one call of each op.

    python -m benchmarks.op_time --sizes 1MiB 16MiB --output results.jsonl

Each round takes `--values` values out and back. In "row" rounds the calls of an op follow each
other; in "apart" rounds each call comes after some computation, which leaves the caches cold, as
in a step. Waiting for the drive is not host time: writes and reads have ended before the calls that
would wait for them, and a round in which a call waited nevertheless (by the counters) is left out.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path

import torch

from benchmarks.fresh_process import Record
from benchmarks.graph_calls import OP_NAMES, make_calls, open_store
from benchmarks.runner import (
    Arguments,
    Benchmark,
    Column,
    Show,
    Table,
    make_table,
    option,
    parse_size,
)
from fxoffload import runtime
from fxoffload.sizes import MIB

LIMIT_SECONDS = 20e-6
KINDS = ("row", "apart")
COMPUTE_SECONDS = 0.001

# Of each call of an op: wall seconds, and processor seconds of this thread (about 1 us more).
Samples = dict[str, list[tuple[float, float]]]


@dataclass(frozen=True, slots=True)
class CallArguments(Arguments):
    """The command line."""

    sizes: Sequence[int] = option((MIB, 16 * MIB), "of one value", type=parse_size)
    rounds: int = option(100)
    values: int = option(8, "values that are out at once")
    directory: Path | None = option(
        None, "on the drive; default: that of temporary files", type=Path
    )
    ioengine: str = option("posix")
    tier: str = option("nvme", choices=("nvme", "host"))
    host_budget: str = option("1GiB")


def measure(arguments: CallArguments, show: Show) -> Record:
    """Times of each op at each size, in rounds of each kind."""
    # One core computes and calls, the others are the store's.
    torch.set_num_threads(1)
    options = {"ioengine": arguments.ioengine, "host_budget": arguments.host_budget}
    times: list[Record] = []
    with open_store(arguments.directory, **options) as store:
        for nbytes, kind in product(arguments.sizes, KINDS):
            found = measure_ops(store, nbytes, kind, arguments)
            times += [summarise(op, kind, nbytes, calls) for op, calls in found.items()]
        name = runtime.find_store(store).engines[arguments.tier].name
    return {"ioengine": name, "times": times}


def measure_ops(store: str, nbytes: int, kind: str, arguments: CallArguments) -> Samples:
    """Take values out and back, and time the calls of rounds that did not wait."""
    opened = runtime.find_store(store)
    samples: Samples = {op: [] for op in OP_NAMES}
    for number in range(10 * arguments.rounds + 1):
        if number >= arguments.rounds and all(samples.values()):
            return samples
        opened.reset_statistics()
        found = time_round(store, nbytes, kind, arguments)
        record = opened.statistics()
        assert record.read_bytes == arguments.values * nbytes, "not all came from the tier"
        if record.exposed_seconds == 0:
            for op in OP_NAMES:
                samples[op] += found[op]
    raise RuntimeError("every round waited for the drive: it is busy, try again")


def time_round(store: str, nbytes: int, kind: str, arguments: CallArguments) -> Samples:
    """One round: the time of each call of each op."""
    values = [torch.full((nbytes // 4,), 1.0) for _ in range(arguments.values)]
    calls = make_calls(store, values, [], arguments.tier)
    times: Samples = {op: [] for op in OP_NAMES}
    drive_seconds = 0.0
    for op in OP_NAMES:
        # The end of a read is not visible from outside; twice the time of the writes is enough.
        end = time.perf_counter() + (2 * drive_seconds + 0.002 if op == "wait" else 0.0)
        while time.perf_counter() < end:
            compute()
        for index in range(len(values)):
            if kind == "apart":
                compute()
            core_start, start = time.thread_time(), time.perf_counter()
            calls[op](index)
            end, core_end = time.perf_counter(), time.thread_time()
            times[op].append((end - start, core_end - core_start))
        if op == "offload":
            start = time.perf_counter()
            while runtime.find_store(store).statistics().inflight_bytes:
                compute()
            drive_seconds = time.perf_counter() - start
    return times


def compute() -> None:
    """Keep this thread busy as a graph does, for about a millisecond."""
    end = time.perf_counter() + COMPUTE_SECONDS
    x = torch.full((256, 256), 0.5)
    while time.perf_counter() < end:
        x = torch.mm(x, x)


def summarise(op: str, kind: str, nbytes: int, times: Sequence[tuple[float, float]]) -> Record:
    """Medians and spread of at least two calls."""
    seconds, core_seconds = zip(*times, strict=True)
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    return {
        "op": op,
        "kind": kind,
        "nbytes": nbytes,
        "calls": len(times),
        "median_seconds": statistics.median(seconds),
        "p10_seconds": deciles[0],
        "p90_seconds": deciles[-1],
        "median_core_seconds": statistics.median(core_seconds),
    }


COLUMNS: Sequence[Column[Record]] = (
    ("op", lambda item: item["op"]),
    ("MiB", lambda item: f"{item['nbytes'] / MIB:g}"),
    ("calls", lambda item: "in a row" if item["kind"] == "row" else "apart"),
    ("median us", lambda item: f"{item['median_seconds'] * 1e6:.1f}"),
    ("p10", lambda item: f"{item['p10_seconds'] * 1e6:.1f}"),
    ("p90", lambda item: f"{item['p90_seconds'] * 1e6:.1f}"),
    ("core us", lambda item: f"{item['median_core_seconds'] * 1e6:.1f}"),
    ("counted", lambda item: str(item["calls"])),
)


def tabulate(record: Record) -> list[Table]:
    """One line for each op, size and kind of round."""
    title = f"host time of one call, {record['ioengine']}"
    return [make_table(record["times"], COLUMNS, title)]


def find_misses(record: Record) -> list[str]:
    """Whether a call takes longer than allowed."""
    missed = any(item["median_seconds"] > LIMIT_SECONDS for item in record["times"])
    return [f"beyond the limit of {LIMIT_SECONDS * 1e6:.0f} microseconds"] * missed


main = Benchmark("op_time", __doc__, CallArguments, measure, tabulate, find_misses=find_misses)

if __name__ == "__main__":
    main()
