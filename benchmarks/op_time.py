"""Host time of one call of each op: what the thread that runs the graph spends in it.

    python benchmarks/op_time.py --sizes 1MiB 16MiB --output results.jsonl

Each round takes `--values` values out and back. In "row" rounds the calls of an op follow each
other; in "apart" rounds each call comes after some computation, which leaves the caches cold, as
in a step. Waiting for the drive is not host time: writes and reads have ended before the calls
that would wait for them, and a round whose counters say that a call waited all the same is left
out.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from rich.console import Console
from rich.table import Table

from fxoffload import ConfigError, OffloadConfig, StoreError, ops, runtime
from fxoffload.sizes import parse_bytes

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.measure import MIB, find_cpu_model

LIMIT_SECONDS = 20e-6
OP_NAMES = ("offload", "release", "prefetch", "wait")
KINDS = ("row", "apart")
COMPUTE_SECONDS = 0.001


@dataclass(frozen=True, slots=True)
class Settings:
    """What is measured; see build_parser."""

    nbytes: int
    rounds: int
    values: int
    kind: str
    tier: str


@dataclass(frozen=True, slots=True)
class OpTime:
    """Seconds of one call; `calls` were counted."""

    op: str
    kind: str
    nbytes: int
    calls: int
    median_seconds: float
    p10_seconds: float
    p90_seconds: float
    median_core_seconds: float


class CallTime(NamedTuple):
    """One call: by the clock, and what this thread had a processor for (and about 1 us more)."""

    seconds: float
    core_seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table and a JSON line; with --check exit 1 beyond the limit."""
    console = Console()
    parser = build_parser()
    arguments = parser.parse_args(argv)
    # One core computes and calls, the others are the store's.
    torch.set_num_threads(1)
    times: list[OpTime] = []
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        try:
            sizes = [parse_bytes("--sizes", text) for text in arguments.sizes]
            config = OffloadConfig(
                directory=directory, ioengine=arguments.ioengine, host_budget=arguments.host_budget
            )
            store = runtime.register_store(config, keeps_graph=lambda: False)
        except (ConfigError, StoreError) as error:
            parser.error(str(error))
        for nbytes in sizes:
            for kind in KINDS:
                settings = Settings(
                    nbytes, arguments.rounds, arguments.values, kind, arguments.tier
                )
                times += measure_ops(store, settings)
        opened = runtime.find_store(store)
        name = opened.engines[arguments.tier].name
        opened.close()
    console.print(build_table(times, name))
    record = {
        "cpu": find_cpu_model(),
        "torch": torch.__version__,
        "ioengine": name,
        "tier": arguments.tier,
        "times": [asdict(item) for item in times],
    }
    line = json.dumps(record)
    print(line)
    if arguments.output is not None:
        with arguments.output.open("a") as file:
            file.write(line + "\n")
    if arguments.check and any(item.median_seconds > LIMIT_SECONDS for item in times):
        console.print(f"beyond the limit of {LIMIT_SECONDS * 1e6:.0f} microseconds")
        sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--sizes", nargs="+", default=["1MiB", "16MiB"], help="of one value")
    add("--rounds", type=int, default=100)
    add("--values", type=int, default=8, help="values that are out at once")
    add("--directory", type=Path, help="on the drive; default: that of temporary files")
    add("--ioengine", default="posix")
    add("--tier", choices=("nvme", "host"), default="nvme")
    add("--host-budget", default="1GiB")
    add("--output", type=Path, help="file to which the JSON line is appended")
    add("--check", action="store_true", help="exit with status 1 beyond 20 us a call")
    return parser


def measure_ops(store: str, settings: Settings) -> list[OpTime]:
    """Take values out and back, and time the calls."""
    opened = runtime.find_store(store)
    samples: dict[str, list[CallTime]] = {op: [] for op in OP_NAMES}
    rounds = 0
    while rounds < settings.rounds or not all(samples.values()):
        if rounds >= 10 * settings.rounds:
            raise RuntimeError("every round waited for the drive: it is busy, try again")
        rounds += 1
        opened.reset_statistics()
        found = run_round(store, settings)
        record = opened.statistics()
        assert record.read_bytes == settings.values * settings.nbytes, "not all came from the tier"
        if record.exposed_seconds == 0:
            for op in OP_NAMES:
                samples[op] += found[op]
    return [summarise(op, settings.kind, settings.nbytes, times) for op, times in samples.items()]


def run_round(store: str, settings: Settings) -> dict[str, list[CallTime]]:
    """One round: the time of each call of each op."""
    pause = compute if settings.kind == "apart" else skip
    values = [torch.full((settings.nbytes // 4,), 1.0) for _ in range(settings.values)]
    size, stride = list(values[0].shape), list(values[0].stride())
    dtype, device = values[0].dtype, values[0].device
    times: dict[str, list[CallTime]] = {}
    tickets: list[torch.Tensor] = []

    def offload(index: int) -> None:
        tickets.append(ops.OFFLOAD(values[index], store, "value", settings.tier, True, 0))

    def release(index: int) -> None:
        ops.RELEASE(tickets[index], values[index], True)

    def wait(index: int) -> None:
        results[index] = ops.WAIT(tickets[index], size, stride, dtype, device)

    count = settings.values
    times["offload"] = time_calls(offload, count, pause)
    start = time.perf_counter()
    while runtime.find_store(store).statistics().inflight_bytes:
        compute()
    drive_seconds = time.perf_counter() - start
    times["release"] = time_calls(release, count, pause)
    times["prefetch"] = time_calls(lambda index: ops.PREFETCH(tickets[index]), count, pause)
    # Nothing tells from outside that reads have ended; the time of the writes and more is enough.
    end = time.perf_counter() + 2 * drive_seconds + 0.002
    while time.perf_counter() < end:
        compute()
    results: list[torch.Tensor | None] = [None] * count
    times["wait"] = time_calls(wait, count, pause)
    return times


def time_calls(
    call: Callable[[int], None], count: int, pause: Callable[[], None]
) -> list[CallTime]:
    """The time of each of `count` calls, with a pause before each."""
    times: list[CallTime] = []
    for index in range(count):
        pause()
        core_start, start = time.thread_time(), time.perf_counter()
        call(index)
        end, core_end = time.perf_counter(), time.thread_time()
        times.append(CallTime(end - start, core_end - core_start))
    return times


def compute() -> None:
    """Keep this thread busy as a graph does, for about a millisecond."""
    end = time.perf_counter() + COMPUTE_SECONDS
    x = torch.full((256, 256), 0.5)
    while time.perf_counter() < end:
        x = torch.mm(x, x)


def skip() -> None:
    """No pause."""


def summarise(op: str, kind: str, nbytes: int, times: Sequence[CallTime]) -> OpTime:
    """Medians and spread of at least two calls."""
    seconds = [item.seconds for item in times]
    deciles = statistics.quantiles(seconds, n=10, method="inclusive")
    return OpTime(
        op=op,
        kind=kind,
        nbytes=nbytes,
        calls=len(times),
        median_seconds=statistics.median(seconds),
        p10_seconds=deciles[0],
        p90_seconds=deciles[-1],
        median_core_seconds=statistics.median(item.core_seconds for item in times),
    )


def build_table(times: Sequence[OpTime], ioengine: str) -> Table:
    """One line for each op, size and kind of round."""
    table = Table(title=f"host time of one call, {ioengine}")
    for column in ("op", "MiB", "calls", "median us", "p10", "p90", "core us", "counted"):
        table.add_column(column, justify="left" if column in ("op", "calls") else "right")
    for item in times:
        table.add_row(
            item.op,
            f"{item.nbytes / MIB:g}",
            "in a row" if item.kind == "row" else "apart",
            f"{item.median_seconds * 1e6:.1f}",
            f"{item.p10_seconds * 1e6:.1f}",
            f"{item.p90_seconds * 1e6:.1f}",
            f"{item.median_core_seconds * 1e6:.1f}",
            str(item.calls),
        )
    return table


if __name__ == "__main__":
    main()
