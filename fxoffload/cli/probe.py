"""The command that measures directories."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer
from rich.progress import Progress, TaskID

from fxoffload import runtime
from fxoffload.cli.fio_fields import describe_job
from fxoffload.cli.output import JsonOption, print_json, show_progress
from fxoffload.config import OffloadConfig
from fxoffload.directories import check_directory
from fxoffload.errors import ConfigError
from fxoffload.runtime.measurement.bandwidth import PROBE_BYTES, sample_transfers, take_slots
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.runtime.measurement.load import keep_computing
from fxoffload.sizes import parse_bytes
from fxoffload.tables import format_table

DiskEngine = Literal["auto", "posix", "kvikio", "gds"]
LOADS = ("alone", "beside compute")
LARGEST_BYTES = 2**30
LIMIT_SECONDS = 10.0  # Of one load of one directory: a slow drive gets fewer rounds.


def probe(
    directories: Annotated[
        list[Path], typer.Argument(metavar="DIR...", help="Directories on the drives to measure.")
    ],
    rounds: Annotated[
        int, typer.Option(min=1, help="Batches of four transfers each way, for each load.")
    ] = 25,
    size: Annotated[str, typer.Option(help="Bytes of one transfer.")] = str(PROBE_BYTES),
    ioengine: Annotated[DiskEngine, typer.Option(help="The engine to measure.")] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure bandwidth and latency of directories, and print options to paste."""
    options = {"directory": directories, "ioengine": ioengine}
    config = OffloadConfig.from_options(options)
    nbytes = parse_bytes("size", size)
    if nbytes > LARGEST_BYTES:
        raise ConfigError(
            f"size={size!r} is more than 1 GiB, and four transfers are in memory at once; pass less"
        )
    for path in config.directories:
        check_directory(path)
    with show_progress() as progress:
        task = progress.add_task("measure", total=2 * len(directories) + 1)
        found = [
            measure_directory(str(path), ioengine, rounds, nbytes, progress, task)
            for path in config.directories
        ]
        progress.update(task, description="compute that transfers take from the cores")
        # What plans of this process start from: of all directories together, and kept on disk.
        choice = runtime.choose_engine(config)
        taken = runtime.recall_contention(config)
        bus = measure_bus()
    pasted = {"directory": [str(path) for path in config.directories], "ioengine": choice.kind}
    data = {
        "directories": found,
        "plans_start_from": {
            "write_bw_bytes": choice.bandwidth.write,
            "read_bw_bytes": choice.bandwidth.read,
            "compute_seconds_per_byte_written": taken.write,
            "compute_seconds_per_byte_read": taken.read,
            "kept_in": str(runtime.cache_path()),
        },
        "host_link": bus,
        "options": pasted,
    }
    if as_json:
        print_json(data)
    else:
        typer.echo(format_probe(data))


def measure_directory(
    path: str, ioengine: DiskEngine, rounds: int, nbytes: int, progress: Progress, task: TaskID
) -> dict[str, Any]:
    """Measure one directory with the engine that training would use there, under each load.

    Raises the errors of choose_engine and open_engine, and StoreFull without room.
    """
    config = OffloadConfig.from_options({"directory": path, "ioengine": ioengine})
    progress.update(task, description=f"{path}: engine")
    choice = runtime.choose_engine(config)
    engine = open_engine(config, choice)
    jobs: list[dict[str, Any]] = []
    try:
        slots = take_slots(engine, -(-max(nbytes, 1) // engine.alignment) * engine.alignment)
        for load in LOADS:
            progress.update(task, description=f"{path}: {load}")
            with keep_computing() if load == "beside compute" else nullcontext():
                samples = sample_transfers(
                    engine, slots, rounds=rounds, limit_seconds=LIMIT_SECONDS
                )
            jobs.append(describe_job(load, samples, slots.nbytes, len(slots.offsets)))
            progress.advance(task)
        return {
            "directory": path,
            "engine": engine.name,
            "reason": choice.reason,
            "alignment": engine.alignment,
            "jobs": jobs,
        }
    finally:
        engine.close()


def measure_bus() -> dict[str, float] | None:
    """The bandwidth between the GPU and pinned host memory each way; None without a GPU."""
    if not torch.cuda.is_available():
        return None
    bus = runtime.recall_exchange(torch.device("cuda", torch.cuda.current_device()))
    return {"to_host_bw_bytes": bus.write, "to_device_bw_bytes": bus.read}


def format_probe(data: dict[str, Any]) -> str:
    """What `probe` measured as text."""
    rows = [("directory", "load", "", "GB/s", "transfers/s", "ms p50", "p90", "p99", "max")]
    rows += [
        (found["directory"], job["jobname"], way, *_format_direction(job[way]))
        for found in data["directories"]
        for job in found["jobs"]
        for way in ("write", "read")
    ]
    lines = [format_table(rows), ""]
    lines += [
        f"{found['directory']}: ioengine {found['engine']}, aligned to {found['alignment']} bytes; "
        f"{found['reason']}"
        for found in data["directories"]
    ]
    start = data["plans_start_from"]
    lines.append(
        f"plans start from {start['write_bw_bytes'] / 1e9:.2g} GB/s written and "
        f"{start['read_bw_bytes'] / 1e9:.2g} GB/s read; on a CPU each byte takes "
        f"{start['compute_seconds_per_byte_written'] * 1e9:.2g} ns written and "
        f"{start['compute_seconds_per_byte_read'] * 1e9:.2g} ns read from compute "
        f"(kept in {start['kept_in']}; delete it to measure again)"
    )
    if data["host_link"] is not None:
        out, back = data["host_link"].values()
        lines.append(f"GPU to host {out / 1e9:.3g} GB/s, host to GPU {back / 1e9:.3g} GB/s")
    return "\n".join([*lines, "", f"options={data['options']}"])


def _format_direction(way: dict[str, Any]) -> tuple[str, ...]:
    clat = way["clat_ns"]
    places = [clat["percentile"][f"{share:.6f}"] for share in (50.0, 90.0, 99.0)]
    latencies = [f"{value / 1e6:.2f}" for value in (*places, clat["max"])]
    return f"{way['bw_bytes'] / 1e9:.2f}", f"{way['iops']:.0f}", *latencies
