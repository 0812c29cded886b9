"""Reads a record of gpu_suite.py: verdicts on its points, and tables.

    python -m benchmarks.gpu_report build/gpu.json

`--json` prints the verdicts as JSON lines, as the suite adds them to its record. They are computed
from what was measured, and nothing else: at every peak the fastest peer with the same or a lower
one (as rok.py compares points), measured against predicted, and the throughput under caps.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from textwrap import shorten
from typing import Any

from benchmarks import rok, throughput
from benchmarks.fresh_process import Record
from benchmarks.gpu_models import SHAPES
from benchmarks.runner import (
    RESULTS,
    Column,
    Table,
    describe_spread,
    format_number,
    make_table,
)
from benchmarks.slow_drive import find_floor_seconds
from benchmarks.variant_tables import Measured
from fxoffload.sizes import MIB

# What is asked of a GPT without a budget: the peak and the step, of plain's.
FREE_PEAK, FREE_STEP = 0.64, 1.02
PEAK_TRUTH, STEP_TRUTH = 0.02, 0.05
FLOOR_TRUTH = 0.05
PREDICTED = RESULTS / "gpu_predicted.json"


def collect(section: Mapping[str, Any]) -> list[Measured]:
    """What was measured of the variants of a section, with their seconds in the rounds."""
    found: dict[str, Measured] = {}
    for record in section.get("records", ()):
        if "round" in record:
            for label, seconds in record["seconds"].items():
                found[label].seconds.append(seconds)
        elif "label" in record:
            found[record["label"]] = Measured(**record)
    return list(found.values())


def judge(record: Record) -> Iterator[Record]:
    """The verdicts: one for each point of fxoffload, then those of caps and of the drive."""
    sections = record["sections"]
    for model in SHAPES:
        found = collect(sections.get(model, {}))
        yield from judge_points(model, found)
    if (found := collect(sections.get("throughput", {}))) and found[0].need_bytes:
        (caps,) = (each["caps"] for each in sections["throughput"]["records"] if "caps" in each)
        rows = throughput.compare_best({"variants": [asdict(x) for x in found], "caps": caps})
        yield {"section": "throughput", "caps": rows, "verdict": throughput.judge_caps(rows)}
    if found := collect(sections.get("nvme", {})):
        speeds = [e for e in sections["nvme"]["records"] if "bytes_per_second" in e]
        yield from judge_drive(found, speeds)


def judge_points(section: str, found: Sequence[Measured]) -> Iterator[Record]:
    """A verdict for each point of fxoffload that was timed.

    peak, step: of plain's. rival: the fastest peer with the same or a lower peak, and the verdict
    on it: "faster", "equal" (within the noise of plain against itself) or "slower"; "alone" where
    there is none. peak_error, step_error: measured over predicted, less 1.
    """
    timed = [item for item in found if item.seconds]
    if not timed or timed[0].kind != "plain":
        return
    plain = timed[0]
    has_noise = any(item.label == rok.PLAIN_AGAIN.label for item in timed)
    noise = rok.find_noise(timed) if has_noise else 1.0
    for item in timed:
        if item.kind != "fxoffload":
            continue
        rival = rok.find_best_rival(item, timed)
        row: Record = {
            "section": section,
            "label": item.label,
            "plain_seconds": plain.median_seconds,
            "plain_peak_bytes": plain.peak_bytes,
            "peak": item.peak_bytes / plain.peak_bytes,
            "step": item.median_seconds / plain.median_seconds,
            "noise": noise,
            "rival": rival and rival.label,
            "rival_step": rival and rival.median_seconds / plain.median_seconds,
            "verdict": rok.judge(item, rival, noise) if rival else "alone",
            **find_errors(item),
        }
        if section == "gpt" and item.label == "fxoffload":
            row["as_asked"] = row["peak"] <= FREE_PEAK and row["step"] <= FREE_STEP
        yield row


def find_errors(item: Measured) -> Record:
    """Peak and step, measured over predicted, less 1, and whether both are within what is asked."""
    if not item.predicted_peak_bytes or not item.predicted_seconds:
        return {"peak_error": None, "step_error": None, "true": None}
    peak_error = item.peak_bytes / item.predicted_peak_bytes - 1
    step_error = item.median_seconds / item.predicted_seconds - 1
    true = abs(peak_error) <= PEAK_TRUTH and abs(step_error) <= STEP_TRUTH
    return {"peak_error": peak_error, "step_error": step_error, "true": true}


def judge_drive(found: Sequence[Measured], speeds: Sequence[Record]) -> Iterator[Record]:
    """Of what moves to a drive: whether it keeps its budget, and its step over the least one.

    That is what compute and the drive allow, at the fastest speed that an engine had by itself.
    """
    timed = [item for item in found if item.seconds]
    if not speeds or not timed or timed[0].kind != "plain":
        return
    speed = max(min(each["bytes_per_second"].values()) for each in speeds)
    for item in timed[1:]:
        ratio = item.median_seconds / find_floor_seconds(item, timed[0], speed)
        kept = item.budget_bytes is None or item.peak_bytes <= item.budget_bytes
        row = {
            "section": "nvme",
            "label": item.label,
            "budget_kept": kept,
            "step_over_least": ratio,
        }
        yield {**row, "as_asked": kept and ratio <= 1 + FLOOR_TRUTH}


def tabulate(record: Record) -> Iterator[Table]:
    """Each section: all that was measured beside plain, and what was not, with the reason."""
    place = f"{record['device']}, driver {record.get('driver', 'unknown')}, torch {record['torch']}"
    for name, section in record["sections"].items():
        if section["status"] == "skipped":
            yield Table([[name, section["why"]]])
        if (found := collect(section)) and name != "throughput":
            yield Table(list_rows(found), f"{name}: {place}")
    verdicts = list(judge(record))
    if points := [each for each in verdicts if "rival" in each]:
        yield make_table(points, [_make_column(key) for key in points[0]], "verdicts")
    for each in verdicts:
        if "rival" not in each:
            yield Table([list(each), [show(value) for value in each.values()]])
    if PREDICTED.is_file():
        yield compare_predictions(json.loads(PREDICTED.read_text()), record)


def _make_column(key: str) -> Column[Record]:
    return key, lambda row: show(row.get(key))


def list_rows(found: Sequence[Measured]) -> list[list[str]]:
    """A row for each variant, beside the first one, which is plain."""
    plain = found[0]
    rows = [
        ["variant", "peak MiB", "of plain", "step s (range)", "step / plain (range)", "moved MiB"]
    ]
    for item in found:
        if item.refused is not None or not item.seconds:
            why = shorten(item.refused or "not timed", 80)
            rows.append([f"{item.label}: {why}", *[""] * 5])
            continue
        ratios = item.find_ratios(plain)
        peaks = f"{item.peak_bytes / MIB:.0f}", format_number(item.peak_bytes / plain.peak_bytes)
        steps = describe_spread(item.seconds), describe_spread(ratios)
        rows.append([item.label, *peaks, *steps, f"{item.offloaded_bytes / MIB:.0f}"])
    return rows


def compare_predictions(predicted: Record, record: Record) -> Table:
    """A row for each prediction: peak and step of plain's, predicted and measured.

    predicted: of gpu_predictions.py, made before anything ran. Ratios are of plain's own numbers on
    each side, so that they do not depend on the speeds that are assumed for the card.
    """
    rows = [["model", "variant", "peak, predicted", "measured", "step, predicted", "measured"]]
    for row in predicted["rows"]:
        found = {x.label: x for x in collect(record["sections"].get(row["model"], {}))}
        own, plain = found.get(row["label"]), found.get("plain")
        measured = ["", ""]
        if own is not None and plain is not None and own.seconds and plain.seconds:
            measured[0] = format_number(own.peak_bytes / plain.peak_bytes)
            measured[1] = format_number(own.median_seconds / plain.median_seconds)
        peak, step = format_number(row["peak"]), format_number(row["step"])
        rows.append([row["model"], row["label"], peak, measured[0], step, measured[1]])
    return Table(rows, "predicted by simulation, and measured")


def show(value: object) -> str:
    """A cell."""
    return format_number(value) if isinstance(value, float) else "" if value is None else str(value)


def main(argv: Sequence[str] | None = None) -> None:
    """Print verdicts or tables of a file."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--json", action="store_true", help="verdicts only, as JSON lines")
    arguments = parser.parse_args(argv)
    record = json.loads(arguments.file.read_text())
    if arguments.json:
        verdicts = list(judge(record))
        for verdict in verdicts or [{"section": "none", "verdict": "nothing was measured"}]:
            print(json.dumps(verdict), flush=True)
        return
    for table in tabulate(record):
        table.print()


if __name__ == "__main__":
    main()
