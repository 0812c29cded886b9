"""Train a byte-level GPT with plain torch.compile and with fxoffload, and compare the two.

    python examples/train_gpt.py --text my_text.txt --steps 20

Both train in one process, step by step in turn, with the same seed and batches. The first steps are
not measured: in them both compile, and fxoffload measures and plans once more. At the end it prints
a table, and saves a plot of the memory curve of one step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from gpt_run import RunSettings, Variant, load_text, train
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import fxoffload

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import (
    KEEP_FREED_MEMORY,
    RETURN_FREED_MEMORY,
    ChildFailed,
    run_fresh,
)
from benchmarks.measure import MemoryCurve
from fxoffload.cli.training import SETTLING_STEPS
from fxoffload.sizes import MIB

LABELS: dict[Variant, str] = {"plain": "plain torch.compile", "fxoffload": "fxoffload"}
RSS_STEPS = 2
CAPTION = (
    "step: forward and backward, median; the ratio is the median of the steps taken in turn, with "
    f"their middle half, after {SETTLING_STEPS} steps that settle. RSS: of a process of its own, "
    "with Python, torch and the compiler"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of the variants.

    losses: of all steps. step_seconds: of the measured steps. statistics: of fxoffload over the
    measured steps. curves: memory of one step. rss_bytes: the peak of each variant, in a separate
    process.
    """

    losses: dict[Variant, list[float]]
    step_seconds: dict[Variant, list[float]]
    statistics: dict[str, Any]
    curves: dict[Variant, MemoryCurve]
    rss_bytes: dict[Variant, int] = field(default_factory=dict[Variant, int])

    @property
    def ratios(self) -> list[float]:
        """Seconds of fxoffload over those of plain, for each measured step."""
        pairs = zip(self.step_seconds["plain"], self.step_seconds["fxoffload"], strict=True)
        return [ours / plain for plain, ours in pairs]

    def per_step(self, counter: str) -> float:
        """The mean of a counter of the statistics over the measured steps."""
        return self.statistics[counter] / len(self.step_seconds["fxoffload"])


def main(argv: Sequence[str] | None = None) -> None:
    """Run both variants, print the table, save the plot."""
    console = Console()
    parser = build_parser()
    arguments = parser.parse_args(argv)
    problem = find_problem(arguments)
    if problem is not None:
        parser.error(problem)
    try:
        comparison = compare(arguments, console)
    except ChildFailed as failure:
        console.print(
            f"training failed: {failure}",
            style="red",
            markup=False,
            soft_wrap=True,
            highlight=False,
        )
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    plot = arguments.output / "memory_curve.png"
    plot_curves(comparison.curves, plot)
    console.print(build_table(comparison))
    console.print(f"memory curve of one step: {plot}", soft_wrap=True)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--text", help="file to train on; without it, the source of Python's standard library")
    add(
        "--steps", type=int, default=10, help="measured steps, behind those that settle; at least 2"
    )
    add("--layers", type=int, default=6)
    add("--width", type=int, default=256, help="a multiple of 64, the width of a head")
    add("--batch", type=int, default=8, help="sequences in a batch")
    add("--length", type=int, default=512, help="bytes of text in a sequence")
    add("--directory", help="where fxoffload spills to; default: see OffloadConfig")
    add("--memory-budget", help='"8GiB", "min", or nothing: what hides behind compute')
    add("--min-bytes", default="1MiB", help="smaller values stay in memory")
    add("--compiler", choices=["inductor", "eager"], default="inductor")
    add("--output", type=Path, default=Path("demo_output"), help="folder of the plot")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, help="threads of torch; default: torch's choice")
    add("--seed", type=int, default=0)
    return parser


def find_problem(arguments: argparse.Namespace) -> str | None:
    """Check the arguments and return the error message, if any; make the output folder."""
    for name, least in {"steps": 2, "layers": 1, "width": 1, "batch": 1, "length": 1}.items():
        if getattr(arguments, name) < least:
            return f"--{name} must be at least {least}"
    if arguments.width % 64:
        return f"--width {arguments.width} is not a multiple of 64"
    try:
        num_bytes = len(load_text(arguments.text))
        arguments.output.mkdir(parents=True, exist_ok=True)
        # This opens the store, and so reports an unusable directory before anything is trained.
        fxoffload.compile(torch.nn.Identity(), **find_options(arguments))
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except fxoffload.OffloadError as error:
        return str(error)
    if num_bytes <= arguments.length:
        source = arguments.text or "the standard library's source"
        return f"{source} has {num_bytes} bytes; --length {arguments.length} needs more than that"
    return None


def find_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of fxoffload among the arguments."""
    names = ("directory", "memory_budget", "min_bytes", "compiler")
    return {name: getattr(arguments, name) for name in names}


def compare(arguments: argparse.Namespace, console: Console) -> Comparison:
    """Train both variants in one process in turn, then each of them briefly in its own process."""
    settings = RunSettings(
        variants=tuple(LABELS),
        text=arguments.text,
        layers=arguments.layers,
        width=arguments.width,
        batch=arguments.batch,
        length=arguments.length,
        settling_steps=SETTLING_STEPS,
        steps=arguments.steps,
        seed=arguments.seed,
        device=arguments.device,
        threads=arguments.threads,
        options=find_options(arguments),
    )
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as progress:
        records = run(settings, progress, "both in turn", environment=KEEP_FREED_MEMORY)
        *steps, last = records
        comparison = Comparison(
            losses={v: [record["losses"][v] for record in steps] for v in LABELS},
            step_seconds={
                v: [record["seconds"][v] for record in steps if record["step"] >= 0] for v in LABELS
            },
            statistics=last["statistics"],
            curves={v: MemoryCurve(**last["curves"][v]) for v in LABELS},
        )
        for variant, label in LABELS.items():
            short = replace(settings, variants=(variant,), settling_steps=0, steps=RSS_STEPS)
            records = run(short, progress, f"RSS of {label}", environment=RETURN_FREED_MEMORY)
            comparison.rss_bytes[variant] = records[-1]["rss_bytes"]
    return comparison


def run(
    settings: RunSettings, progress: Progress, label: str, *, environment: Mapping[str, str]
) -> list[dict[str, Any]]:
    """Run a new process, show its progress, and return its records."""
    total = settings.settling_steps + settings.steps
    task = progress.add_task(f"{label:26}", total=total, state="compiling")
    records: list[dict[str, Any]] = []
    for record in run_fresh(environment, train, settings):
        records.append(record)
        if "step" in record:
            losses = " ".join(f"{loss:.3f}" for loss in record["losses"].values())
            progress.update(task, advance=1, state=f"loss {losses}")
    return records


def build_table(found: Comparison) -> Table:
    """Make the table that compares both variants."""
    table = Table(title="One training step", caption=CAPTION)
    table.add_column("")
    for heading in (*LABELS.values(), "ratio"):
        table.add_column(heading, justify="right")

    def add(name: str, numbers: Mapping[Variant, float], unit: str, ratio: str = "") -> None:
        plain, ours = numbers["plain"], numbers["fxoffload"]
        digits = 2 if unit == "s" else 1
        values = (f"{number:.{digits}f} {unit}" for number in (plain, ours))
        table.add_row(name, *values, ratio or f"{ours / plain:.2f}")

    add("activation peak", {v: found.curves[v].peak_bytes / MIB for v in LABELS}, "MiB")
    add("peak RSS", {v: found.rss_bytes[v] / MIB for v in LABELS}, "MiB")
    low, middle, high = statistics.quantiles(found.ratios, n=4, method="inclusive")
    medians: dict[Variant, float] = {v: statistics.median(found.step_seconds[v]) for v in LABELS}
    add("step time", medians, "s", f"{middle:.2f} ({low:.2f} to {high:.2f})")
    for counter in ("written_bytes", "read_bytes", "forwarded_bytes"):
        moved = f"{found.per_step(counter) / MIB:.1f} MiB"
        table.add_row(counter.replace("_bytes", " in a step"), "", moved, "")
    exposed = found.per_step("exposed_seconds")
    table.add_row("waited for the disk in a step", "", f"{exposed:.3f} s", "")
    for name, index in (("first loss", 0), ("last loss", -1)):
        table.add_row(name, *(f"{found.losses[v][index]:.6f}" for v in LABELS), "")
    return table


def plot_curves(curves: dict[Variant, MemoryCurve], path: Path) -> None:
    """Plot the live memory of one step of each variant over time, and save it to `path`."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for color, (variant, curve) in zip(("tab:gray", "tab:blue"), curves.items(), strict=True):
        live = [nbytes / MIB for nbytes in curve.nbytes]
        label = f"{LABELS[variant]}: peak {curve.peak_bytes / MIB:.1f} MiB"
        axes.fill_between(curve.seconds, live, step="post", color=color, alpha=0.25)
        axes.step(curve.seconds, live, where="post", color=color, label=label)
        if curve.backward_seconds is not None:
            label = f"{LABELS[variant]}: backward starts"
            axes.axvline(curve.backward_seconds, color=color, linestyle="--", label=label)
    axes.set_title("Memory of one training step")
    axes.set_xlabel("time since the start of the step (s)")
    axes.set_ylabel("live memory above the start of the step (MiB)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
