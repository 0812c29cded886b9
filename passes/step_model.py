"""The step model: seconds of each node, and the lifetime of each storage once loops are fused.

    forward                              fixed residences and values ->
    mm  = aten.mm(x, w)                  mm: lives until relu has read it
    mul = aten.mul(mm, 2)                mul: not in memory, the loop of relu computes it
    relu = aten.relu(mul)                relu: a saved value, kept or moved by plan
    return (out, relu)

`footprint` says which storages are in memory, and until when. Reads `meta["val"]`; changes nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from torch import fx

from fxoffload.cost import CostModel
from fxoffload.graph import TrainingGraph, get_results, get_returned
from fxoffload.passes.footprint import Footprint
from fxoffload.planner.plan import RETURNED, SavedValue
from fxoffload.planner.step import Residence, Step
from fxoffload.scratch import count_scratch_bytes
from fxoffload.torch_internals import keeps_tangents


def build_step(
    graph: TrainingGraph, values: Sequence[SavedValue], cost: CostModel, *, fuses: bool = True
) -> Step:
    """The Step of `graph` for the planner.

    values: from find_saved_values. cost: gives the seconds. fuses: whether a compiler fuses loops;
    if not, every result is assumed to be in memory.
    """
    forward = Footprint(graph.forward.graph, fuses=fuses)
    backward = Footprint(graph.backward.graph, fuses=fuses)
    length = len(forward.nodes)
    forward_roots = {root.name: root for root in forward.members}
    backward_roots = {node.name: root for node, root in backward.roots.items()}
    last = length + len(backward.nodes) - 1
    outputs = get_returned(graph)
    names = {value.name for value in values}
    fixed: list[Residence] = []
    for root in forward.members:
        if root in forward.in_memory and root.op == "call_function" and root.name not in names:
            end = last if outputs & set(forward.members[root]) else forward.last_use[root]
            fixed.append(Residence(root.name, forward.nbytes(root), forward.born(root), end))
    gradients = {node for node in get_results(graph.backward.graph) if node is not None}
    saved = {node.name for node in forward.nodes}
    for root in backward.members:
        # A placeholder that the forward does not save is the gradient of one of its results.
        tangent = root.op == "placeholder" and root.name not in saved
        if root in backward.in_memory and (root.op == "call_function" or tangent):
            first, end = 0 if tangent else backward.born(root), backward.last_use[root]
            stays = gradients & set(backward.members[root]) or (tangent and keeps_tangents())
            end = last if stays else length + end
            fixed.append(Residence(root.name, backward.nbytes(root), length + first, end))
    for offset, half in ((0, forward), (length, backward)):
        for position, node in enumerate(half.nodes, offset):
            scratch = count_scratch_bytes(node)
            fixed.append(Residence(f"{node.name} scratch", scratch, position, position))
    return Step(
        names=forward.find_names() + backward.find_names(),
        seconds=tuple(forward.estimate_seconds(cost) + backward.estimate_seconds(cost)),
        forward_length=length,
        forward_inputs=_count_inputs(forward.nodes),
        backward_inputs=_count_inputs(backward.nodes),
        fixed=tuple(residence for residence in fixed if residence.nbytes),
        values=tuple(
            replace(
                _extend_reading(value, backward, backward_roots),
                last_use=_find_last_use(value, forward, forward_roots),
            )
            for value in values
        ),
    )


def _extend_reading(
    value: SavedValue, backward: Footprint, roots: Mapping[str, fx.Node]
) -> SavedValue:
    """`value` as long as a loop of the backward reads it, and at least to its placeholder."""
    freed = max(value.freed, *(backward.last_use[roots[name]] for name in value.members))
    return replace(value, first_use=value.first_use if value.is_read else freed + 1, freed=freed)


def _find_last_use(value: SavedValue, forward: Footprint, roots: Mapping[str, fx.Node]) -> int:
    if value.refusal == RETURNED:  # The caller has it when the forward ends.
        return len(forward.nodes) - 2  # In front of the output.
    if value.gathered:
        return value.last_use
    return max(value.last_use, forward.last_use[roots[value.name]])


def _count_inputs(nodes: Iterable[fx.Node]) -> int:
    return sum(node.op == "placeholder" for node in nodes)
