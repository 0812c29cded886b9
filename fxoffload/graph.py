"""The forward and backward graph of a step, and queries about their nodes.

Queries change nothing. They read `node.meta["val"]`, the fake tensor (or symbolic int) that
AOTAutograd puts on every node.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import getitem

import torch
from torch import fx


@dataclass(slots=True)
class TrainingGraph:
    """The two graphs that every pass edits in place.

    forward: returns `num_outputs` values of the user's program, then the saved values.
    backward: its placeholders begin with the saved values, under the names they have in forward.
    static_inputs: names of forward placeholders that live through the step (parameters, buffers).
    """

    forward: fx.GraphModule
    backward: fx.GraphModule
    num_outputs: int
    static_inputs: frozenset[str] = frozenset()


def get_tensor(node: fx.Node) -> torch.Tensor | None:
    """The fake tensor that `node` produces; None for tuples, symbolic ints and None."""
    value = node.meta.get("val")
    return value if isinstance(value, torch.Tensor) else None


def require_tensor(node: fx.Node) -> torch.Tensor:
    """The fake tensor that `node` produces; it must produce one."""
    tensor = get_tensor(node)
    assert tensor is not None, f"{node} produces no tensor"
    return tensor


def find_maker(node: fx.Node) -> fx.Node:
    """The node that computes `node`: its tuple, if `node` is an item of one; else itself."""
    while node.target is getitem:
        (node, *_) = node.all_input_nodes
    return node


def get_output(graph: fx.Graph) -> fx.Node:
    """The output node of `graph`."""
    return next(iter(graph.find_nodes(op="output")))


def get_results(graph: fx.Graph) -> list[fx.Node | None]:
    """The nodes that the output node of `graph` returns, in order; a constant gives None."""
    (results,) = get_output(graph).args
    assert isinstance(results, list | tuple)
    return [value if isinstance(value, fx.Node) else None for value in results]


def get_returned(graph: TrainingGraph) -> set[fx.Node]:
    """Forward nodes whose values the user's program gets."""
    returned = get_results(graph.forward.graph)[: graph.num_outputs]
    return {node for node in returned if node is not None}


def get_saved(graph: TrainingGraph) -> list[fx.Node]:
    """Forward nodes whose values are saved for the backward, in output order."""
    saved = get_results(graph.forward.graph)[graph.num_outputs :]
    return [node for node in saved if node is not None]


def find_alias_sources(node: fx.Node) -> list[fx.Node]:
    """The arguments of `node` whose storage its result shares.

    The schema of an op says so by alias annotations. A few ops return a view without an annotation
    (`aten._unsafe_view`); then the fake tensors of argument and result share a storage. Only the
    node's own arguments are compared, so that equal metadata elsewhere cannot alias two values.
    """
    if node.op != "call_function":
        return []
    if node.target is not getitem and isinstance(node.meta.get("val"), list | tuple):
        # A tuple has no storage; its items are handled one by one, below.
        return []
    operands: list[tuple[fx.Node, bool]]
    if node.target is getitem:
        source = node.args[0]
        assert isinstance(source, fx.Node)
        operands = list(_schema_operands(source))
    else:
        operands = list(_schema_operands(node))
    storage = _storage_id(node)
    return [
        operand
        for operand, declared in operands
        if get_tensor(operand) is not None
        and (declared or (storage is not None and _storage_id(operand) == storage))
    ]


def is_view(node: fx.Node) -> bool:
    """Whether `node` is a view: it reads no data, and its result shares an argument's storage."""
    if node.op != "call_function":
        return False
    if node.target is getitem:
        return True
    items = node.meta.get("val")
    if isinstance(items, list | tuple):
        users = [user for user in node.users if user.target is getitem]
        return bool(users) and all(find_alias_sources(user) for user in users)
    return bool(find_alias_sources(node)) and not find_mutated(node)


def find_views(roots: Iterable[fx.Node]) -> set[fx.Node]:
    """All views of `roots`, also views of views; without `roots` themselves."""
    views: set[fx.Node] = set()
    pending = list(roots)
    while pending:
        for user in pending.pop().users:
            if user not in views and is_view(user):
                views.add(user)
                pending.append(user)
    return views


def get_op_name(node: fx.Node) -> str:
    """The name of the op that `node` calls, without its overload; "" if it calls no op."""
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "")


def is_reduction(node: fx.Node) -> bool:
    """Whether `node` reduces a tensor along some of its axes, by the tags of its op."""
    return isinstance(node.target, torch._ops.OpOverload) and (
        torch.Tag.reduction in node.target.tags
    )


def is_scatter(node: fx.Node) -> bool:
    """Whether `node` writes values at positions given by an index tensor.

    The gradient of an embedding does. slice_scatter and the like do not: their positions are known,
    and they are ordinary loops.
    """
    name = get_op_name(node)
    return "index_put" in name or name.startswith("scatter")


def find_mutated(node: fx.Node) -> list[fx.Node]:
    """The arguments that `node` writes to, according to its schema."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return []
    return [value for parameter, value in _bind(node) if parameter.is_written]


def _schema_operands(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """Every node argument of `node`, and whether its schema says that a result aliases it."""
    if isinstance(node.target, torch._ops.OpOverload):
        for parameter, value in _bind(node):
            yield value, parameter.is_returned


@dataclass(frozen=True, slots=True)
class _Parameter:
    """A parameter of an op's schema: whether a result may alias it, and whether it is written."""

    name: str
    is_returned: bool
    is_written: bool


@cache
def _find_parameters(op: torch._ops.OpOverload) -> tuple[_Parameter, ...]:
    """The parameters of `op`, in order. A schema never changes, and is slow to read."""
    returned: set[str] = set()
    for result in op._schema.returns:
        if result.alias_info is not None:
            returned |= set(result.alias_info.before_set)
    return tuple(
        _Parameter(
            argument.name,
            is_returned=info is not None and bool(returned & set(info.before_set)),
            is_written=info is not None and info.is_write,
        )
        for argument in op._schema.arguments
        for info in [argument.alias_info]
    )


def _bind(node: fx.Node) -> Iterator[tuple[_Parameter, fx.Node]]:
    """Pairs of a parameter and the node that is passed for it; several for a list argument."""
    assert isinstance(node.target, torch._ops.OpOverload)
    for index, parameter in enumerate(_find_parameters(node.target)):
        value = node.args[index] if index < len(node.args) else node.kwargs.get(parameter.name)
        for item in value if isinstance(value, list | tuple) else (value,):
            if isinstance(item, fx.Node):
                yield parameter, item


def _storage_id(node: fx.Node) -> int | None:
    tensor = get_tensor(node)
    if tensor is None or tensor.layout != torch.strided:
        return None
    return tensor.untyped_storage()._cdata
