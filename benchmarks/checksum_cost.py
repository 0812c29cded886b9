"""What digests cost: a store's round trips with the option `checksum` and without.

    python benchmarks/checksum_cost.py --size 16MiB --directory /mnt/nvme

Each round takes `--values` values out and back through a store of each kind, in turn; the ratio is
that of paired rounds.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

from fxoffload import ConfigError, OffloadConfig, StoreError, ops, runtime
from fxoffload.sizes import parse_bytes

MIB = 2**20


@dataclass(frozen=True, slots=True)
class Round:
    """Seconds of one round and of the processor, all threads of the process together."""

    seconds: float
    core_seconds: float


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print a table and a JSON line."""
    parser = build_parser()
    arguments = parser.parse_args(argv)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=arguments.directory) as directory:
        try:
            nbytes = parse_bytes("--size", arguments.size)
            stores = {
                checksum: runtime.register_store(
                    OffloadConfig(
                        directory=directory, ioengine=arguments.ioengine, checksum=checksum
                    ),
                    keeps_graph=lambda: False,
                )
                for checksum in (False, True)
            }
        except (ConfigError, StoreError) as error:
            parser.error(str(error))
        values = [torch.full((nbytes // 4,), float(i)) for i in range(arguments.values)]
        rounds: dict[bool, list[Round]] = {False: [], True: []}
        for index in range(arguments.rounds + 1):
            for checksum, store in stores.items():
                result = run_round(store, values)
                if index:  # The first takes new space on the drive.
                    rounds[checksum].append(result)
        name = runtime.find_store(stores[True]).statistics().ioengine
        for store in stores.values():
            runtime.find_store(store).close()
    record = summarise(rounds, nbytes * arguments.values)
    record |= {"ioengine": name, "size_bytes": nbytes, "values": arguments.values}
    record["rounds"] = [[asdict(item) for item in rounds[checksum]] for checksum in stores]
    Console().print(build_table(record))
    line = json.dumps(record)
    print(line)
    if arguments.output is not None:
        with arguments.output.open("a") as file:
            file.write(line + "\n")


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--size", default="16MiB", help="of one value")
    add("--values", type=int, default=16, help="values in a round")
    add("--rounds", type=int, default=10)
    add("--directory", type=Path, help="on the drive; default: that of temporary files")
    add("--ioengine", default="posix")
    add("--output", type=Path, help="file to which the JSON line is appended")
    return parser


def run_round(store: str, values: Sequence[torch.Tensor]) -> Round:
    """All values out, then all back, and each as it was."""
    start, core_start = time.perf_counter(), time.process_time()
    tickets = [ops.OFFLOAD(x, store, "value", "nvme", True, 0) for x in values]
    for ticket, x in zip(tickets, values, strict=True):
        ops.RELEASE(ticket, x, True)
    for ticket in tickets:
        ops.PREFETCH(ticket)
    results = [
        ops.WAIT(ticket, list(x.shape), list(x.stride()), x.dtype, x.device)
        for ticket, x in zip(tickets, values, strict=True)
    ]
    end, core_end = time.perf_counter(), time.process_time()
    for x, y in zip(values, results, strict=True):
        assert y[0] == x[0]
        assert y[-1] == x[-1]
    counted = runtime.find_store(store).statistics()
    assert counted.forwarded_bytes == 0, "a value came from memory, not from the drive"
    return Round(end - start, core_end - core_start)


def summarise(rounds: dict[bool, list[Round]], round_bytes: int) -> dict[str, object]:
    """Medians, and the ratio of paired rounds."""

    def median(checksum: bool, field: str) -> float:
        return statistics.median(getattr(item, field) for item in rounds[checksum])

    pairs = zip(rounds[True], rounds[False], strict=True)
    speeds = {
        checksum: 2 * round_bytes / MIB / median(checksum, "seconds") for checksum in (False, True)
    }
    return {
        "plain_mib_per_second": speeds[False],
        "checked_mib_per_second": speeds[True],
        "seconds_ratio": statistics.median(a.seconds / b.seconds for a, b in pairs),
        "plain_core_seconds_per_gib": median(False, "core_seconds") * 2**29 / round_bytes,
        "checked_core_seconds_per_gib": median(True, "core_seconds") * 2**29 / round_bytes,
    }


def build_table(record: dict[str, object]) -> Table:
    """One line with digests and one without."""
    table = Table(title=f"round trips of a store, {record['ioengine']}")
    for column in ("checksum", "MiB/s, both ways", "core-seconds per GiB"):
        table.add_column(column, justify="right")
    for label, kind in (("no", "plain"), ("yes", "checked")):
        table.add_row(
            label,
            f"{record[f'{kind}_mib_per_second']:.0f}",
            f"{record[f'{kind}_core_seconds_per_gib']:.3f}",
        )
    table.caption = f"time with digests over without, paired: {record['seconds_ratio']:.3f}"
    return table


if __name__ == "__main__":
    main()
