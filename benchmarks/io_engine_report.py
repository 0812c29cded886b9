"""Makes the tables of io_engine.py and finds missed limits, from the records of its processes."""

from __future__ import annotations

import statistics
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from benchmarks.fio import FIO
from benchmarks.fresh_process import Record
from benchmarks.runner import Rows, Table
from fxoffload.sizes import format_bytes

SPEED_RATIO_LIMIT = 0.95
LEAST_BYTES = 4 * 2**20  # Smaller transfers have no limits.
CPU_SECONDS_PER_GIB_LIMIT = 0.15
WEAR_LIMIT = 0.02
_QUIET_SHARE = 0.002  # Of what a round moves, written by others in a pause as long.
GIB = 2**30
Records = Sequence[Mapping[str, Any]]


def select(records: Records, kind: str, **fields: Any) -> list[Mapping[str, Any]]:
    """The records of `kind` whose `fields` are these."""
    wanted = {"kind": kind, **fields}
    return [record for record in records if all(record.get(key) == wanted[key] for key in wanted)]


def find_ratios(records: Records, contestant: str, **cell: Any) -> list[float]:
    """Bytes per second over fio's, of each round of one load, size and direction."""
    yardstick, rates = (
        {each["round"]: each["nbytes"] / each["seconds"] for each in found}
        for found in (
            select(records, "sample", contestant=name, **cell) for name in (FIO, contestant)
        )
    )
    return [rate / yardstick[number] for number, rate in rates.items() if number in yardstick]


def find_cpu_seconds(records: Records, contestant: str, **cell: Any) -> list[float]:
    """Processor seconds for each GiB; empty where they could not be told from the load's."""
    return [
        sample["cpu_seconds"] / sample["nbytes"] * GIB
        for sample in select(records, "sample", contestant=contestant, **cell)
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
    contestants = _find_contestants(records)
    rows: Rows = [["size", "", FIO, "its job", *contestants]]
    for cell in _find_cells(records, load):
        jobs = [record["job"] for record in select(records, "job", **cell)]
        rows.append([*_describe_cell(cell), _describe_rate(records, FIO, cell), *(jobs or ["-"])])
        for name in contestants:
            ratios = find_ratios(records, name, **cell)
            rows[-1].append(f"{_describe_rate(records, name, cell)} {_describe_spread(ratios)}")
    return Table(rows, f"{load}: GB/s, and its ratio to fio: median (least to most)")


def make_cpu_table(records: Records) -> Table:
    """Processor seconds for each GiB, measured alone."""
    contestants = [FIO, *_find_contestants(records)]
    rows: Rows = [["size", "", *contestants]]
    for cell in _find_cells(records, "alone"):
        seconds = [find_cpu_seconds(records, name, **cell) for name in contestants]
        rows.append([*_describe_cell(cell), *map(_describe_spread, seconds)])
    return Table(rows, "core-seconds per GiB: median (least to most)")


def make_endurance_table(records: Records) -> Table:
    """Bytes of values, as moved, and as counted by others, in each round."""
    devices = select(records, "device")
    place = ", ".join(record.get("name") or record["unknown"] for record in devices)
    rows: Rows = [["engine", "values", "moved", "process", "device", "pauses", "device is off"]]
    for record in select(records, "endurance"):
        process = record["process_bytes"]
        quiet = "" if is_quiet(record) else " (not quiet)"
        cells = [
            format_bytes(record["value_bytes"]),
            format_bytes(record["moved_bytes"]),
            "-" if process is None else format_bytes(process),
            format_bytes(record["device_bytes"]),
            " ".join(map(format_bytes, record["pause_bytes"])),
            f"{find_device_difference(record):+.3%}{quiet}",
        ]
        rows.append([record["engine"], *cells])
    return Table(rows, f"bytes written, and what was counted meanwhile by {place}")


def find_misses(records: Records) -> list[str]:
    """Every limit that was missed, in words; what was not measured is not missed."""
    return [*_find_slow(records), *_find_dear(records), *_find_wear(records)]


def _find_slow(records: Records) -> Iterator[str]:
    for cell in (*_find_cells(records, "alone"), *_find_cells(records, "busy")):
        if cell["size"] < LEAST_BYTES:
            continue
        for layer in ("engine", "store"):
            names = [name for name in _find_contestants(records) if name.endswith(layer)]
            ratios = {name: find_ratios(records, name, **cell) for name in names}
            medians = {name: statistics.median(each) for name, each in ratios.items() if each}
            if medians and max(medians.values()) < SPEED_RATIO_LIMIT:
                best = max(medians, key=medians.__getitem__)
                yield (
                    f"{cell['direction']} of {format_bytes(cell['size'])}, {cell['load']}: best "
                    f"{layer} is {best}, {medians[best]:.3f} of fio (>= {SPEED_RATIO_LIMIT})"
                )


def _find_dear(records: Records) -> Iterator[str]:
    for cell in _find_cells(records, "alone"):
        if cell["size"] < LEAST_BYTES:
            continue
        for name in _find_contestants(records):
            median = statistics.median(find_cpu_seconds(records, name, **cell) or [0.0])
            if median > CPU_SECONDS_PER_GIB_LIMIT:
                yield (
                    f"{cell['direction']} of {format_bytes(cell['size'])}, {name}: {median:.3f} "
                    f"core-seconds per GiB (<= {CPU_SECONDS_PER_GIB_LIMIT})"
                )


def _find_wear(records: Records) -> Iterator[str]:
    rounds = select(records, "endurance")
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
    """What the device counted over what the store moved, minus 1."""
    return record["device_bytes"] / record["moved_bytes"] - 1


def is_quiet(record: Mapping[str, Any]) -> bool:
    """Whether nearly nothing was written in the pauses before and after a round."""
    return max(record["pause_bytes"]) <= _QUIET_SHARE * record["moved_bytes"]


def _find_contestants(records: Records) -> list[str]:
    names = dict.fromkeys(sample["contestant"] for sample in select(records, "sample"))
    return sorted(name for name in names if name != FIO)


def _find_cells(records: Records, load: str) -> list[dict[str, Any]]:
    samples = select(records, "sample", load=load)
    cells = dict.fromkeys((sample["size"], sample["direction"]) for sample in samples)
    return [{"load": load, "size": size, "direction": direction} for size, direction in cells]


def _describe_cell(cell: Mapping[str, Any]) -> list[str]:
    return [format_bytes(cell["size"]), cell["direction"]]


def _describe_rate(records: Records, contestant: str, cell: Mapping[str, Any]) -> str:
    samples = select(records, "sample", contestant=contestant, **cell)
    if not samples:
        return "-"
    rate = statistics.median(sample["nbytes"] / sample["seconds"] for sample in samples)
    return f"{rate / 1e9:.2f}"


def _describe_spread(values: Sequence[float]) -> str:
    if not values:
        return ""
    return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"
