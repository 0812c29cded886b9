"""How Inductor lowers nodes: to calls or loops, stored or not; and the lowerings of our own ops."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import wraps
from typing import Any

import torch
from torch import fx
from torch._inductor import config as inductor_config
from torch._inductor.virtualized import V
from torch._ops import HigherOrderOperator, OpOverload
from torch.utils.flop_counter import flop_registry

from fxoffload.ops import DIRECT

_ADAPTED = "fxoffload_adapted"  # The attribute of a lowering that tells what we adapted in it.
_OWNED = 5  # The index of that argument of `wait`.


def keep_strides(op: OpOverload) -> None:
    """Let Inductor store the first argument of `op` with the strides of the graph.

    Inductor obeys the tag needs_exact_strides only for ops that Dynamo traced. For others it
    chooses the strides that suit its loops; then a library call that also reads the value would
    copy it, and so would `wait`. Source: torch._inductor.graph.GraphLowering.call_function
    (eager_input_vals).
    """

    def adapt(fall_back: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(fall_back)
        def lower(x: Any, *args: Any, **kwargs: Any) -> Any:
            x.realize()
            if is_storage_and_layout(x) and isinstance(x.get_layout(), FlexibleLayout):
                source: Any = V.graph.current_node.args[0]
                ExternKernel.require_exact_strides(x, source.meta["val"].stride())
            return fall_back(x, *args, **kwargs)

        return lower

    from torch._inductor.ir import (  # A slow import, which compiling needs anyway.
        ExternKernel,
        FlexibleLayout,
        is_storage_and_layout,
    )

    _adapt_lowering(op, adapt)


def take_as_returned(op: OpOverload) -> None:
    """Tell Inductor of the results of `op`, a wait, whether they are aligned, and whose they are.

    A result with owned=False may be the caller's own tensor: no kernel may store into its memory.
    Source: V.graph.never_reuse_buffers.

    Other CUDA results are taken as aligned to 16 bytes, so that Triton loads wide.

    Inductor considers the result of an op that it does not know unaligned if an argument is, and it
    considers every input on the CPU unaligned, such as a ticket. Each result must start at the
    address that the CUDA allocator returned (aligned to 512 bytes); the generated code asserts it.
    Source: torch._inductor.ir.FallbackKernel.create, V.graph.unaligned_buffers (2.11 the same).
    """

    def adapt(fall_back: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(fall_back)
        def lower(*args: Any, **kwargs: Any) -> Any:
            result = fall_back(*args, **kwargs)
            if len(args) > _OWNED and not args[_OWNED]:
                V.graph.never_reuse_buffers.add(result.get_name())
            elif result.get_device().type == "cuda":
                V.graph.unaligned_buffers.discard(result.get_name())
            return result

        return lower

    _adapt_lowering(op, adapt)


def call_directly(op: OpOverload) -> None:
    """Let generated code call the function `op.direct` instead of `op`.

    torch's dispatcher converts the arguments to its own types and those back to Python's: 4 us that
    become 60 us behind compute that has emptied the caches (100 us for lists of sizes). Code for
    AOTInductor's C++ wrapper calls `op` itself.
    Source: torch._inductor.ir.ExternKernel.python_kernel_name.
    """

    def adapt(fall_back: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(fall_back)
        def lower(*args: Any, **kwargs: Any) -> Any:
            before = len(V.graph.operations)
            result = fall_back(*args, **kwargs)
            for operation in V.graph.operations[before:]:
                if getattr(operation, "op_overload", None) is op:
                    operation.python_kernel_name += f".{DIRECT}"
            return result

        return lower

    _adapt_lowering(op, adapt)


def _adapt_lowering(
    op: OpOverload, adapt: Callable[[Callable[..., Any]], Callable[..., Any]]
) -> None:
    """Replace Inductor's lowering of `op` by `adapt(lowering)`; a second call does nothing."""
    from torch._inductor import lowering  # A slow import, which compiling needs anyway.

    if op not in lowering.lowerings:
        # Inductor does the same when it first meets an op with this tag.
        constraint = lowering.tag_to_layout_constraint(torch.Tag.needs_exact_strides)
        lowering.make_fallback(op, layout_constraint=constraint)
    fall_back = lowering.lowerings[op]
    done: frozenset[str] = getattr(fall_back, _ADAPTED, frozenset())
    if adapt.__qualname__ not in done:
        adapted = adapt(fall_back)
        setattr(adapted, _ADAPTED, done | {adapt.__qualname__})
        lowering.lowerings[op] = adapted


def runs_alone(node: fx.Node) -> bool:
    """Whether Inductor calls a library for `node` instead of generating a loop that can be fused.

    Source: torch._inductor.lowering.fallbacks, to which Inductor adds custom ops when it first
    meets them. Matrix products and the like, for which it has templates or library calls, are the
    ops in the registry of torch.utils.flop_counter.
    """
    from torch._inductor import lowering  # A slow import, which compiling needs anyway.

    target = node.target
    return (
        getattr(target, "overloadpacket", None) in flop_registry
        or target in lowering.fallbacks
        or isinstance(target, HigherOrderOperator)
        or (
            isinstance(target, OpOverload)
            and target.namespace not in ("aten", "prims")
            and target not in lowering.lowerings
        )
    )


@dataclass(frozen=True, slots=True)
class StorePolicy:
    """When Inductor stores a result instead of recomputing it in the loop of each reader.

    It stores the result if its loop reads more than `reads` storages (`reused_reads` if several
    nodes read the result), if its loop has more than `ops` ops, or if several nodes read the result
    and its loop has one of `expensive_ops`.
    """

    reads: int
    reused_reads: int
    ops: int
    expensive_ops: frozenset[str]


def find_store_policy(device: torch.device) -> StorePolicy:
    """The StorePolicy of Inductor on `device`.

    Source: torch._inductor.ir.StorageBox (should_realize_on_reuse, has_exceeded_max_reads) and
    torch._inductor.config; releases before 2.13 have no separate thresholds for the CPU, and fewer
    expensive ops.
    """
    config: Any = inductor_config
    on_cpu = device.type == "cpu"

    def find_threshold(what: str) -> int:
        threshold = getattr(config, f"realize_{what}_threshold")
        if threshold is not None:
            return threshold
        of_cpu, of_others = f"realize_cpu_{what}_threshold", f"_realize_{what}_threshold_default"
        return getattr(config, of_cpu if on_cpu else of_others)

    expensive = ("exp", "sigmoid") if on_cpu else ()
    if on_cpu and hasattr(config, "realize_cpu_opcount_threshold"):
        expensive += ("log", "log10", "log1p", "log2", "tanh")
    return StorePolicy(
        reads=find_threshold("acc_reads"),
        reused_reads=config.realize_reads_threshold,
        ops=find_threshold("opcount"),
        expensive_ops=frozenset(expensive),
    )
