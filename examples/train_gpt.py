"""Train a byte-level GPT with plain torch.compile and with fxoffload, and compare the two.

    python examples/train_gpt.py --text my_text.txt --steps 20

Each run has a process of its own, with the same seed and batches. At the end: a table, and a plot
of the memory curve of one step.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from gpt_run import RunSettings, Variant, load_text
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

import fxoffload

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import RETURN_FREED_MEMORY, ChildFailed, run_fresh
from benchmarks.measure import MIB, MemoryCurve

LABELS: dict[Variant, str] = {"plain": "plain torch.compile", "fxoffload": "fxoffload"}
CAPTION = (
    "step: forward and backward, median. RSS includes Python, torch and the compiler; "
    f"freed memory returned: with {' '.join(map('='.join, RETURN_FREED_MEMORY.items()))}"
)


@dataclass(frozen=True, slots=True)
class RunResult:
    """What one run came to; statistics are those of fxoffload over all steps.

    rss_bytes: the peak, with malloc as it is; returning_rss_bytes: that of a short second run in
    which freed memory goes back to the system.
    """

    losses: list[float]
    step_seconds: list[float]
    statistics: dict[str, Any]
    rss_bytes: int
    curve: MemoryCurve
    returning_rss_bytes: int = 0

    @property
    def median_seconds(self) -> float:
        """Of the steps after the first, which compiles."""
        return statistics.median(self.step_seconds[1:])

    def bytes_per_step(self, counter: str) -> float:
        """The mean of a counter of bytes over the steps."""
        return self.statistics[counter] / len(self.losses)


def main(argv: Sequence[str] | None = None) -> None:
    """Run both variants, print the table, save the plot."""
    console = Console()
    parser = build_parser()
    arguments = parser.parse_args(argv)
    problem = find_problem(arguments)
    if problem is not None:
        parser.error(problem)
    try:
        results = run_both(arguments, console)
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
    plot_curves({variant: result.curve for variant, result in results.items()}, plot)
    console.print(build_table(results["plain"], results["fxoffload"]))
    console.print(f"memory curve of one step: {plot}", soft_wrap=True)


def build_parser() -> argparse.ArgumentParser:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=(__doc__ or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    add = parser.add_argument
    add("--text", help="file to train on; without it, the source of Python's standard library")
    add("--steps", type=int, default=10, help="training steps of each variant, at least 2")
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
    """What is wrong with the arguments, in words; also makes the output folder."""
    for name, least in {"steps": 2, "layers": 1, "width": 1, "batch": 1, "length": 1}.items():
        if getattr(arguments, name) < least:
            return f"--{name} must be at least {least}"
    if arguments.width % 64:
        return f"--width {arguments.width} is not a multiple of 64"
    try:
        num_bytes = len(load_text(arguments.text))
        arguments.output.mkdir(parents=True, exist_ok=True)
        # Opens the store, so that a directory that cannot work shows before anything is trained.
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
    """The options of fxoffload."""
    names = ("directory", "memory_budget", "min_bytes", "compiler")
    return {name: getattr(arguments, name) for name in names}


def run_both(arguments: argparse.Namespace, console: Console) -> dict[Variant, RunResult]:
    """Train each variant in a fresh process, one after the other."""
    results: dict[Variant, RunResult] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[state]}"),
    )
    with Progress(*columns, console=console) as progress:
        for variant, label in LABELS.items():
            settings = RunSettings(
                variant=variant,
                text=arguments.text,
                layers=arguments.layers,
                width=arguments.width,
                batch=arguments.batch,
                length=arguments.length,
                steps=arguments.steps,
                seed=arguments.seed,
                device=arguments.device,
                threads=arguments.threads,
                options=find_options(arguments),
            )
            timed = run_one(settings, progress, label)
            short = replace(settings, steps=2)
            resident = run_one(short, progress, f"{label}, RSS", environment=RETURN_FREED_MEMORY)
            results[variant] = replace(timed, returning_rss_bytes=resident.rss_bytes)
    return results


def run_one(
    settings: RunSettings,
    progress: Progress,
    label: str,
    *,
    environment: Mapping[str, str] | None = None,
) -> RunResult:
    """Train one variant in a fresh process, and show how far it is."""
    task = progress.add_task(f"{label:24}", total=settings.steps, state="compiling")
    losses: list[float] = []
    step_seconds: list[float] = []
    last: dict[str, Any] = {}
    script = Path(__file__).with_name("gpt_run.py")
    for record in run_fresh(script, asdict(settings), environment=environment):
        if "step" not in record:
            last = record
            continue
        losses.append(record["loss"])
        step_seconds.append(record["seconds"])
        progress.update(task, advance=1, state=f"loss {record['loss']:.3f}")
    last["curve"] = MemoryCurve(**last["curve"])
    return RunResult(losses, step_seconds, **last)


def build_table(plain: RunResult, offloaded: RunResult) -> Table:
    """Both runs side by side."""
    table = Table(title="One training step", caption=CAPTION)
    table.add_column("")
    for heading in (*LABELS.values(), "ratio"):
        table.add_column(heading, justify="right")

    def add(name: str, left: float, right: float, unit: str, digits: int = 1) -> None:
        values = (f"{value:.{digits}f} {unit}" for value in (left, right))
        table.add_row(name, *values, f"{right / left:.2f}")

    peaks = (plain.curve.peak_bytes / MIB, offloaded.curve.peak_bytes / MIB)
    add("activation peak", *peaks, "MiB")
    add("peak RSS", plain.rss_bytes / MIB, offloaded.rss_bytes / MIB, "MiB")
    resident = (plain.returning_rss_bytes / MIB, offloaded.returning_rss_bytes / MIB)
    add("peak RSS, freed memory returned", *resident, "MiB")
    add("step time", plain.median_seconds, offloaded.median_seconds, "s", 2)
    for counter in ("written_bytes", "read_bytes", "forwarded_bytes"):
        moved = f"{offloaded.bytes_per_step(counter) / MIB:.1f} MiB"
        table.add_row(counter.replace("_bytes", " in a step"), "", moved, "")
    exposed = offloaded.statistics["exposed_seconds"] / len(offloaded.losses)
    table.add_row("waited for the disk in a step", "", f"{exposed:.3f} s", "")
    for name, index in (("first loss", 0), ("last loss", -1)):
        table.add_row(name, f"{plain.losses[index]:.6f}", f"{offloaded.losses[index]:.6f}", "")
    return table


def plot_curves(curves: dict[Variant, MemoryCurve], path: Path) -> None:
    """Live memory over time of one step of each variant, in one picture."""
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
