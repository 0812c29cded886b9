"""A forward and a backward graph, and read-only facts about their nodes.

Facts come from `node.meta["val"]`, the fake tensor (or symbolic int) that AOTAutograd leaves on
every node. Byte counts of symbolic sizes are those of the traced example (the hint), or of the
largest that the program declares; of sizes that depend on data, the largest that they can be.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache
from operator import getitem
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import fx

_UNBOUNDED = 2**62
# By shape environment: the largest value that the program declares for each symbol.
_maxima: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()


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


def find_maker(node: fx.Node) -> fx.Node:
    """The op whose result, or whose item of a tuple, `node` is."""
    while node.target is getitem:
        (node, *_) = node.all_input_nodes
    return node


def get_output(graph: fx.Graph) -> fx.Node:
    """The output node of `graph`."""
    return next(iter(graph.find_nodes(op="output")))


def get_results(graph: fx.Graph) -> list[fx.Node | None]:
    """What the output node of `graph` returns, in order; constants appear as None."""
    (results,) = get_output(graph).args
    assert isinstance(results, list | tuple)
    return [value if isinstance(value, fx.Node) else None for value in results]


def get_saved(graph: TrainingGraph) -> list[fx.Node]:
    """Forward nodes whose values are saved for the backward, in output order."""
    saved = get_results(graph.forward.graph)[graph.num_outputs :]
    return [node for node in saved if node is not None]


def hint_int(value: int | torch.SymInt) -> int:
    """`value` as an int: a symbolic one by its hint. Raises ValueError when it has none."""
    if isinstance(value, int):
        return value
    hint = value.node.hint
    if hint is None:
        raise ValueError(f"{value} has no hint")
    return int(hint)


def guess_int(value: int | torch.SymInt) -> int:
    """`value` as an int: what a plan counts with.

    That is its hint, or what it becomes at the declared maxima of its symbols, if that is more;
    without a hint the largest it can be, 0 where that is not bounded.
    Source: torch.fx.experimental.symbolic_shapes.ShapeEnv.bound_sympy.
    """
    if isinstance(value, int):
        return value
    if value.node.hint is not None:
        hint, maxima = int(value.node.hint), _find_maxima(value)
        if maxima.keys().isdisjoint(value.node.expr.free_symbols):
            return hint
        largest = {symbol: maxima.get(symbol, hint) for symbol, hint in _find_hints(value).items()}
        return max(hint, int(value.node.expr.xreplace(largest)))
    upper = value.node.shape_env.bound_sympy(value.node.expr).upper
    return int(upper) if is_bounded(value) else 0


def _find_maxima(value: torch.SymInt) -> dict[Any, int]:
    """By symbol: what torch._dynamo.mark_dynamic(..., max=...) declares in the program of `value`.

    Not what guards tell of sizes: those are often far from what ever comes. Source:
    torch.fx.experimental.symbolic_shapes (ShapeEnv.tracked_fakes, StrictMinMaxConstraint).
    """
    shapes = value.node.shape_env
    found = _maxima.get(shapes)
    if found is None:
        found = _maxima[shapes] = {}
        for tracked in shapes.tracked_fakes or ():
            constraints = getattr(tracked.symbolic_context, "constraint_sizes", None) or ()
            sizes: tuple[Any, ...] = getattr(tracked.fake, "shape", ())
            for size, constraint in zip(sizes, constraints, strict=False):
                upper = getattr(getattr(constraint, "vr", None), "upper", _UNBOUNDED)
                if isinstance(size, torch.SymInt) and upper < _UNBOUNDED:
                    found[size.node.expr] = int(upper)
    return found


def _find_hints(value: torch.SymInt) -> dict[Any, int]:
    """By symbol: the hints that make up that of `value`, which has one."""
    return {
        symbol: int(value.node.shape_env.backed_var_to_val[symbol])
        for symbol in value.node.expr.free_symbols
    }


def is_bounded(value: int | torch.SymInt) -> bool:
    """Whether `value` has a hint, or can be no larger than some number of real tensors."""
    if isinstance(value, int) or value.node.hint is not None:
        return True
    upper = value.node.shape_env.bound_sympy(value.node.expr).upper
    # Without a bound of its own, a size is below the largest int.
    return bool(upper.is_number) and upper < _UNBOUNDED


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether `tensor` is elements at strides in one storage: no sparse, nested or MKL-DNN layout.

    Of others neither sizes nor strides nor a storage may be asked for.
    """
    return tensor.layout == torch.strided and not tensor.is_nested


def has_hints(tensor: torch.Tensor) -> bool:
    """Whether all sizes and strides are known, at least for the traced example."""
    return is_strided(tensor) and all(
        isinstance(value, int) or value.node.hint is not None
        for value in (*tensor.size(), *tensor.stride(), tensor.storage_offset())
    )


def is_static(tensor: torch.Tensor) -> bool:
    """Whether all sizes and strides are numbers."""
    if not is_strided(tensor):
        return False
    layout = (*tensor.size(), *tensor.stride(), tensor.storage_offset())
    return not any(isinstance(value, torch.SymInt) for value in layout)


def count_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements of `tensor`, each counted once per logical position.

    Sizes that depend on data count as guess_int says; what is_strided denies counts nothing.
    """
    if not is_strided(tensor):
        return 0
    return tensor.dtype.itemsize * math.prod(map(guess_int, tensor.size()))


def is_dense(tensor: torch.Tensor) -> bool:
    """Whether the elements fill one range of memory without gap or overlap, in any order."""
    expected = 1
    dims = sorted(
        (hint_int(stride), hint_int(size))
        for size, stride in zip(tensor.size(), tensor.stride(), strict=True)
        if hint_int(size) != 1
    )
    if any(size == 0 for _, size in dims):
        return True
    for stride, size in dims:
        if stride != expected:
            return False
        expected *= size
    return True


def find_alias_sources(node: fx.Node) -> list[fx.Node]:
    """The arguments of `node` whose storage its result shares.

    An op tells by the alias annotations of its schema; where a schema is silent although the op
    returns a view (`aten._unsafe_view`), the fake tensors of argument and result share a storage.
    Only the node's own arguments count, so that equal metadata elsewhere cannot alias two values.
    """
    if node.op != "call_function":
        return []
    if node.target is not getitem and isinstance(node.meta.get("val"), list | tuple):
        # A tuple is no storage; its items are looked at one by one, below.
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
    """Whether `node` reads no data: its result is another look at an argument's storage."""
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
    """The views of `roots`, and theirs; without `roots`."""
    views: set[fx.Node] = set()
    pending = list(roots)
    while pending:
        for user in pending.pop().users:
            if user not in views and is_view(user):
                views.add(user)
                pending.append(user)
    return views


def get_op_name(node: fx.Node) -> str:
    """The name of the op that `node` calls, whatever its overload; "" for other functions."""
    return getattr(getattr(node.target, "overloadpacket", None), "__name__", "")


def is_reduction(node: fx.Node) -> bool:
    """Whether `node` reduces a tensor along some of its axes, by the tags of its op."""
    return isinstance(node.target, torch._ops.OpOverload) and (
        torch.Tag.reduction in node.target.tags
    )


def is_scatter(node: fx.Node) -> bool:
    """Whether `node` puts values where indices say, as the gradient of an embedding does.

    Not slice_scatter and the like, whose place is known: they are loops as others are.
    """
    name = get_op_name(node)
    return "index_put" in name or name.startswith("scatter")


def find_mutated(node: fx.Node) -> list[fx.Node]:
    """The arguments of `node` that its schema says it writes to."""
    if node.op != "call_function" or not isinstance(node.target, torch._ops.OpOverload):
        return []
    return [value for parameter, value in _bind(node) if parameter.is_written]


def _schema_operands(node: fx.Node) -> Iterator[tuple[fx.Node, bool]]:
    """Every tensor argument of `node`, and whether the schema says a result aliases it."""
    if isinstance(node.target, torch._ops.OpOverload):
        for parameter, value in _bind(node):
            yield value, parameter.is_returned


@dataclass(frozen=True, slots=True)
class _Parameter:
    """What the schema of an op says of a parameter: may a result alias it, is it written to."""

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
    """Pairs of parameter and node passed for it; a list argument gives several pairs."""
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
