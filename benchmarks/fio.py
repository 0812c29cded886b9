"""Runs fio, the yardstick of I/O benchmarks: direct I/O on one file that is already written."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Container, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from benchmarks.transfers import DIRECTIONS, Direction, Timing
from fxoffload import OffloadError

FIO = "fio"
MISSING = "fio is not on PATH; install it (Debian: fio) or pass --no-fio"
# Memory that the buffers of a job may take.
MAX_BUFFER_BYTES = 512 * 2**20
# fio fills its buffers before the timing only if a job may write. A job that only reads would
# allocate fresh pages while it is timed.
_SELECTORS: dict[Direction, tuple[str, ...]] = {
    "write": ("--rw=write",),
    "read": ("--rw=rw", "--rwmixread=100"),
}
PREPARE_BYTES = 4 * 2**20
_TIMEOUT_SECONDS = 120
_LEAST_BLOCKS = 4  # For each thread, where there are several.
_TRIALS = 2
# ioengine, threads, transfers of each in flight. psync with 2 threads is what the posix engine
# does; the others are what drives usually like best.
_SHAPES = (
    ("psync", 1, 1),
    ("psync", 2, 1),
    ("psync", 4, 1),
    ("libaio", 1, 8),
    ("io_uring", 1, 8),
)
_COMMAND = (
    *(FIO, "--thread", "--group_reporting", "--output-format=json"),
    *("--direct=1", "--fallocate=none", "--disk_util=0"),
    # Random bytes are made once, as they are for the engines, not anew for every block.
    "--scramble_buffers=0",
)


class FioFailed(OffloadError):
    """fio is missing, or refused a job; the message says which."""


@dataclass(frozen=True, slots=True)
class FioJob:
    """How fio moves blocks: `jobs` threads, each with `depth` transfers in flight."""

    direction: Direction
    ioengine: str
    jobs: int
    depth: int

    def __str__(self) -> str:
        return f"{self.ioengine} {self.jobs}x{self.depth}"


def find_jobs(direction: Direction, block_bytes: int, total_bytes: int) -> Iterator[FioJob]:
    """The jobs to choose from: those whose buffers fit, and whose threads have enough to do.

    fio reports the longest time of a thread as the time of the job. This is too short for threads
    that start one after another and move only one or two blocks each.
    """
    most = min(total_bytes, MAX_BUFFER_BYTES) // block_bytes
    for ioengine, jobs, depth in _SHAPES:
        depth = min(depth, most // jobs)
        enough = jobs == 1 or total_bytes // block_bytes >= _LEAST_BLOCKS * jobs
        if depth >= 1 and enough:
            yield FioJob(direction, ioengine, jobs, depth)


def prepare_file(path: Path, nbytes: int) -> frozenset[str]:
    """Write `nbytes` to a new file, and find the ioengines that work here.

    First writes of new space are slower than later ones. Raises FioFailed where none works.
    """
    block_bytes = min(nbytes, PREPARE_BYTES)
    job = FioJob("write", "psync", 1, 1)
    run_fio([job], path, block_bytes, nbytes)
    works = {job.ioengine}
    for ioengine in {ioengine for ioengine, _, _ in _SHAPES} - works:
        with suppress(FioFailed):  # io_uring is often forbidden.
            run_fio([replace(job, ioengine=ioengine)], path, block_bytes, block_bytes)
            works.add(ioengine)
    return frozenset(works)


def rate_jobs(
    path: Path, ioengines: Container[str], nbytes: int, total_bytes: int
) -> dict[FioJob, float]:
    """Bytes per second of all jobs for values of `nbytes`, as the mean of some trials."""
    jobs = [job for each in DIRECTIONS for job in find_jobs(each, nbytes, total_bytes)]
    jobs = [job for job in jobs if job.ioengine in ioengines]
    trials = [run_fio(jobs, path, nbytes, total_bytes) for _ in range(_TRIALS)]
    return {
        job: fmean(timing.nbytes / timing.seconds for timing in timings)
        for job, *timings in zip(jobs, *trials, strict=True)
    }


def run_fio(jobs: Sequence[FioJob], path: Path, block_bytes: int, total_bytes: int) -> list[Timing]:
    """Run one job after the other, each over `total_bytes` of the file; may raise FioFailed."""
    escaped = str(path).replace(":", "\\:")
    command = [*_COMMAND, f"--filename={escaped}", f"--bs={block_bytes}"]
    expected: list[int] = []
    for job in jobs:
        share = total_bytes // block_bytes // job.jobs * block_bytes
        expected.append(share * job.jobs)
        command += [f"--name={job.direction}", "--stonewall", *_SELECTORS[job.direction]]
        command += [f"--ioengine={job.ioengine}", f"--numjobs={job.jobs}", f"--iodepth={job.depth}"]
        command += [f"--size={share}", f"--offset_increment={share}"]
    names = ", ".join(map(str, jobs))
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_TIMEOUT_SECONDS)
    except FileNotFoundError:
        raise FioFailed(MISSING) from None
    except subprocess.TimeoutExpired:
        raise FioFailed(f"fio ({names}) took more than {_TIMEOUT_SECONDS} s") from None
    if done.returncode != 0:
        said = (done.stderr + done.stdout).strip()[-1000:]
        raise FioFailed(f"fio ({names}) ended with status {done.returncode}: {said}")
    # Notes of fio's own may stand before the JSON.
    groups = json.loads(done.stdout[done.stdout.index("{") :])["jobs"]
    return [_parse_group(*each) for each in zip(jobs, groups, expected, strict=True)]


def _parse_group(job: FioJob, group: dict[str, Any], expected_bytes: int) -> Timing:
    moved = group[job.direction]
    if group["error"] or moved["io_bytes"] != expected_bytes:
        raise FioFailed(
            f"fio ({job}) moved {moved['io_bytes']} of {expected_bytes} bytes, "
            f"error {group['error']}"
        )
    # Shares of the time of all threads added up.
    cpu_seconds = (group["usr_cpu"] + group["sys_cpu"]) / 100 * group["job_runtime"] / 1000
    return Timing(expected_bytes, expected_bytes / moved["bw_bytes"], cpu_seconds)
