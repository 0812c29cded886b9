"""Compile a Dynamo graph with our partitioner, by Inductor or by aot_eager."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import MappingProxyType, NoneType
from typing import Any, get_origin

import torch
from functorch.compile import make_boxed_func
from torch import fx
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.backends.debugging import boxed_nop
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config
from torch._inductor.compile_fx import compile_fx, compile_fx_inner
from torch._inductor.runtime.cache_dir_utils import cache_dir

from fxoffload.ops import OFFLOAD, OPS, PREFETCH, RELEASE, WAIT
from fxoffload.torch_internals.lowering import (
    call_directly,
    keep_strides,
    take_as_returned,
)
from fxoffload.torch_internals.marking import MarkPass, apply_marks, outside_of_regions
from fxoffload.torch_internals.partitioning import OffloadPartitioner
from fxoffload.torch_internals.scheduling import CountedByGraph, FusedAtLast, fuse_between_calls

_OFF_WHERE_MOVED = ("allow_buffer_reuse", "reorder_for_peak_memory")
_OFF_WHERE_TRAINED = ("layout_optimization",)
_PASSES = (
    "custom_partitioner_fn", "joint_custom_pre_pass", "_pre_fusion_custom_pass",
    "_post_fusion_custom_pass",
)  # fmt: skip
# The options of Inductor that compile_with_inductor sets.
SET_OPTIONS = frozenset((*_PASSES, *_OFF_WHERE_MOVED, *_OFF_WHERE_TRAINED))


def compile_with_inductor(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    partitioner: OffloadPartitioner,
    options: Mapping[str, Any] = MappingProxyType({}),
    *,
    inner_compile: Callable[..., Any] = compile_fx_inner,
) -> Callable[..., Any]:
    """Compile a Dynamo graph with Inductor and our partitioner.

    options: options of Inductor, none of SET_OPTIONS. inner_compile: compiles one partitioned
    graph.

    Three options of Inductor are off in graphs that move values. allow_buffer_reuse keeps dead
    buffers for later results of the same size where this does not raise the peak that Inductor
    predicts; but Inductor does not see the memory that transfers take, so the peak would exceed the
    planned one. reorder_for_peak_memory does not know of transfers, and would delay every prefetch
    to its wait. layout_optimization changes the strides of the inputs of convolutions; an offload
    would change them back by a copy. It is off in all graphs that are trained, so that results are
    the same whether values move or not. Source: torch._inductor.compile_fx.compile_fx.
    """
    patches: dict[str, Any] = {
        **options,
        "custom_partitioner_fn": partitioner,
        "joint_custom_pre_pass": MarkPass(inductor_config.joint_custom_pre_pass),
        "_pre_fusion_custom_pass": CountedByGraph(OPS),
        "_post_fusion_custom_pass": FusedAtLast(OPS),
    }

    def compile_one(graph: fx.GraphModule, *args: Any, **kwargs: Any) -> Any:
        off: list[str] = []
        with ExitStack() as stack:
            if any(node.target in OPS for node in graph.graph.nodes):
                off += _OFF_WHERE_MOVED
                stack.enter_context(fuse_between_calls())
            if not kwargs.get("is_inference"):
                off += _OFF_WHERE_TRAINED
            stack.enter_context(inductor_config.patch(dict.fromkeys(off, False)))
            return inner_compile(graph, *args, **kwargs)

    keep_strides(OFFLOAD)
    take_as_returned(WAIT)
    for op in (OFFLOAD, RELEASE, PREFETCH, WAIT):
        call_directly(op)
    with outside_of_regions():
        compiled = compile_fx(gm, inputs, inner_compile=compile_one, config_patches=patches)
    assert callable(compiled)
    return compiled


def list_inductor_modes() -> dict[str, dict[str, Any]]:
    """By mode of torch.compile: the options of Inductor that it sets.

    Source: torch._inductor.list_mode_options.
    """
    return torch._inductor.list_mode_options()


def list_inductor_options() -> dict[str, type]:
    """By name of an option of Inductor: its type; `object` for a type that is not checked.

    These are types with parameters, such as unions, which torch.compile does not check either.
    Source: torch._inductor.list_options, torch._TorchCompileInductorWrapper.apply_options.
    """
    config: Any = inductor_config
    types = {name: config.get_type(name) for name in torch._inductor.list_options()}

    def is_plain(kind: Any) -> bool:
        plain = isinstance(kind, type) and get_origin(kind) is None
        return plain and kind not in (Any, NoneType)

    return {name: kind if is_plain(kind) else object for name, kind in types.items()}


def compile_with_aot(
    gm: fx.GraphModule, inputs: Sequence[Any], partitioner: OffloadPartitioner
) -> Callable[..., Any]:
    """Compile a Dynamo graph as torch's `aot_eager` does, with our partitioner: no code generation.

    As with Inductor, the graphs drop each input once its last reader has run. torch's helper also
    handles two cases that AOTAutograd alone does not: inputs in lists (compiled autograd), and a
    backward that Dynamo must not trace. Source: torch._dynamo.backends.debugging.aot_eager.
    """

    def run(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        return boxed_nop(gm, list(example_inputs))

    def infer(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> Any:
        # Nothing partitions it.
        apply_marks(gm.graph)
        gm.recompile()
        return run(gm, example_inputs)

    compile_graph = aot_autograd(
        fw_compiler=run,
        bw_compiler=run,
        inference_compiler=infer,
        partition_fn=partitioner,
        keep_inference_input_mutations=True,
    )
    with outside_of_regions():
        return compile_graph(gm, inputs)


def trace_with_inductor(
    gm: fx.GraphModule,
    inputs: Sequence[Any],
    partitioner: OffloadPartitioner,
    options: Mapping[str, Any] = MappingProxyType({}),
) -> None:
    """Like compile_with_inductor up to the partitioned graphs; generates no code."""

    def skip(graph: fx.GraphModule, *_: Any, **__: Any) -> Callable[..., Any]:
        return make_boxed_func(graph.forward)

    # For a cached graph, AOTAutograd would not call the partitioner.
    with functorch_config.patch(enable_autograd_cache=False):
        compile_with_inductor(gm, inputs, partitioner, options, inner_compile=skip)


def find_cache_folder() -> Path:
    """The folder of Inductor's cache; files that are put here are deleted together with it.

    Source: torch._inductor.runtime.cache_dir_utils.
    """
    return Path(cache_dir())
