"""Drawings of the docs: what is in them, whatever version of matplotlib drew them."""

from __future__ import annotations

import io
import os
import re
from collections.abc import Mapping, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import matplotlib
import networkx as nx
from matplotlib.figure import Figure


def check_drawing(page: Path, drawn: str) -> None:
    """The file `page` has the elements of the SVG `drawn`; `make accept` writes it anew."""
    if os.environ.get("EXPECTTEST_ACCEPT") == "1":
        page.write_text(drawn)
    assert list_elements(page.read_text()) == list_elements(drawn)


def list_elements(svg: str) -> list[str]:
    """The names that the drawing gives to its elements, in order; matplotlib's have no dash."""
    return re.findall(r'<g id="([^"]+-[^"]+)">', svg)


def draw_layers(graph: nx.DiGraph[str]) -> str:
    """An SVG of an acyclic graph: what is named by others stands below them."""
    lines = split_edges(graph)
    levels = list(nx.topological_generations(join_lines(lines)))[::-1]
    places = place_nodes(join_lines(lines), levels)
    figure = Figure(figsize=(8.0, 0.75 * len(levels)), layout="constrained")
    axes: Any = figure.subplots()
    axes.axis("off")
    frame = {"boxstyle": "round", "facecolor": "white", "edgecolor": "tab:blue"}
    boxes: dict[str, Any] = {
        name: axes.text(
            *places[name], name, ha="center", va="center", bbox=frame, gid=f"room-{name}"
        ).get_bbox_patch()
        for name in graph
    }
    for (start, end), line in lines.items():
        for here, there in pairwise(line):
            style: dict[str, Any] = {"arrowstyle": "-", "color": "gray", "shrinkA": 0, "shrinkB": 0}
            style |= {"patchA": boxes.get(here), "patchB": boxes.get(there)}
            if there == end:
                style |= {"arrowstyle": "-|>", "gid": f"arrow-{start}-{end}"}
            axes.annotate("", places[there], places[here], arrowprops=style)
    across = [x for x, _ in places.values()]
    axes.set(xlim=(min(across) - 0.6, max(across) + 0.6), ylim=(-0.5, len(levels) - 0.5))
    file = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": "fxoffload"}):
        figure.savefig(file, format="svg", metadata={"Date": None})
    return file.getvalue()


def split_edges(graph: nx.DiGraph[str]) -> dict[tuple[str, str], list[str]]:
    """By edge, the points of its line: its ends, and one on each level that it crosses."""
    level = {n: i for i, names in enumerate(nx.topological_generations(graph)) for n in names}
    return {
        (start, end): [
            start,
            *(f"{start} to {end}: {index}" for index in range(level[start] + 1, level[end])),
            end,
        ]
        for start, end in sorted(graph.edges)
    }


def join_lines(lines: Mapping[tuple[str, str], Sequence[str]]) -> nx.DiGraph[str]:
    """The graph with all points of the lines."""
    joined: nx.DiGraph[str] = nx.DiGraph()
    for line in lines.values():
        nx.add_path(joined, line)
    return joined


def place_nodes(
    graph: nx.DiGraph[str], levels: Sequence[Sequence[str]]
) -> dict[str, tuple[float, float]]:
    """Each above the middle of what it names; levels: from the lowest to the highest."""
    places: dict[str, tuple[float, float]] = {}
    for height, level in enumerate(levels):
        below = {name: [places[each][0] for each in graph.successors(name)] for name in level}
        wanted = {name: sum(xs) / len(xs) if xs else 0.0 for name, xs in below.items()}
        middle = sum(wanted.values()) / len(wanted) - (len(level) - 1) / 2
        for index, name in enumerate(sorted(level, key=lambda name: (wanted[name], name))):
            places[name] = middle + index, float(height)
    return places
