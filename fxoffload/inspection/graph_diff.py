"""Graph diffs: what a pass, or all of them, changed in a graph, as readable code.

print(graph.diff())               of a graph that fxoffload.explain returned
rich.print(graph.diff())          the same in colours
print(diff_pass(graph, rewrite))  of one pass on a TrainingGraph
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import fx

from fxoffload.graph import TrainingGraph
from fxoffload.passes import run_passes

Halves = tuple[fx.GraphModule, fx.GraphModule]  # A forward and a backward.
# Lines around a change.
CONTEXT_LINES = 2
_STYLES = {"+": "green", "-": "red", "@": "cyan"}
# The end of a line of code that lets go of what it was the last to read.
_LETS_GO = re.compile(r";  [\w = ]+ = None$")


@dataclass(frozen=True, slots=True)
class GraphDiff:
    """Lines of unified diffs of the forward's and the backward's code; rich prints it in colours.

    The code leaves out where each node is deleted (`x = None`): a moved reader would change these
    lines, too.
    """

    lines: tuple[str, ...]

    def __str__(self) -> str:
        return "\n".join(self.lines) if self.lines else "nothing is changed"

    def __rich__(self) -> Any:
        # Only rich calls this.
        from rich.text import Text

        pairs = ((f"{line}\n", _STYLES.get(line[:1], "")) for line in str(self).splitlines())
        text = Text.assemble(*pairs)
        text.rstrip()
        return text


def diff_graphs(before: Halves, after: Halves) -> GraphDiff:
    """What is other in `after` than in `before`."""
    return _compare(_list_code(before), _list_code(after))


def diff_pass(graph: TrainingGraph, rewrite: Callable[[TrainingGraph], None]) -> GraphDiff:
    """Run a pass on `graph`, which changes in place, and return what it changed.

    Verifies the result as the pipeline does; raises GraphError for an illegal one.
    """
    before = _list_code((graph.forward, graph.backward))
    run_passes(graph, [rewrite])
    return _compare(before, _list_code((graph.forward, graph.backward)))


def _list_code(halves: Halves) -> dict[str, list[str]]:
    """Lines of code by the name of the half."""
    return dict(zip(("forward", "backward"), map(_read_lines, halves), strict=True))


def _read_lines(module: fx.GraphModule) -> list[str]:
    code = module.graph.python_code("self").src
    return [_LETS_GO.sub("", line) for line in code.strip().splitlines()]


def _compare(before: dict[str, list[str]], after: dict[str, list[str]]) -> GraphDiff:
    lines: list[str] = []
    for name, old in before.items():
        lines += difflib.unified_diff(
            old, after[name], f"{name}, before", f"{name}, after", n=CONTEXT_LINES, lineterm=""
        )
    return GraphDiff(tuple(lines))
