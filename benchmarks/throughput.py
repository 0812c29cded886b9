"""Compares the throughput of ways to train one model under caps of its memory.

    python -m benchmarks.throughput --plot throughput.png

A cap is a share of what a step of plain Inductor takes at the batch of `--batch`, gradients
included, beside what stays: parameters and the states of an optimizer, whose update is part of a
step. Each way to train (see variants.py) is measured at batches from the largest down, until two of
them fit the tightest cap; fxoffload has each cap as its memory_budget. The best of a method under a
cap is its batch with the most samples per second among those that fit (see batch_search.py). All
run in one process, in turn, and ratios are those of one round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from benchmarks.batch_search import measure_methods
from benchmarks.fresh_process import Record
from benchmarks.model_arguments import LAYERS, ModelArguments, describe_sizes
from benchmarks.plots import draw_axes
from benchmarks.runner import Benchmark, Show, Table, describe_spread, find_quartiles, option
from benchmarks.trainer import Program
from benchmarks.variant_tables import Kind, Measured, parse_measured
from benchmarks.variants import PLAIN, Variant, collect_records
from fxoffload.cli.byte_models import check_shape
from fxoffload.sizes import MIB

AHEAD = 1.15  # Of the best peer, at one cap at least.
MARKERS: dict[Kind, str] = dict(zip(get_args(Kind), "oDs^vX*Pp", strict=True))


@dataclass(frozen=True, slots=True)
class ThroughputArguments(ModelArguments):
    """The command line."""

    layers: int = LAYERS(6)
    batch: int = option(4, "of plain, whose peak is the cap of 1")
    length: int = option(320)
    batches: Sequence[int] = option((1, 2, 4, 8), "to try of each method")
    caps: Sequence[float] = option((1.0, 0.7, 0.5, 0.35), "of plain's peak")
    recompute_budgets: Sequence[float] = option((0.2, 0.5), nargs="*")
    program: Program = option("blocks", choices=["blocks", "breaks", "whole"])
    rounds: int = option(3, "timed steps of each")
    plot: Path | None = option(None, "picture to write", type=Path)


def measure(arguments: ThroughputArguments, show: Show) -> Record:
    """Each method at the batches that may fit."""
    methods = [
        PLAIN,
        Variant("checkpoint"),
        *(Variant("recompute", share) for share in arguments.recompute_budgets),
        Variant("save_on_cpu"),
        Variant("hooks"),
        *(Variant("fxoffload", cap) for cap in arguments.caps),
    ]
    methods = [replace(method, program=arguments.program) for method in methods]
    sizes = list(arguments.batches), list(arguments.caps)
    workload = arguments.make_workload(arguments.layers)
    for batch in arguments.batches:
        check_shape(arguments.model, replace(workload.shape, batch=batch))
    found = collect_records(show, measure_methods, workload, methods, *sizes, arguments.rounds)
    return {"variants": found}


def find_best(found: Sequence[Measured], kind: Kind, cap: float) -> Measured | None:
    """The fastest per sample among those of a kind that fit the cap; None where none does."""
    timed = (item for item in found if item.kind == kind and item.seconds)
    fitting = (item for item in timed if item.least_cap is not None and item.least_cap <= cap)
    return min(fitting, key=lambda item: item.median_seconds / (item.batch or 1), default=None)


def find_rates(item: Measured) -> list[float]:
    """Its samples per second, round by round."""
    return [(item.batch or 1) / seconds for seconds in item.seconds]


def list_best(record: Record) -> Iterator[tuple[Kind, float, Measured | None]]:
    """Of each kind that was measured, under each cap, the best."""
    found = parse_measured(record)
    kinds: Sequence[Kind] = [kind for kind in get_args(Kind) if any(x.kind == kind for x in found)]
    for kind in kinds:
        for cap in record["caps"]:
            yield kind, cap, find_best(found, kind, cap)


def compare_best(record: Record) -> list[Record]:
    """A row for each cap: the best of fxoffload, the best peer, and the ratios of their rates.

    ratio: the median of the rounds; None where either does not fit.
    """
    best = list(list_best(record))
    rows: list[Record] = []
    for cap in record["caps"]:
        fitting = [item for _, of, item in best if of == cap and item is not None]
        own = next((item for item in fitting if item.kind == "fxoffload"), None)
        peers = [item for item in fitting if item.kind not in ("fxoffload", "beside")]
        peer = max(peers, key=lambda item: find_quartiles(find_rates(item))[1], default=None)
        row: Record = {"cap": cap, "best": own and own.label, "peer": peer and peer.label}
        ratios: list[float] = []
        if own is not None and peer is not None:
            rates = zip(find_rates(own), find_rates(peer), strict=True)
            ratios = [mine / theirs for mine, theirs in rates]
        rows.append({**row, "ratios": ratios, "ratio": find_middle(ratios)})
    return rows


def find_middle(values: Sequence[float]) -> float | None:
    """The median; None without values."""
    return find_quartiles(values)[1] if values else None


def judge_caps(rows: Sequence[Record]) -> str:
    """A sentence: at which caps fxoffload is AHEAD of the best peer, and at which it is below it.

    It is below where the ratio is so in more than three quarters of the rounds, or where only the
    peer fits.
    """
    ahead = [row for row in rows if row["ratio"] and row["ratio"] >= AHEAD]
    alone = [row for row in rows if row["best"] and not row["peer"]]
    below = [row for row in rows if row["peer"] and not row["best"]]
    below += [row for row in rows if row["ratios"] and find_quartiles(row["ratios"])[2] < 1.0]

    def name(found: Sequence[Record]) -> str:
        return ", ".join(f"{row['cap']:.0%}" for row in found) or "no cap"

    met = "met" if (ahead or alone) and not below else "missed"
    parts = f"{AHEAD}x the best peer at {name(ahead)}", f"alone at {name(alone)}"
    return f"{met}: {', '.join(parts)}, below it at {name(below)}"


def tabulate(record: Record) -> list[Table]:
    """A row for each method and cap, with its throughput and that over plain's at the widest."""
    plain, *_ = parse_measured(record)
    rows = [
        ["method", "cap", "cap MiB", "best", "peak MiB", "samples/s (range)", "/ plain (range)"]
    ]
    for kind, cap, best in list_best(record):
        row = [kind, f"{cap:.0%}", f"{cap * plain.need_bytes / MIB:.1f}"]
        if best is None:
            rows.append([*row, "none fits", "", "", ""])
            continue
        rates = find_rates(best)
        ratios = [own / its for own, its in zip(rates, find_rates(plain), strict=True)]
        peak = f"{best.peak_bytes / MIB:.1f}"
        rows.append([*row, best.label, peak, describe_spread(rates), describe_spread(ratios)])
    verdict = judge_caps(compare_best(record))
    return [Table(rows, f"{describe_sizes(record)}, program {record['program']}", verdict)]


def draw(record: Record, path: Path) -> None:
    """The best throughput of each method, with its range, against the cap."""
    plain, *_ = parse_measured(record)
    sizes = f"{record['layers']} layers x {record['hidden']}, {record['length']} tokens"
    title = f"{record['model']}, {sizes}: best throughput under a memory cap"
    lines: dict[Kind, list[tuple[float, float, float, float]]] = {}
    for kind, cap, best in list_best(record):
        if best is not None:
            rates = find_rates(best)
            _, middle, _ = find_quartiles(rates)
            point = cap * plain.need_bytes / MIB, middle, middle - min(rates), max(rates) - middle
            lines.setdefault(kind, []).append(point)
    with draw_axes(path, title, "cap of what a step takes, MiB", "samples per second") as axes:
        for kind, points in lines.items():
            caps, middles, below, above = zip(*points, strict=True)
            width = 2.5 if kind == "fxoffload" else 1
            spread = {"yerr": [below, above], "capsize": 3, "elinewidth": 1}
            look = {"marker": MARKERS[kind], "linewidth": width, "label": kind}
            axes.errorbar(caps, middles, **spread, **look)


main = Benchmark("throughput", __doc__, ThroughputArguments, measure, tabulate, draw=draw)

if __name__ == "__main__":
    main()
