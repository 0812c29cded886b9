"""Compares the throughput of ways to train one model under caps of its memory.

    python -m benchmarks.throughput --plot throughput.png

A cap is a share of the activation peak, gradients included, that plain Inductor has at the batch of
`--batch`. Each way to train (see variants.py) is measured at batches from the largest down, until
two of them fit the tightest cap; fxoffload has each cap as its memory_budget. The best of a method
under a cap is its batch with the most samples per second among those whose measured peak fits. All
run in one process, in turn, and ratios are those of one round.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import get_args

import torch

from benchmarks.fresh_process import Record
from benchmarks.measure import MIB
from benchmarks.model_arguments import LAYERS, ModelArguments, describe_sizes
from benchmarks.plots import draw_axes
from benchmarks.programs import SETTLING_STEPS
from benchmarks.runner import Benchmark, Show, Table, describe_spread, find_quartiles, option
from benchmarks.trainer import Program, Trainer, Workload
from benchmarks.variant_tables import Kind, Measured, parse_measured
from benchmarks.variants import (
    PLAIN,
    Variant,
    check_loss,
    collect_records,
    measure_variant,
    time_rounds,
)
from fxoffload.cli.byte_models import check_shape

FITS = 1.01  # Of a cap: peaks differ by Python's own objects.
FITTING_BATCHES = 2  # Under the tightest cap of a method.
MARKERS: dict[Kind, str] = dict(zip(get_args(Kind), "oDs^vX*", strict=True))


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
        *(Variant("fxoffload", cap, learning_steps=SETTLING_STEPS) for cap in arguments.caps),
    ]
    methods = [replace(method, program=arguments.program) for method in methods]
    sizes = list(arguments.batches), list(arguments.caps)
    workload = arguments.make_workload(arguments.layers)
    for batch in arguments.batches:
        check_shape(arguments.model, replace(workload.shape, batch=batch))
    found = collect_records(show, measure_methods, workload, methods, *sizes, arguments.rounds)
    return {"variants": found}


def measure_methods(
    workload: Workload, methods: list[Variant], batches: list[int], caps: list[float], rounds: int
) -> Iterator[Record]:
    """In a fresh process: each method at batches that may fit, then the rounds of those that do.

    The first method is plain, whose first batch is that of `workload`.
    """
    compiled = len(methods) * len(batches)
    torch.compiler.config.recompile_limit = 16 * compiled * workload.shape.layers
    base, plain_bytes = workload.shape.batch, None
    losses: dict[int, float] = {}
    trainers: dict[str, Trainer] = {}
    for method in methods:
        # A larger batch of plain fits no cap.
        tried = sorted({base, *(each for each in batches if each < base)}, reverse=True)
        if method.kind != "plain":
            tried = sorted(batches, reverse=True)
        fitting = 0
        for batch in tried:
            sized = replace(workload, shape=replace(workload.shape, batch=batch))
            measured, trainer = measure_variant(sized, method, plain_bytes)
            measured.label, measured.batch = f"{method.label}, batch {batch}", batch
            plain_bytes = plain_bytes or measured.peak_bytes
            own = method.share if method.kind == "fxoffload" else None
            widest, tightest = (own, own) if isinstance(own, float) else (max(caps), min(caps))
            if trainer is not None:
                check_loss(measured, losses.setdefault(batch, measured.loss))
                if fits(measured, widest * plain_bytes):
                    trainers[measured.label] = trainer
            yield asdict(measured)
            fitting += fits(measured, tightest * plain_bytes)
            if fitting == FITTING_BATCHES:
                break
    yield from time_rounds(trainers, rounds)


def fits(measured: Measured, cap_bytes: float) -> bool:
    """Whether its step was measured, and stays within the cap."""
    return measured.refused is None and measured.peak_bytes <= FITS * cap_bytes


def find_best(found: Sequence[Measured], kind: Kind, cap_bytes: float) -> Measured | None:
    """The fastest per sample among those of a kind that fit the cap; None where none does."""
    timed = [item for item in found if item.kind == kind and item.seconds]
    fitting = [item for item in timed if fits(item, cap_bytes)]
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
            yield kind, cap, find_best(found, kind, cap * found[0].peak_bytes)


def tabulate(record: Record) -> list[Table]:
    """A row for each method and cap, with its throughput and that over plain's at the widest."""
    plain, *_ = parse_measured(record)
    rows = [
        ["method", "cap", "cap MiB", "best", "peak MiB", "samples/s (range)", "/ plain (range)"]
    ]
    for kind, cap, best in list_best(record):
        row = [kind, f"{cap:.0%}", f"{cap * plain.peak_bytes / MIB:.1f}"]
        if best is None:
            rows.append([*row, "none fits", "", "", ""])
            continue
        rates = find_rates(best)
        ratios = [own / its for own, its in zip(rates, find_rates(plain), strict=True)]
        peak = f"{best.peak_bytes / MIB:.1f}"
        rows.append([*row, best.label, peak, describe_spread(rates), describe_spread(ratios)])
    return [Table(rows, f"{describe_sizes(record)}, program {record['program']}")]


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
            point = cap * plain.peak_bytes / MIB, middle, middle - min(rates), max(rates) - middle
            lines.setdefault(kind, []).append(point)
    with draw_axes(path, title, "cap of the activation peak, MiB", "samples per second") as axes:
        for kind, points in lines.items():
            caps, middles, below, above = zip(*points, strict=True)
            width = 2.5 if kind == "fxoffload" else 1
            spread = {"yerr": [below, above], "capsize": 3, "elinewidth": 1}
            look = {"marker": MARKERS[kind], "linewidth": width, "label": kind}
            axes.errorbar(caps, middles, **spread, **look)


main = Benchmark("throughput", __doc__, ThroughputArguments, measure, tabulate, draw=draw)

if __name__ == "__main__":
    main()
