"""Draws the pictures of the benchmarks."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


@contextmanager
def draw_axes(path: Path, title: str, horizontal: str, vertical: str) -> Generator[Any]:
    """One pair of axes to draw on; both begin at 0, so that distances are proportional."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.subplots()
    axes.set(title=title, xlabel=horizontal, ylabel=vertical)
    axes.grid(alpha=0.3)
    yield axes
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)
