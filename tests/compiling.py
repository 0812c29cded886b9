"""Compile small functions with a partitioner of their own, and look at what comes of them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from functorch.compile import make_boxed_func
from torch import Tensor, fx
from toys import WEIGHT, make_input

from fxoffload.torch_internals import (
    Graphs,
    OffloadPartitioner,
    PartitionFunction,
    compile_with_inductor,
    trace_with_inductor,
)

# What code of Inductor calls: a product, a loop, and an op that stands for ours.
MM, LOOP, OURS = "extern_kernels.mm", "cpp_fused", "aten.histc"


class Recorder:
    """Takes the partition of `share` as it is, and keeps what it was given."""

    def __init__(self, share: float | None = None) -> None:
        self.share = share
        self.calls: list[tuple[fx.GraphModule, fx.GraphModule, int, tuple[int, ...]]] = []

    def __call__(self, partition: PartitionFunction, count: int, static: Any) -> Graphs:
        forward, backward = partition(self.share)
        self.calls.append((forward, backward, count, static))
        return forward, backward


def run_compiled(
    function: Callable[..., Any], compiler: Callable[..., Any], **options: Any
) -> tuple[Recorder, Any]:
    recorder = Recorder()

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        return compiler(gm, inputs, OffloadPartitioner(recorder, "test"), **options)

    return recorder, torch.compile(function, backend=backend)(make_input())


def two_outputs(x: Tensor) -> tuple[Tensor, Tensor]:
    h = (x @ WEIGHT).tanh()
    return h.sin(), h.sum()


def trace_only(
    gm: fx.GraphModule, inputs: Sequence[Any], partitioner: OffloadPartitioner
) -> Callable[..., Any]:
    forward = copy.deepcopy(gm).forward
    trace_with_inductor(gm, inputs, partitioner)
    return forward


def compile_plainly(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
    return compile_with_inductor(gm, inputs, OffloadPartitioner(Recorder(), "plain"))


def skip_code(gm: fx.GraphModule, *_: Any, **__: Any) -> Callable[..., Any]:
    return make_boxed_func(gm.forward)
