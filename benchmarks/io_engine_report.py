"""Makes the tables of io_engine.py and finds missed limits, from the records of its processes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from benchmarks.fio import FIO
from benchmarks.fresh_process import Record
from benchmarks.runner import Table, describe_spread
from fxoffload.sizes import format_bytes

SPEED_RATIO_LIMIT = 0.95
LEAST_BYTES = 4 * 2**20  # Smaller transfers have no limits.
CPU_SECONDS_PER_GIB_LIMIT = 0.15
WEAR_LIMIT = 0.02
# A round is quiet if others write less than this share of its bytes in a pause of equal length.
_QUIET_SHARE = 0.002
GIB = 2**30
Records = Sequence[Mapping[str, Any]]


class Cell(NamedTuple):
    """A row of a table: the load, the size of the values, and the direction."""

    load: str
    size: int
    direction: str

    def __str__(self) -> str:
        return f"{self.direction} of {format_bytes(self.size)}"


def group_samples(records: Records) -> dict[Cell, dict[str, list[Mapping[str, Any]]]]:
    """The samples of each contestant, fio first, in each cell."""
    cells: dict[Cell, dict[str, list[Mapping[str, Any]]]] = {}
    samples = [record for record in records if record["kind"] == "sample"]
    for sample in sorted(samples, key=lambda each: (each["contestant"] != FIO, each["contestant"])):
        contestants = cells.setdefault(find_cell(sample), {FIO: []})
        contestants.setdefault(sample["contestant"], []).append(sample)
    return {cell: cells[cell] for cell in dict.fromkeys(map(find_cell, samples))}


def find_cell(record: Mapping[str, Any]) -> Cell:
    """The cell of a sample or of a job of fio."""
    return Cell(record["load"], record["size"], record["direction"])


def find_ratios(samples: Records, yardstick: Records) -> list[float]:
    """Bytes per second over those of the yardstick, of each round that both have."""
    own, its = (
        {each["round"]: each["nbytes"] / each["seconds"] for each in found}
        for found in (samples, yardstick)
    )
    return [rate / its[number] for number, rate in own.items() if number in its]


def find_cpu_seconds(samples: Records) -> list[float]:
    """Processor seconds per GiB; empty if the load's are not known apart."""
    return [
        sample["cpu_seconds"] / sample["nbytes"] * GIB
        for sample in samples
        if sample["cpu_seconds"] is not None
    ]


def tabulate(record: Record) -> list[Table]:
    """Speed under each load, processor time, and wear."""
    records, works = record["records"], record["works"]
    tables = [
        make_endurance_table(records) if work == "endurance" else make_speed_table(records, work)
        for work in works
    ]
    return [*tables, *([make_cpu_table(records)] if "alone" in works else [])]


def make_speed_table(records: Records, load: str) -> Table:
    """fio's speed, and every contestant's median ratio with its spread."""
    jobs = {find_cell(record): record["job"] for record in records if record["kind"] == "job"}
    rows: list[list[str]] = []
    for cell, contestants in group_samples(records).items():
        if cell.load == load:
            rows = rows or [["", *contestants, "fio's job"]]
            speeds = [describe_speed(each, contestants[FIO]) for each in contestants.values()]
            rows.append([str(cell), *speeds, jobs.get(cell, "-")])
    return Table(rows, f"{load}: GB/s, and its ratio to fio: median (least to most)")


def describe_speed(samples: Records, yardstick: Records) -> str:
    """GB per second, and the ratio to fio."""
    if not samples:
        return "-"
    rate = statistics.median(sample["nbytes"] / sample["seconds"] for sample in samples)
    ratios = [] if samples is yardstick else find_ratios(samples, yardstick)
    return f"{rate / 1e9:.2f} {describe_spread(ratios, 2)}".rstrip()


def make_cpu_table(records: Records) -> Table:
    """Processor seconds for each GiB, measured alone."""
    rows: list[list[str]] = []
    for cell, contestants in group_samples(records).items():
        if cell.load == "alone":
            rows = rows or [["", *contestants]]
            spreads = (describe_spread(find_cpu_seconds(each), 2) for each in contestants.values())
            rows.append([str(cell), *spreads])
    return Table(rows, "core-seconds per GiB: median (least to most)")


def make_endurance_table(records: Records) -> Table:
    """Bytes of values, bytes moved, and bytes counted by process and device, in each round."""
    devices = [record for record in records if record["kind"] == "device"]
    place = ", ".join(record.get("name") or record["unknown"] for record in devices)
    rows = [["engine", "values", "moved", "process", "device", "pauses", "device is off"]]
    for record in records:
        if record["kind"] == "endurance":
            counts = [record[f"{name}_bytes"] for name in ("value", "moved", "process", "device")]
            pauses = " ".join(map(format_bytes, record["pause_bytes"]))
            off = f"{find_device_difference(record):+.3%}"
            off += "" if is_quiet(record) else " (not quiet)"
            cells = ("-" if count is None else format_bytes(count) for count in counts)
            rows.append([record["engine"], *cells, pauses, off])
    return Table(rows, f"bytes written, and what was counted meanwhile by {place}")


def find_misses(record: Record) -> list[str]:
    """Every limit that was missed, in words; what was not measured is not missed."""
    records = record["records"]
    rounds = [record for record in records if record["kind"] == "endurance"]
    return [
        *(
            miss
            for cell, found in group_samples(records).items()
            for miss in _find_slow(cell, found)
        ),
        *_find_wear(rounds),
    ]


def _find_slow(cell: Cell, contestants: Mapping[str, Records]) -> Iterator[str]:
    if cell.size < LEAST_BYTES:
        return
    for layer in ("engine", "store"):
        found = {
            statistics.median(ratios): name
            for name, samples in contestants.items()
            if name.endswith(layer) and (ratios := find_ratios(samples, contestants[FIO]))
        }
        best = max(found, default=SPEED_RATIO_LIMIT)
        if best < SPEED_RATIO_LIMIT:
            limit = f"{best:.3f} of fio (>= {SPEED_RATIO_LIMIT})"
            yield f"{cell}, {cell.load}: best {layer} is {found[best]}, {limit}"
    for name, samples in contestants.items():
        median = statistics.median(find_cpu_seconds(samples) or [0.0])
        if name != FIO and cell.load == "alone" and median > CPU_SECONDS_PER_GIB_LIMIT:
            limit = f"(<= {CPU_SECONDS_PER_GIB_LIMIT})"
            yield f"{cell}, {name}: {median:.3f} core-seconds per GiB {limit}"


def _find_wear(rounds: Records) -> Iterator[str]:
    for name in dict.fromkeys(record["engine"] for record in rounds):
        quiet = [each for each in rounds if each["engine"] == name and is_quiet(each)]
        off = statistics.median(map(find_device_difference, quiet)) if quiet else 0.0
        if not quiet:
            yield f"endurance, {name}: others wrote to the device around every round"
        elif abs(off) > WEAR_LIMIT:
            yield (
                f"endurance, {name}: the device's counter is off by {off:.1%} "
                f"in {len(quiet)} quiet rounds (within {WEAR_LIMIT:.0%})"
            )


def find_device_difference(record: Mapping[str, Any]) -> float:
    """The bytes that the device counted over those that the store moved, minus 1."""
    return record["device_bytes"] / record["moved_bytes"] - 1


def is_quiet(record: Mapping[str, Any]) -> bool:
    """Whether nearly nothing was written in the pauses before and after a round."""
    return max(record["pause_bytes"]) <= _QUIET_SHARE * record["moved_bytes"]
