"""Sizes and layouts of fake tensors as numbers, for a plan.

A symbolic size counts as its value in the traced example (the hint), or as the largest value that
the program declares; a size that depends on data counts as its upper bound.
"""

from __future__ import annotations

import math
from typing import Any
from weakref import WeakKeyDictionary

import torch

_UNBOUNDED = 2**62
# By shape environment: the largest value that the program declares for each symbol.
_maxima: WeakKeyDictionary[Any, dict[Any, int]] = WeakKeyDictionary()


def hint_int(value: int | torch.SymInt) -> int:
    """`value` as an int; a symbolic value as its hint. Raises ValueError if it has none."""
    if isinstance(value, int):
        return value
    hint = value.node.hint
    if hint is None:
        raise ValueError(f"{value} has no hint")
    return int(hint)


def guess_int(value: int | torch.SymInt) -> int:
    """`value` as the int that a plan uses.

    That is its hint, or its value at the declared maxima of its symbols if that is larger; without
    a hint, its upper bound, or 0 if it has none.
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
    """By symbol: the largest size that torch._dynamo.mark_dynamic(..., max=...) declares.

    value: any symbolic size of the program. Bounds that come from guards are not used: they are
    often far above the sizes that occur. Source: torch.fx.experimental.symbolic_shapes
    (ShapeEnv.tracked_fakes, StrictMinMaxConstraint).
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
    """By symbol of `value`, which has a hint: the hint of the symbol."""
    return {
        symbol: int(value.node.shape_env.backed_var_to_val[symbol])
        for symbol in value.node.expr.free_symbols
    }


def is_bounded(value: int | torch.SymInt) -> bool:
    """Whether `value` has a hint, or an upper bound that sizes of real tensors can have."""
    if isinstance(value, int) or value.node.hint is not None:
        return True
    upper = value.node.shape_env.bound_sympy(value.node.expr).upper
    # A size without a bound has the largest int as its upper bound.
    return bool(upper.is_number) and upper < _UNBOUNDED


def is_strided(tensor: torch.Tensor) -> bool:
    """Whether `tensor` has elements at strides in one storage: not sparse, nested or MKL-DNN.

    For other layouts, torch raises an error if sizes, strides or the storage are read.
    """
    return tensor.layout == torch.strided and not tensor.is_nested


def has_hints(tensor: torch.Tensor) -> bool:
    """Whether all sizes and strides are ints or have a hint."""
    return is_strided(tensor) and all(
        isinstance(value, int) or value.node.hint is not None
        for value in (*tensor.size(), *tensor.stride(), tensor.storage_offset())
    )


def may_grow(tensor: torch.Tensor) -> bool:
    """Whether a later call may have more elements: a size has a hint, and no declared maximum."""
    if not is_strided(tensor):
        return False
    symbolic = (size for size in tensor.size() if isinstance(size, torch.SymInt))
    return any(
        size.node.hint is not None and not size.node.expr.free_symbols <= _find_maxima(size).keys()
        for size in symbolic
    )


def is_static(tensor: torch.Tensor) -> bool:
    """Whether all sizes and strides are ints, none of them symbolic."""
    if not is_strided(tensor):
        return False
    layout = (*tensor.size(), *tensor.stride(), tensor.storage_offset())
    return not any(isinstance(value, torch.SymInt) for value in layout)


def count_bytes(tensor: torch.Tensor) -> int:
    """Bytes of the elements of `tensor`, each counted once per logical position.

    Symbolic sizes count by guess_int; a tensor that is not strided counts 0 bytes.
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
