"""Hoisting: move a node up to its operands where its result is no larger than these.

    forward                                   after hoist_saved
    relu = aten.relu(mm)                      relu = aten.relu(mm)
    out  = aten.mm(relu, w)                   le   = aten.le(relu, 0)
    ...                                       out  = aten.mm(relu, w)
    le   = aten.le(relu, 0)                   ...
    return (out, relu, le)                    return (out, relu, le)

    backward                                  after hoist_reductions
    grad = aten.mul(tangent, le)              grad = aten.mul(tangent, le)
    grad_w = aten.mm(x, grad)                 grad_b = aten.sum(grad, [0])
    grad_b = aten.sum(grad, [0])              grad_w = aten.mm(x, grad)

torch's partitioner puts nodes that only the backward needs at the end of the forward, so everything
that they read lives until then. Right after their operands they take no more memory, and the
operands can be freed or offloaded. The gradient of a bias, a sum, stands after matrix products
that read the same operand. Right after the loop that computes that operand, the sum is fused with
it: loops are fused only if no call stands between them. Changes only the order of nodes.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import fx

from fxoffload.graph import (
    TrainingGraph,
    find_mutated,
    get_output,
    get_returned,
    get_tensor,
    is_reduction,
    is_view,
)
from fxoffload.torch_internals import is_collective
from fxoffload.torch_internals.tensor_sizes import count_bytes

Order = tuple[tuple[fx.Node, ...], tuple[fx.Node, ...]]  # Nodes of the forward and the backward.


def hoist_saved(graph: TrainingGraph) -> None:
    """Move forward nodes on which only saved values depend: each to right after its last operand.

    A node stays where it is if its result is larger than its operands, if it reads only inputs of
    the graph (which live on anyway), draws random numbers, writes to memory or is a collective.
    """
    forward = graph.forward.graph
    output, returned = get_output(forward), get_returned(graph)
    only_saved: set[fx.Node] = set()
    for node in reversed(forward.nodes):
        serves = all(user is output or user in only_saved for user in node.users)
        if node.op == "call_function" and node.users and serves and node not in returned:
            only_saved.add(node)
    for node in list(forward.nodes):
        if node in only_saved and _may_move(node):
            _hoist(node)
    forward.lint()


def hoist_reductions(graph: TrainingGraph) -> None:
    """Move each reduction of the backward to right after its last operand.

    A reduction stays where it is for the reasons of hoist_saved.
    """
    backward = graph.backward.graph
    for node in list(backward.nodes):
        if is_reduction(node) and _may_move(node):
            _hoist(node)
    backward.lint()


def find_order(graph: TrainingGraph) -> Order:
    """The nodes of both graphs in their present order."""
    return tuple(graph.forward.graph.nodes), tuple(graph.backward.graph.nodes)


def restore_order(graph: TrainingGraph, order: Order) -> None:
    """Put the nodes back into `order`, from find_order; none may have been added or erased."""
    for half, nodes in zip((graph.forward.graph, graph.backward.graph), order, strict=True):
        for node, following in pairwise(nodes):
            if node.next is not following:
                node.append(following)
        half.lint()


def _hoist(node: fx.Node) -> None:
    last = max(node.all_input_nodes)
    if last.next is not node:
        last.append(node)


def _may_move(node: fx.Node) -> bool:
    operands = [operand for operand in node.all_input_nodes if operand.op == "call_function"]
    if not operands or not isinstance(node.target, torch._ops.OpOverload):
        return is_view(node) and bool(operands)
    if torch.Tag.nondeterministic_seeded in node.target.tags or find_mutated(node):
        return False
    if is_collective(node):
        return False
    return is_view(node) or _bytes(node) <= sum(_bytes(operand) for operand in operands)


def _bytes(node: fx.Node) -> int:
    tensor = get_tensor(node)
    return 0 if tensor is None else count_bytes(tensor)
