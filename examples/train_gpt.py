"""Train a byte-level GPT with plain torch.compile and with fxoffload, and compare the two.

    python examples/train_gpt.py --text my_text.txt --steps 20

Both train in one process, step by step in turn, with the same seed and batches; and so does a third
model with fxoffload, at twice the batch in the memory that plain torch.compile takes. The first
steps are not measured: in them all compile, and fxoffload measures and plans. At the end it prints
a table, and saves a plot of the memory curve of one step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from gpt_run import LARGER, OURS, PLAIN, RunSettings, find_budget, load_text, train
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import fxoffload

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import KEEP_FREED_MEMORY, ChildFailed, Record, run_fresh
from benchmarks.measure import MemoryCurve
from fxoffload.cli.training import SETTLING_STEPS
from fxoffload.sizes import MIB

LABELS = {PLAIN: "plain", OURS: "fxoffload", LARGER: "fxoffload"}
COLORS = {PLAIN: "tab:gray", OURS: "tab:blue", LARGER: "tab:green"}
CAPTION = (
    "plain: torch.compile. Step: forward and backward, median. Ratio: fxoffload to plain at equal "
    "batches, the median of steps taken in turn, with their middle half. Bytes and waits: of a step"
)


@dataclass(frozen=True, slots=True)
class Comparison:
    """The results of the variants.

    batches: in sequences. steps: by variant, the records of all steps; the last `measured` of them
    count. curves: memory of one step. refused: the reason by variant, where no plan fits.
    """

    batches: dict[str, int]
    steps: dict[str, list[Record]]
    measured: int
    curves: dict[str, MemoryCurve]
    refused: dict[str, str]

    @property
    def variants(self) -> list[str]:
        """Those that were measured, plain first."""
        return list(self.curves)

    def seconds(self, variant: str) -> list[float]:
        """Of each measured step."""
        return [step["seconds"] for step in self.steps[variant][-self.measured :]]

    def rate(self, variant: str) -> float:
        """Sequences in a second."""
        return self.batches[variant] / statistics.median(self.seconds(variant))

    def per_step(self, variant: str, counter: str) -> float:
        """The mean of a counter of the statistics over the measured steps."""
        steps = self.steps[variant][-self.measured :]
        return statistics.fmean(step["moved"][counter] for step in steps)


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
    plot_curves(comparison, plot)
    console.print(build_table(comparison))
    for line in conclude(comparison):
        console.print(line, soft_wrap=True, highlight=False)
    console.print(f"memory curve of one step: {plot}", soft_wrap=True)


def build_parser() -> argparse.ArgumentParser:
    """Make the parser of the command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--text", help="file to train on; without it, the source of Python's standard library")
    add("--steps", type=int, default=6, help="measured steps, behind those that settle; at least 2")
    add("--layers", type=int, default=3)
    add("--width", type=int, default=256, help="a multiple of 64, the width of a head")
    add("--batch", type=int, default=8, help="sequences in a batch")
    add("--length", type=int, default=512, help="bytes of text in a sequence")
    add("--directory", help="where fxoffload spills to; default: see OffloadConfig")
    add(
        "--memory-budget",
        default="50%",
        help='a share of the peak of plain torch.compile, "8GiB", "min", or "none"',
    )
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
        budget = find_budget(parse_budget(arguments), 2**30)
        options: dict[str, Any] = {**find_options(arguments), "memory_budget": budget}
        fxoffload.compile(torch.nn.Identity(), **options)
    except OSError as error:
        return f"{error.filename}: {error.strerror}"
    except fxoffload.OffloadError as error:
        return str(error)
    if num_bytes <= arguments.length:
        source = arguments.text or "the standard library's source"
        return f"{source} has {num_bytes} bytes; --length {arguments.length} needs more than that"
    return None


def parse_budget(arguments: argparse.Namespace) -> str | None:
    """The option memory_budget, which a share of the peak of plain may stand for."""
    return None if arguments.memory_budget == "none" else arguments.memory_budget


def find_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of fxoffload among the arguments, beside the budget."""
    return {name: getattr(arguments, name) for name in ("directory", "min_bytes", "compiler")}


def compare(arguments: argparse.Namespace, console: Console) -> Comparison:
    """Train all variants in one process in turn."""
    budget = parse_budget(arguments)
    settings = RunSettings(
        text=arguments.text,
        layers=arguments.layers,
        width=arguments.width,
        batch=arguments.batch,
        length=arguments.length,
        settling_steps=SETTLING_STEPS,
        steps=arguments.steps,
        seed=arguments.seed,
        device=arguments.device,
        memory_budget=budget,
        threads=arguments.threads,
        options=find_options(arguments),
    )
    steps: dict[str, list[Record]] = {variant: [] for variant in settings.batches}
    refused: dict[str, str] = {}
    curves: dict[str, MemoryCurve] = {}
    columns = (BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    state = TextColumn("{task.fields[state]}")
    with Progress(TextColumn("{task.description}"), *columns, state, console=console) as progress:
        total = settings.settling_steps + settings.steps
        task = progress.add_task("steps in turn", total=total, state="compiling")
        for record in run_fresh(KEEP_FREED_MEMORY, train, settings):
            if "curves" in record:
                curves = {v: MemoryCurve(**curve) for v, curve in record["curves"].items()}
            elif "refused" in record:
                refused[record["refused"]] = record["reason"]
            else:
                for variant, step in record["variants"].items():
                    steps[variant].append(step)
                losses = " ".join(f"{step['loss']:.3f}" for step in record["variants"].values())
                progress.update(task, advance=1, state=f"loss {losses}")
    return Comparison(settings.batches, steps, settings.steps, curves, refused)


def build_table(found: Comparison) -> Table:
    """Make the table that compares the variants."""
    table = Table(title="One training step", caption=CAPTION)
    table.add_column("")
    for variant in found.variants:
        heading = f"{LABELS[variant]},\nbatch {found.batches[variant]}"
        table.add_column(heading, justify="right")
    table.add_column("ratio", justify="right")

    def add(name: str, numbers: Mapping[str, float], form: str, ratio: str = "") -> None:
        cells = (form.format(numbers[v]) if v in numbers else "" for v in found.variants)
        table.add_row(name, *cells, ratio)

    peaks = {v: curve.peak_bytes / MIB for v, curve in found.curves.items()}
    medians = {v: statistics.median(found.seconds(v)) for v in found.variants}
    both = OURS in peaks
    add("activation peak", peaks, "{:.1f} MiB", f"{peaks[OURS] / peaks[PLAIN]:.2f}" if both else "")
    add("step time", medians, "{:.2f} s", describe_ratio(found) if both else "")
    add("sequences/s", {v: found.rate(v) for v in found.variants}, "{:.2f}")
    moving = [variant for variant in found.variants if variant != PLAIN]
    for counter in ("written", "read", "forwarded"):
        name = f"{counter}_bytes"
        moved = {v: found.per_step(v, name) / MIB for v in moving}
        add(counter, moved, "{:.1f} MiB")
    waited = {v: found.per_step(v, "exposed_seconds") for v in moving}
    add("waited", waited, "{:.3f} s")
    for name, index in (("first loss", 0), ("last loss", -1)):
        add(name, {v: found.steps[v][index]["loss"] for v in found.variants}, "{:.6f}")
    return table


def describe_ratio(found: Comparison) -> str:
    """The step of fxoffload to that of plain, with the middle half of the pairs."""
    pairs = zip(found.seconds(PLAIN), found.seconds(OURS), strict=True)
    ratios = [ours / plain for plain, ours in pairs]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return f"{middle:.2f} ({low:.2f}-{high:.2f})"


def conclude(found: Comparison) -> list[str]:
    """What else fits into the memory that plain torch.compile takes, and where no plan fits."""
    lines = [f"fxoffload, batch {found.batches[v]}: {why}" for v, why in found.refused.items()]
    if LARGER in found.curves:
        plain, larger = (found.curves[v].peak_bytes / MIB for v in (PLAIN, LARGER))
        lines.append(
            f"In the {plain:.1f} MiB that plain torch.compile takes for a batch of "
            f"{found.batches[PLAIN]}, fxoffload trains a batch of {found.batches[LARGER]} "
            f"({larger:.1f} MiB): {found.rate(LARGER):.2f} sequences per second, "
            f"plain {found.rate(PLAIN):.2f}"
        )
    return lines


def plot_curves(found: Comparison, path: Path) -> None:
    """Plot the live memory of one step of each variant over time, and save it to `path`."""
    figure = Figure(figsize=(9, 5), layout="constrained")
    axes = figure.subplots()
    for variant, curve in found.curves.items():
        live = [nbytes / MIB for nbytes in curve.nbytes]
        label = f"{LABELS[variant]}, batch {found.batches[variant]}"
        color = COLORS[variant]
        axes.fill_between(curve.seconds, live, step="post", color=color, alpha=0.25)
        label = f"{label}: peak {curve.peak_bytes / MIB:.1f} MiB"
        axes.step(curve.seconds, live, where="post", color=color, label=label)
        if curve.backward_seconds is not None:
            axes.axvline(curve.backward_seconds, color=color, linestyle="--")
    axes.set_title("Memory of one training step; the backward starts at the dashed line")
    axes.set_xlabel("time since the start of the step (s)")
    axes.set_ylabel("live memory above the start of the step (MiB)")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    main()
