"""Kinds of nodes and tensors: random number states, collectives, wrapper subclasses."""

from __future__ import annotations

from operator import getitem

import torch
from torch import fx
from torch._inductor import inductor_prims
from torch._ops import OpOverload
from torch._prims.rng_prims import run_and_save_rng_state
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

# The names, in schemas, of the results with which a random op passes its state to its backward.
_RNG_RESULTS = ("rng_state", "philox_seed", "philox_offset", "unused")
_COLLECTIVES = ("c10d", "_c10d_functional", "_c10d_functional_autograd", "_dtensor", "symm_mem")


def is_rng_state(node: fx.Node) -> bool:
    """Whether `node` holds the state or the seeds of a random number generator.

    Inductor reads a seed by the name of its buffer, without a dependency, so it could move the read
    before the wait. The seeds of attention are on the CPU although their fake tensors say
    CUDA. Source: torch._prims.rng_prims, torch._inductor.inductor_prims, schemas of aten's
    attention.
    """
    if node.target in (inductor_prims.seed, inductor_prims.seeds):
        return True
    if is_saved_rng_state(node) or _tells_what_was_drawn(node):
        return True
    return node.op == "placeholder" and "rng_state" in node.name


def is_saved_rng_state(node: fx.Node) -> bool:
    """Whether `node` is the state that a checkpoint saves for a random op."""
    if node.target is not getitem:
        return False
    source, index = node.args
    assert isinstance(source, fx.Node)
    # The op returns the state, and then the results of the random op.
    return source.target is run_and_save_rng_state and bool(index == 0)


def _tells_what_was_drawn(node: fx.Node) -> bool:
    if node.target is not getitem:
        return False
    source, index = node.args
    assert isinstance(source, fx.Node)
    if not isinstance(source.target, OpOverload) or not isinstance(index, int):
        return False
    names = [result.name for result in source.target._schema.returns]
    # A schema counts a list of tensors as one result, so `index` may exceed the names.
    return index in range(len(names)) and names[index] in _RNG_RESULTS


def is_collective(node: fx.Node) -> bool:
    """Whether `node` starts or waits for a collective of torch.distributed.

    All ranks must run these in the same order. Source:
    torch.distributed._functional_collectives, torch.distributed._symmetric_memory.
    """
    return isinstance(node.target, OpOverload) and node.target.namespace in _COLLECTIVES


def is_wrapper_subclass(tensor: torch.Tensor) -> bool:
    """Whether `tensor` only wraps other tensors, and has no storage of its own.

    Source: torch.utils._python_dispatch.
    """
    return bool(is_traceable_wrapper_subclass(tensor))
