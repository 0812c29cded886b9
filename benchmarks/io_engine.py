"""Speed of the engines, alone and under the store, against fio; processor time; wear.

    python benchmarks/io_engine.py --directory /mnt/nvme --output results.jsonl

fio, engines and stores take turns in one process tree, on the same file system and with the same
bytes (random, direct I/O, space already written), once alone and once beside two compute threads
and a busy Python thread. Results are ratios of the samples of one round. fio is given the fastest
of several jobs (fio.JOBS) for each size and direction. Then the bytes that stores write are held
against the block device's own counter.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fxoffload import ConfigError, OffloadConfig
from fxoffload.directories import check_directory, find_filesystem
from fxoffload.sizes import parse_bytes

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fio import has_fio
from benchmarks.fresh_process import ChildFailed, run_fresh
from benchmarks.io_engine_report import (
    build_cpu_table,
    build_endurance_table,
    build_speed_table,
    find_misses,
)
from benchmarks.io_engine_run import RunSettings
from benchmarks.measure import find_cpu_model

_UNRECORDED = ("output", "check", "directory")  # Files of one machine say nothing elsewhere.


def main(argv: Sequence[str] | None = None) -> None:
    """Measure, print tables and a JSON line; with --check exit 1 where a limit is missed."""
    console = Console()
    parser = build_parser()
    arguments = parser.parse_args(argv)
    if arguments.fio and not has_fio():
        parser.error("fio is not on PATH; install it (Debian: fio) or pass --no-fio")
    try:
        (directory,) = OffloadConfig(directory=arguments.directory).directories
        check_directory(directory)
        records = [
            record
            for work in arguments.works
            for record in measure(arguments, work, directory, console)
        ]
    except ConfigError as error:
        parser.error(str(error))
    except ChildFailed as failure:
        console.print(str(failure), style="red", markup=False, soft_wrap=True)
        sys.exit(1)
    for record in records:
        if "unavailable" in record:
            console.print(f"left out, {record['engine']}: {record['unavailable']}", markup=False)
    for work in arguments.works:
        if work == "endurance":
            console.print(build_endurance_table(records))
        else:
            console.print(build_speed_table(records, work))
    if "alone" in arguments.works:
        console.print(build_cpu_table(records))
    line = json.dumps(build_record(arguments, directory, records))
    if arguments.output is None:
        print(line)
    else:
        with arguments.output.open("a") as file:
            file.write(line + "\n")
    misses = find_misses(records)
    for miss in misses:
        console.print(f"missed: {miss}", markup=False, soft_wrap=True)
    if arguments.check and misses:
        sys.exit(1)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--directory", help="where to measure; default: see OffloadConfig")
    add("--engines", nargs="+", default=["posix", "kvikio"], choices=["posix", "kvikio", "memory"])
    sizes = ["64KiB", "256KiB", "1MiB", "4MiB", "16MiB", "64MiB", "256MiB"]
    add("--sizes", nargs="+", type=_parse_size, default=sizes, help="of tensors")
    add("--total", type=_parse_size, default="256MiB", help="bytes of a sample, at most")
    add("--rounds", type=int, default=4)
    add("--window", type=int, default=8, help="transfers in flight at most")
    add("--inflight", type=_parse_size, default="512MiB", help="bytes in flight at most")
    works = ["alone", "busy", "endurance"]
    add("--works", nargs="+", choices=works, default=works, help="what to measure")
    add("--no-fio", dest="fio", action="store_false", help="measure without the yardstick")
    add("--output", type=Path, help="file to which the JSON line is appended")
    add("--check", action="store_true", help="exit with status 1 where a limit is missed")
    return parser


def measure(
    arguments: argparse.Namespace, work: str, directory: Path, console: Console
) -> list[dict[str, Any]]:
    """The records of one process."""
    sizes: list[int] = [parse_bytes("sizes", size) for size in arguments.sizes]
    settings = RunSettings(
        work=work,  # pyright: ignore[reportArgumentType] - one of the choices
        directory=str(directory),
        engines=tuple(arguments.engines),
        # Wear does not depend on the size; the middle one stands for all.
        sizes=(sizes[len(sizes) // 2],) if work == "endurance" else tuple(sizes),
        total_bytes=parse_bytes("total", arguments.total),
        # Many, for others may write to the device too, and a round takes half a second.
        rounds=arguments.rounds * (3 if work == "endurance" else 1),
        window=arguments.window,
        inflight_bytes=parse_bytes("inflight", arguments.inflight),
        fio=arguments.fio,
    )
    script = Path(__file__).with_name("io_engine_run.py")
    records: list[dict[str, Any]] = []
    with console.status(work) as status:
        for record in run_fresh(script, asdict(settings)):
            records.append(record)
            status.update(f"{work}: {record.get('contestant', '')} {record.get('size', '')}")
    return records


def build_record(
    arguments: argparse.Namespace, directory: Path, records: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Everything that was measured, and on what."""
    return {
        "benchmark": "io_engine",
        **{key: value for key, value in vars(arguments).items() if key not in _UNRECORDED},
        "fxoffload": version("fxoffload"),
        "torch": torch.__version__,
        "cpu": find_cpu_model(),
        "filesystem": find_filesystem(directory),
        "records": list(records),
    }


def _parse_size(text: str) -> int:
    try:
        return parse_bytes("size", text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


if __name__ == "__main__":
    main()
