"""Lifetimes: where the saved values of a small graph are, node by node, as a drawing."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import fx

from fxoffload.errors import ReportError
from fxoffload.graph import find_views
from fxoffload.inspection.explain import Explanation, GraphExplanation
from fxoffload.ops import OpEvent
from fxoffload.passes import find_ops
from fxoffload.planner.plan import SavedValue

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Place = Literal["device", "nvme", "host"]
_COLOURS: dict[Place, str] = {"device": "tab:blue", "nvme": "tab:orange", "host": "tab:green"}
_BAR_HEIGHT = 0.6
_NODE_WIDTH = 0.35  # Inches.
_ROW_HEIGHT = 0.3


@dataclass(frozen=True, slots=True)
class Stay:
    """A value is at `place` from the node with index `start` on, until behind that of `end`."""

    place: Place
    start: int
    end: int


def draw_lifetimes(explanation: Explanation, number: int = 0) -> Figure:
    """Draw where each value that a graph saves is, from the node that makes it to its last reader.

    number: of the graph among `explanation.graphs`. A value that moves leaves the device at its
    `release`, at the earliest, and is on its way back from its `prefetch` on. `savefig("x.svg")`
    of the result writes a file. Raises ReportError for a graph that is not there, and without the
    package matplotlib.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        raise ReportError(
            'a drawing needs the package matplotlib; pip install "fxoffload[demo]"'
        ) from None
    if not 0 <= number < len(explanation.graphs):
        raise ReportError(
            f"there is no graph {number}; the explanation has {len(explanation.graphs)} graph(s)"
        )
    graph = explanation.graphs[number]
    names, stays = list_nodes(graph), find_stays(explanation, number)
    size = 3.0 + _NODE_WIDTH * len(names), 1.8 + _ROW_HEIGHT * len(stays)
    figure = Figure(figsize=size, layout="constrained")
    axes: Any = figure.subplots()
    for row, (name, found) in enumerate(stays.items()):
        for stay in found:
            axes.broken_barh(
                [(stay.start, stay.end - stay.start + 1)],
                (row, _BAR_HEIGHT),
                color=_COLOURS[stay.place],
                label=stay.place,
                gid=f"{name}-{stay.place}-{stay.start}-{stay.end}",  # Of the element of an SVG.
            )
    axes.set_yticks([row + _BAR_HEIGHT / 2 for row in range(len(stays))], list(stays))
    axes.set_xticks([x + 0.5 for x in range(len(names))], names, rotation=90)
    axes.set_xlim(0, len(names))
    axes.invert_yaxis()
    axes.axvline(len(_list_names(graph.forward_after)), color="black", linestyle="--")
    handles, labels = axes.get_legend_handles_labels()
    shown = dict(zip(labels, handles, strict=True))
    figure.legend(shown.values(), shown.keys(), loc="outside upper center", ncols=len(shown))
    return figure


def list_nodes(graph: GraphExplanation) -> list[str]:
    """Names of the nodes, ops of ours included: of the forward, then of the backward."""
    return [*_list_names(graph.forward_after), *_list_names(graph.backward_after)]


def find_stays(explanation: Explanation, number: int = 0) -> dict[str, tuple[Stay, ...]]:
    """By the name of each saved value, where it is; indices are those of list_nodes."""
    graph, schedule = explanation.graphs[number], explanation.schedule
    destinations: dict[str, Any] = {}
    if schedule is not None and graph.index is not None:
        destinations = dict(schedule.calls[graph.index].destinations)
    return {
        value.name: _follow(graph, value, destinations.get(value.name, "keep"))
        for value in graph.plan.values
    }


def _follow(
    graph: GraphExplanation, value: SavedValue, destination: Literal["keep", "nvme", "host"]
) -> tuple[Stay, ...]:
    forward = _list_names(graph.forward_after)
    backward = _list_names(graph.backward_after)
    born = forward.index(value.name)
    ops = find_ops(graph.forward_after.graph, graph.backward_after.graph)
    end = len(forward) + backward.index(_find_last(graph, value, ops).name)
    if destination == "keep":
        return (Stay("device", born, end),)
    released = forward.index(ops["release", value.name].name)
    back = len(forward) + backward.index(ops["prefetch", value.name].name)
    return (
        Stay("device", born, released),
        Stay(destination, released + 1, back - 1),
        Stay("device", back, end),
    )


def _find_last(
    graph: GraphExplanation, value: SavedValue, ops: Mapping[OpEvent, fx.Node]
) -> fx.Node:
    """The last node of the backward that reads the value or a view of it; else its placeholder."""
    inputs = graph.backward_after.graph.find_nodes(op="placeholder")
    wait = ops.get(("wait", value.name))
    roots = [node for node in inputs if node.name in value.members] if wait is None else [wait]
    return max([*roots, *(user for node in (*roots, *find_views(roots)) for user in node.users)])


def _list_names(module: fx.GraphModule) -> list[str]:
    return [node.name for node in module.graph.nodes]
