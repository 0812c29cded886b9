"""Hoisting: compute early what only the backward needs. Moves forward nodes only.

    before                                    after hoist_saved
    relu = aten.relu(mm)                      relu = aten.relu(mm)
    out  = aten.mm(relu, w)                   le   = aten.le(relu, 0)
    ...                                       out  = aten.mm(relu, w)
    le   = aten.le(relu, 0)                   ...
    return (out, relu, le)                    return (out, relu, le)

torch's partitioner puts nodes that serve the backward alone at the end of the forward, and so
everything that they read lives until there. Next to their operands they cost nothing, and the
operands can leave.
"""

from __future__ import annotations

import torch
from torch import fx

from fxoffload.graph import TrainingGraph, count_bytes, find_mutated, get_tensor, has_hints, is_view


def hoist_saved(graph: TrainingGraph) -> None:
    """Move each node that only saved values depend on behind the last of its operands.

    A node stays where it is when its result is larger than what it reads, when it reads inputs of
    the graph alone (they live on anyway), draws random numbers or changes memory.
    """
    forward = graph.forward.graph
    output = next(iter(forward.find_nodes(op="output")))
    (results,) = output.args
    assert isinstance(results, list | tuple)
    returned = {node for node in results[: graph.num_outputs] if isinstance(node, fx.Node)}
    only_saved: set[fx.Node] = set()
    for node in reversed(forward.nodes):
        serves = all(user is output or user in only_saved for user in node.users)
        if node.op == "call_function" and node.users and serves and node not in returned:
            only_saved.add(node)
    for node in list(forward.nodes):
        if node not in only_saved or not _may_move(node):
            continue
        last = max(node.all_input_nodes)
        if last.next is not node:
            last.append(node)
    forward.lint()


def _may_move(node: fx.Node) -> bool:
    operands = [operand for operand in node.all_input_nodes if operand.op == "call_function"]
    if not operands or not isinstance(node.target, torch._ops.OpOverload):
        return is_view(node) and bool(operands)
    if torch.Tag.nondeterministic_seeded in node.target.tags or find_mutated(node):
        return False
    return is_view(node) or _bytes(node) <= sum(_bytes(operand) for operand in operands)


def _bytes(node: fx.Node) -> int:
    tensor = get_tensor(node)
    return count_bytes(tensor) if tensor is not None and has_hints(tensor) else 0
