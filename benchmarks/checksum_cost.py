"""Measures the round trips of a store with the option `checksum` and without.

    python -m benchmarks.checksum_cost --size 16MiB --directory /mnt/nvme

Each round takes `--values` values out and back through a store of each kind, in turn; the ratio is
that of paired rounds.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.fresh_process import Record
from benchmarks.graph_calls import OP_NAMES, make_calls, open_store
from benchmarks.measure import MIB
from benchmarks.runner import Arguments, Benchmark, Show, Table, option, parse_size
from fxoffload import runtime


@dataclass(frozen=True, slots=True)
class ChecksumArguments(Arguments):
    """The command line."""

    size: int = option("16MiB", "of one value", type=parse_size)
    values: int = option(16, "values in a round")
    rounds: int = option(10)
    directory: Path | None = option(
        None, "on the drive; default: that of temporary files", type=Path
    )
    ioengine: str = option("posix")


def measure(arguments: ChecksumArguments, show: Show) -> Record:
    """Medians and the ratio of paired rounds; "rounds" has those without digests first."""
    torch.set_num_threads(1)
    values = [torch.full((arguments.size // 4,), float(i)) for i in range(arguments.values)]
    rounds: list[list[Record]] = [[], []]
    with ExitStack() as stack:
        stores = [
            stack.enter_context(
                open_store(arguments.directory, ioengine=arguments.ioengine, checksum=checksum)
            )
            for checksum in (False, True)
        ]
        for index in range(arguments.rounds + 1):
            for store, records in zip(stores, rounds, strict=True):
                record = time_round(store, values)
                if index:  # The first takes new space on the drive.
                    records.append(record)
        name = runtime.find_store(stores[1]).statistics().ioengine
    round_bytes = arguments.size * arguments.values
    found: Record = {"ioengine": name, "size_bytes": arguments.size, "values": arguments.values}
    for kind, records in zip(("plain", "checked"), rounds, strict=True):
        seconds, core_seconds = (
            statistics.median(each[name] for each in records)
            for name in ("seconds", "core_seconds")
        )
        found[f"{kind}_mib_per_second"] = 2 * round_bytes / MIB / seconds
        found[f"{kind}_core_seconds_per_gib"] = core_seconds * 2**29 / round_bytes
    pairs = zip(*rounds, strict=True)
    ratio = statistics.median(own["seconds"] / plain["seconds"] for plain, own in pairs)
    return {**found, "seconds_ratio": ratio, "rounds": rounds}


def time_round(store: str, values: Sequence[torch.Tensor]) -> Record:
    """Seconds of all values out and all back, each as it was; and of all threads together."""
    results: list[torch.Tensor] = []
    calls = make_calls(store, values, results)
    start, core_start = time.perf_counter(), time.process_time()
    for op in OP_NAMES:
        for index in range(len(values)):
            calls[op](index)
    end, core_end = time.perf_counter(), time.process_time()
    for x, y in zip(values, results, strict=True):
        assert y[0] == x[0]
        assert y[-1] == x[-1]
    counted = runtime.find_store(store).statistics()
    assert counted.forwarded_bytes == 0, "a value came from memory, not from the drive"
    return {"seconds": end - start, "core_seconds": core_end - core_start}


def tabulate(record: Record) -> list[Table]:
    """One line with digests and one without."""
    rows = [["checksum", "MiB/s, both ways", "core-seconds per GiB"]]
    for label, kind in (("no", "plain"), ("yes", "checked")):
        speed, cost = (
            record[f"{kind}_{name}"] for name in ("mib_per_second", "core_seconds_per_gib")
        )
        rows.append([label, f"{speed:.0f}", f"{cost:.3f}"])
    caption = f"time with digests over without, paired: {record['seconds_ratio']:.3f}"
    return [Table(rows, f"round trips of a store, {record['ioengine']}", caption)]


main = Benchmark("checksum_cost", __doc__, ChecksumArguments, measure, tabulate)

if __name__ == "__main__":
    main()
