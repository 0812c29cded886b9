"""What fxoffload relies on in Dynamo: kept graphs, tracing without memory, errors."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, fx

from fxoffload import errors
from fxoffload.torch_internals import (
    DynamoGraph,
    Graphs,
    OffloadPartitioner,
    PartitionFunction,
    as_user_error,
    compile_with_inductor,
    keep_dynamo_graph,
    skip_frame,
    trace_with_inductor,
    unlimited_recompiles,
    without_memory,
)


def test_a_kept_dynamo_graph_compiles_again_without_dynamo() -> None:
    """To the same results and static inputs, and what another process would then find in caches."""
    kept: list[tuple[DynamoGraph, Sequence[Any]]] = []
    static: list[tuple[int, ...]] = []

    def choose(partition: PartitionFunction, count: int, indices: tuple[int, ...]) -> Graphs:
        static.append(indices)
        return partition(None)

    def build(gm: fx.GraphModule, inputs: Sequence[Any], identity: str) -> Callable[..., Any]:
        partitioner = OffloadPartitioner(choose, identity)
        return compile_with_inductor(gm, inputs, partitioner)

    def keep(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        graph = keep_dynamo_graph(gm)
        assert graph is not None
        kept.append((graph, inputs))
        return build(gm, inputs, "first")  # Which changes gm.

    torch.manual_seed(0)
    model, x = torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Tanh()), torch.randn(4, 8)
    parameters = list(model.parameters())
    with torch._inductor.utils.fresh_cache():
        expected = torch.compile(model, backend=keep)(x)
        gradients = torch.autograd.grad(expected.sum(), parameters)
        ((graph, inputs),) = kept
        with graph.compiling(inputs) as gm:
            again = build(gm, inputs, "second")
        assert len(static) == 2
        assert static[0] == static[1]
        assert len(static[0]) == 2
        (result,) = again(*inputs)
        torch.testing.assert_close(result, expected)
        torch.testing.assert_close(torch.autograd.grad(result.sum(), parameters), gradients)
        torch._dynamo.reset()
        backend = partial(build, identity="second")
        torch.testing.assert_close(torch.compile(model, backend=backend)(x), expected)
        assert len(static) == 2  # Nothing was partitioned: it came out of the cache.


def test_a_kept_dynamo_graph_is_traced_without_its_inputs() -> None:
    kept: list[DynamoGraph | None] = []
    saved: list[int] = []

    def choose(partition: PartitionFunction, count: int, indices: tuple[int, ...]) -> Graphs:
        for cut in (None, 0.0):
            forward, _ = partition(cut)
            (results,) = next(iter(forward.graph.find_nodes(op="output"))).args
            saved.append(len(results) - count)
        return partition(None)

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        kept.append(keep_dynamo_graph(gm))
        return gm.forward

    x = torch.randn(4, 8, requires_grad=True)
    torch.compile(lambda x: (x @ x.T).sin().exp() @ x, backend=backend)(x)
    (graph,) = kept
    assert graph is not None
    with graph.compiling(graph.fakes) as gm:
        trace_with_inductor(gm, graph.fakes, OffloadPartitioner(choose, "traced"))
    own, least = saved
    assert least < own


def test_a_dynamo_graph_of_symbolic_sizes_is_not_kept() -> None:
    kept: list[DynamoGraph | None] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        kept.append(keep_dynamo_graph(gm))
        return gm.forward

    torch.compile(lambda x: x.sin() * x.shape[0], backend=backend, dynamic=True)(torch.randn(4, 8))
    assert kept == [None]


@pytest.mark.parametrize("kind", [errors.ConfigError, errors.StoreFull])
def test_user_error_passes_through_torch_compile(kind: type[errors.OffloadError]) -> None:
    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        raise as_user_error(kind("subject: fact; remedy"))

    with pytest.raises(kind) as caught:
        torch.compile(torch.sin, backend=backend)(torch.ones(2))
    assert type(caught.value).__name__ == kind.__name__
    shown = traceback.format_exception_only(caught.value)
    assert shown == [f"fxoffload.errors.{kind.__name__}: subject: fact; remedy\n"]


def test_user_error_keeps_what_it_knows() -> None:
    error = errors.BudgetError("subject: fact; remedy")
    error.lowest_peak_bytes = 17
    shown = as_user_error(error)
    assert isinstance(shown, errors.BudgetError)
    assert shown.lowest_peak_bytes == 17


def test_plain_error_is_wrapped() -> None:
    """Why as_user_error exists; should torch stop wrapping, it can go."""

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        raise errors.ConfigError("subject: fact; remedy")

    with pytest.raises(torch._dynamo.exc.BackendCompilerFailed):
        torch.compile(torch.sin, backend=backend)(torch.ones(2))


def test_tensors_without_memory() -> None:
    with torch.device("meta"):
        module = torch.nn.Linear(2**20, 2**20)  # Four TiB.
    module.bias.requires_grad_(False)
    with without_memory() as copy_without_memory:
        shadow = copy_without_memory(module)
        x, (y, one) = copy_without_memory((torch.ones(2, 2**20).t(), [torch.ones(3), 1]))
        made = shadow(x.t())
    assert (shadow.weight.device.type, shadow.weight.size()) == ("cpu", module.weight.size())
    assert isinstance(shadow.weight, torch.nn.Parameter)
    assert (shadow.weight.requires_grad, shadow.bias.requires_grad) == (True, False)
    assert (x.stride(), y.size(), one) == ((1, 2**20), (3,), 1)
    assert made.size() == (2, 2**20)
    assert module.weight.device.type == "meta"


def test_tied_parameters_stay_tied_without_memory() -> None:
    module = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.Linear(4, 4))
    module[1].weight = module[0].weight
    with without_memory() as copy_without_memory:
        shadow = copy_without_memory(module)
    assert shadow[0].weight is shadow[1].weight


def test_every_size_is_traced_anew() -> None:
    """At its limit Dynamo would run further sizes in eager mode."""
    traced: list[int] = []

    def backend(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        traced.append(inputs[0].size(0))
        return gm.forward

    def double(x: Tensor) -> Tensor:
        return 2 * x

    sizes = list(range(2, 2 + 2 * torch._dynamo.config.recompile_limit))
    compiled = torch.compile(double, backend=backend, dynamic=False)
    with unlimited_recompiles():
        for size in sizes:
            compiled(torch.ones(size))
    assert traced == sizes


def test_a_skipped_frame_runs_uncompiled_and_is_traced_within_others(fresh_dynamo: None) -> None:
    compiled: list[fx.GraphModule] = []

    def backend(gm: fx.GraphModule, inputs: object) -> fx.GraphModule:
        compiled.append(gm)
        return gm

    def add_one(x: Tensor) -> Tensor:
        return x + (1.0 if torch.compiler.is_compiling() else 2.0)

    skip_frame(add_one)
    x = torch.zeros(3)
    assert torch.compile(add_one, backend=backend)(x).sum() == 6.0
    assert not compiled
    outer = torch.compile(lambda x: add_one(x) * 2.0, backend=backend, fullgraph=True)
    assert outer(x).sum() == 6.0
    assert len(compiled) == 1
