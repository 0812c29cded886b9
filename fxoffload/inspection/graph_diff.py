"""Graph diffs: what a pass, or all of them, moved and changed in a graph, as readable code.

print(graph.diff())               of a graph that fxoffload.explain returned
rich.print(graph.diff())          the same in colours
print(diff_pass(graph, rewrite))  of one pass on a TrainingGraph
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
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
class Move:
    """A node that has another place among the nodes that were there before.

    half: "forward" or "backward". old, new: the node in front of it, before and after; "" for none.
    """

    half: str
    node: str
    old: str
    new: str

    def __str__(self) -> str:
        old, new = (f"behind {place}" if place else "the start" for place in (self.old, self.new))
        return f"{self.half}: {self.node} is moved from {old} to {new}"


@dataclass(frozen=True, slots=True)
class GraphDiff:
    """Lines of unified diffs of the forward's and the backward's code; rich prints it in colours.

    The code leaves out where each node is deleted (`x = None`): a moved reader would change these
    lines, too. moves: the nodes that are in another order, such as those that are hoisted; the text
    begins with them.
    """

    lines: tuple[str, ...]
    moves: tuple[Move, ...] = ()

    def __str__(self) -> str:
        return "\n".join([*map(str, self.moves), *self.lines]) or "nothing is changed"

    def __rich__(self) -> Any:
        # Only rich calls this.
        from rich.text import Text

        pairs = ((f"{line}\n", _STYLES.get(line[:1], "")) for line in str(self).splitlines())
        text = Text.assemble(*pairs)
        text.rstrip()
        return text


@dataclass(frozen=True, slots=True)
class _Half:
    """Lines of code of a graph, and names of its nodes in their order."""

    lines: list[str]
    names: list[str]


def diff_graphs(before: Halves, after: Halves) -> GraphDiff:
    """What is other in `after` than in `before`."""
    return _compare(_read_halves(before), _read_halves(after))


def diff_pass(graph: TrainingGraph, rewrite: Callable[[TrainingGraph], None]) -> GraphDiff:
    """Run a pass on `graph`, which changes in place, and return what it changed.

    Verifies the result as the pipeline does; raises GraphError for an illegal one.
    """
    before = _read_halves((graph.forward, graph.backward))
    run_passes(graph, [rewrite])
    return _compare(before, _read_halves((graph.forward, graph.backward)))


def _read_halves(halves: Halves) -> dict[str, _Half]:
    return dict(zip(("forward", "backward"), map(_read_half, halves), strict=True))


def _read_half(module: fx.GraphModule) -> _Half:
    code = module.graph.python_code("self").src
    lines = [_LETS_GO.sub("", line) for line in code.strip().splitlines()]
    return _Half(lines, [node.name for node in module.graph.nodes])


def _compare(before: dict[str, _Half], after: dict[str, _Half]) -> GraphDiff:
    lines: list[str] = []
    moves: list[Move] = []
    for name, old in before.items():
        new = after[name]
        heads = f"{name}, before", f"{name}, after"
        lines += difflib.unified_diff(old.lines, new.lines, *heads, n=CONTEXT_LINES, lineterm="")
        moves += _find_moves(name, old.names, new.names)
    return GraphDiff(tuple(lines), tuple(moves))


def _find_moves(half: str, old: list[str], new: list[str]) -> Iterator[Move]:
    """The nodes of both orders that stand outside of what these have in common, by the new one."""
    shared = set(old) & set(new)
    old, new = ([name for name in names if name in shared] for names in (old, new))
    before, after = (
        {name: place for place, name in pairwise(["", *names])} for names in (old, new)
    )
    matcher = difflib.SequenceMatcher(None, old, new, autojunk=False)
    for tag, _, _, start, end in matcher.get_opcodes():
        if tag != "equal":
            for name in new[start:end]:
                yield Move(half, name, before[name], after[name])
