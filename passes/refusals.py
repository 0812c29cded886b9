"""Refusals: find the reason why a saved storage may not be moved. Changes nothing."""

from __future__ import annotations

from torch import fx

from fxoffload.graph import TrainingGraph, get_results, get_returned, require_tensor
from fxoffload.planner.plan import RETURNED, UNCOUNTED
from fxoffload.torch_internals import is_rng_state, is_unchecked, is_wrapper_subclass
from fxoffload.torch_internals.tensor_sizes import has_hints, is_bounded, is_dense, is_strided

STATIC_INPUT = "parameter, buffer or other static input"
CONSTANT = "constant of the graph"


def find_refusal(
    graph: TrainingGraph,
    root: fx.Node,
    members: list[fx.Node],
    component: set[fx.Node],
    mutated: set[fx.Node],
) -> str | None:
    """The reason why the storage of `root` may not be moved; None if it may.

    component: `root` and its views. mutated: all nodes that the forward writes to.
    """
    if root.name in graph.static_inputs:
        return STATIC_INPUT
    returned = get_returned(graph)
    # In-place changes are detected by the version counter of the returned tensor. Views that the
    # caller makes of it share the counter; another view that the graph returns does not.
    if returned & component and (root not in returned or root.op == "placeholder"):
        return "aliased by an output of the forward"
    if root.op == "placeholder" and not _receives_gradient(graph, root):
        return "input that belongs to the caller"
    if root.op == "placeholder" and any(map(is_unchecked, (root, *members))):
        return "input that the program stashed itself: it may change it before the backward"
    if root.op == "get_attr":
        return CONSTANT
    if is_rng_state(root):
        return "state of a random number generator"
    if mutated & component:
        return "mutated in the forward"
    for node in (root, *members):
        reason = _find_tensor_refusal(node)
        if reason is not None:
            return reason
    if not is_dense(require_tensor(root)):
        return "storage with gaps or overlaps"
    return RETURNED if root in returned else None


def _find_tensor_refusal(node: fx.Node) -> str | None:
    tensor = require_tensor(node)
    if not is_strided(tensor) or is_wrapper_subclass(tensor):
        return "tensor subclass or layout that is not understood"
    if tensor.device.type not in ("cpu", "cuda"):
        return f"device {tensor.device.type} is not supported"
    if tensor.is_conj() or tensor.is_neg():
        return "lazily conjugated or negated view"
    if not all(map(is_bounded, tensor.size())):
        return UNCOUNTED
    if not has_hints(tensor):
        return "size that depends on data"
    return None


def _receives_gradient(graph: TrainingGraph, placeholder: fx.Node) -> bool:
    """Whether the backward returns a gradient for this input, which is then an activation."""
    inputs = graph.forward.graph.find_nodes(op="placeholder")
    gradients = get_results(graph.backward.graph)
    return dict(zip(inputs, gradients, strict=False)).get(placeholder) is not None
