"""What the pictures of benchmarks have in common."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from matplotlib.figure import Figure


def make_axes(title: str, horizontal: str, vertical: str) -> tuple[Figure, Any]:
    """A figure with one pair of axes, which start at 0."""
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes: Any = figure.subplots()
    axes.set(title=title, xlabel=horizontal, ylabel=vertical)
    axes.grid(alpha=0.3)
    return figure, axes


def save_figure(figure: Figure, axes: Any, path: Path) -> None:
    """Write the picture; both axes begin at 0, so that distances are what they seem."""
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.legend()
    figure.savefig(path, dpi=150)
