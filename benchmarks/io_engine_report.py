"""Tables and limits of io_engine.py, from the records of its processes."""

from __future__ import annotations

import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from fxoffload.sizes import format_bytes

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fio import FIO

SPEED_RATIO_LIMIT = 0.95
SPEED_LEAST_BYTES = 4 * 2**20
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

    def rate(name: str) -> dict[int, float]:
        samples = select(records, "sample", contestant=name, **cell)
        return {sample["round"]: sample["nbytes"] / sample["seconds"] for sample in samples}

    yardstick = rate(FIO)
    return [value / yardstick[n] for n, value in rate(contestant).items() if n in yardstick]


def find_cpu_seconds(records: Records, contestant: str, **cell: Any) -> list[float]:
    """Processor seconds for each GiB; empty where they could not be told from the load's."""
    return [
        sample["cpu_seconds"] / sample["nbytes"] * GIB
        for sample in select(records, "sample", contestant=contestant, **cell)
        if sample["cpu_seconds"] is not None
    ]


def build_speed_table(records: Records, load: str) -> Table:
    """fio's speed, and every contestant's median ratio with its spread."""
    contestants = _find_contestants(records)
    table = Table(title=f"{load}: GB/s, and its ratio to fio: median (least to most)")
    for heading in ("size", "", FIO, "its job"):
        table.add_column(heading, justify="right")
    for name in contestants:
        table.add_column(name, justify="right")
    for size, direction in _find_cells(records, load):
        cell = {"load": load, "size": size, "direction": direction}
        jobs = [record["job"] for record in select(records, "job", **cell)]
        yardstick = _describe_rate(records, FIO, cell)
        row = [format_bytes(size), direction, yardstick, jobs[0] if jobs else "-"]
        for name in contestants:
            ratios = find_ratios(records, name, **cell)
            row.append(f"{_describe_rate(records, name, cell)} {_describe_spread(ratios)}")
        table.add_row(*row)
    return table


def build_cpu_table(records: Records) -> Table:
    """Processor seconds for each GiB, measured alone."""
    contestants = [FIO, *_find_contestants(records)]
    table = Table(title="core-seconds per GiB: median (least to most)")
    for heading in ("size", "", *contestants):
        table.add_column(heading, justify="right")
    for size, direction in _find_cells(records, "alone"):
        cell = {"load": "alone", "size": size, "direction": direction}
        spreads = [
            _describe_spread(find_cpu_seconds(records, name, **cell)) for name in contestants
        ]
        table.add_row(format_bytes(size), direction, *spreads)
    return table


def build_endurance_table(records: Records) -> Table:
    """Bytes of values, as moved, and as counted by others, in each round."""
    devices = select(records, "device")
    place = ", ".join(record.get("name") or record["unknown"] for record in devices)
    table = Table(title=f"bytes written, and what was counted meanwhile by {place}")
    for heading in ("engine", "values", "moved", "process", "device", "pauses", "device is off"):
        table.add_column(heading, justify="right")
    for record in select(records, "endurance"):
        process = record["process_bytes"]
        table.add_row(
            record["engine"],
            format_bytes(record["value_bytes"]),
            format_bytes(record["moved_bytes"]),
            "-" if process is None else format_bytes(process),
            format_bytes(record["device_bytes"]),
            " ".join(format_bytes(nbytes) for nbytes in record["pause_bytes"]),
            f"{find_device_difference(record):+.3%}" + ("" if is_quiet(record) else " (not quiet)"),
        )
    return table


def find_misses(records: Records) -> list[str]:
    """Every limit that was missed, in words; what was not measured is not missed."""
    return [*_find_slow(records), *_find_dear(records), *_find_wear(records)]


def _find_slow(records: Records) -> Iterator[str]:
    for load in ("alone", "busy"):
        for size, direction in _find_cells(records, load):
            if size < SPEED_LEAST_BYTES:
                continue
            for layer in ("engine", "store"):
                medians = {
                    name: statistics.median(ratios)
                    for name in _find_contestants(records)
                    if name.endswith(layer)
                    and (
                        ratios := find_ratios(
                            records, name, load=load, size=size, direction=direction
                        )
                    )
                }
                if medians and max(medians.values()) < SPEED_RATIO_LIMIT:
                    best = max(medians, key=medians.__getitem__)
                    yield (
                        f"{direction} of {format_bytes(size)}, {load}: best {layer} is {best}, "
                        f"{medians[best]:.3f} of fio (>= {SPEED_RATIO_LIMIT})"
                    )


def _find_dear(records: Records) -> Iterator[str]:
    for size, direction in _find_cells(records, "alone"):
        if size < SPEED_LEAST_BYTES:
            continue
        for name in _find_contestants(records):
            cell = {"load": "alone", "size": size, "direction": direction}
            seconds = find_cpu_seconds(records, name, **cell)
            median = statistics.median(seconds or [0.0])
            if median > CPU_SECONDS_PER_GIB_LIMIT:
                yield (
                    f"{direction} of {format_bytes(size)}, {name}: {median:.3f} "
                    f"core-seconds per GiB (<= {CPU_SECONDS_PER_GIB_LIMIT})"
                )


def _find_wear(records: Records) -> Iterator[str]:
    rounds = select(records, "endurance")
    for name in dict.fromkeys(record["engine"] for record in rounds):
        offs = [
            find_device_difference(record)
            for record in rounds
            if record["engine"] == name and is_quiet(record)
        ]
        if not offs:
            yield f"endurance, {name}: others wrote to the device around every round"
        elif abs(statistics.median(offs)) > WEAR_LIMIT:
            yield (
                f"endurance, {name}: the device's counter is off by {statistics.median(offs):.1%} "
                f"in {len(offs)} quiet rounds (within {WEAR_LIMIT:.0%})"
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


def _find_cells(records: Records, load: str) -> list[tuple[int, str]]:
    samples = select(records, "sample", load=load)
    return list(dict.fromkeys((sample["size"], sample["direction"]) for sample in samples))


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
