"""What fxoffload relies on in Inductor's lowerings: what it calls, what it stores, our ops."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest
import torch
from compiling import LOOP, MM, run_compiled, skip_code, two_outputs
from torch import Tensor, fx
from torch._inductor import lowering
from torch._inductor.graph import GraphLowering
from torch._inductor.ir import ComputedBuffer
from torch._inductor.virtualized import V
from torch._prims.rng_prims import run_and_save_rng_state
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.proxy_tensor import make_fx
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from toys import aten

from fxoffload.ops import DIRECT, OFFLOAD, OPS, PREFETCH, WAIT
from fxoffload.runtime import kernels
from fxoffload.torch_internals import (
    StorePolicy,
    call_directly,
    compile_with_inductor,
    find_store_policy,
    keep_strides,
    runs_alone,
    take_as_returned,
)
from fxoffload.torch_internals.lowering import _ADAPTED

CPU_POLICY = find_store_policy(torch.device("cpu"))


OTHERS = [torch.ones(64, 64) for _ in range(20)]


def sum_others(x: Tensor, reads: int) -> Tensor:
    return sum(OTHERS[: reads - 1], start=x)


def scale(x: Tensor, ops: int) -> Tensor:
    """A loop of so many ops: the read, the constant, and the products."""
    for _ in range(ops - 2):
        x = x * 1.5
    return x


@pytest.mark.slow
@pytest.mark.parametrize(
    ("loop", "is_stored"),
    [
        *((getattr(torch, op), True) for op in sorted(CPU_POLICY.expensive_ops)),
        *((op, False) for op in (torch.sin, torch.erf, torch.rsqrt)),
        (partial(sum_others, reads=CPU_POLICY.reused_reads), False),
        (partial(sum_others, reads=CPU_POLICY.reused_reads + 1), True),
        (partial(scale, ops=CPU_POLICY.ops), False),
        (partial(scale, ops=CPU_POLICY.ops + 1), True),
    ],
)
def test_what_inductor_stores_for_several_readers(
    find_order: Callable[..., list[str]], loop: Callable[[Tensor], Tensor], is_stored: bool
) -> None:
    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        result = loop(x)
        product = x @ x
        return result - product, result * product

    assert find_order(compute, arranges=True) == [LOOP] * is_stored + [MM, LOOP]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reads", "is_stored"), [(CPU_POLICY.reads, False), (CPU_POLICY.reads + 1, True)]
)
def test_what_inductor_stores_for_one_reader(
    find_order: Callable[..., list[str]], reads: int, is_stored: bool
) -> None:
    def compute(x: Tensor) -> Tensor:
        result = sum_others(x, reads)
        return result.sin() - x @ x

    assert find_order(compute, arranges=True) == [LOOP] * is_stored + [MM, LOOP]


@pytest.mark.slow
@pytest.mark.parametrize("accumulate", [True, False])
def test_inductor_stores_what_is_put_by_indices(
    find_order: Callable[..., list[str]], accumulate: bool
) -> None:
    """See graph.is_scatter."""
    index = torch.arange(64).flip(0)

    def compute(x: Tensor) -> Tensor:
        return torch.index_put(x, (index,), x.sin(), accumulate) - x @ x

    order = find_order(compute, arranges=True)
    assert order[order.index(MM) :] == [MM, LOOP]
    assert order[0] == LOOP


def test_thresholds_of_other_devices_and_releases() -> None:
    assert find_store_policy(torch.device("cuda")) == StorePolicy(8, 4, 30, frozenset())
    as_before_2_13 = {"realize_acc_reads_threshold": 6, "realize_opcount_threshold": 20}
    with torch._inductor.config.patch(as_before_2_13):
        policy = find_store_policy(torch.device("cpu"))
    assert (policy.reads, policy.ops) == (6, 20)
    assert policy.expensive_ops == CPU_POLICY.expensive_ops


def lower(function: Callable[..., object], *inputs: Tensor) -> GraphLowering:
    """Lower `function` by Inductor without code generation, as if passes had inserted its ops."""
    mode = FakeTensorMode(shape_env=ShapeEnv(), allow_non_fake_inputs=True)
    fakes = [mode.from_tensor(x) for x in inputs]
    gm = make_fx(function)(*fakes)
    for node in gm.graph.nodes:
        node.meta.pop("eager_input_vals", None)  # Which a pass would not know of.
    graph = GraphLowering(gm, shape_env=mode.shape_env)
    with V.set_fake_mode(mode), V.set_graph_handler(graph):
        graph.run(*fakes)
    return graph


def lower_wait(device: torch.device) -> tuple[set[str], str]:
    """What Inductor calls unaligned in a graph that waits for one value, and the value's name."""

    def wait(ticket: Tensor) -> Tensor:
        return WAIT(ticket, [8, 8], [8, 1], torch.float32, device)

    graph = lower(wait, torch.empty(1, dtype=torch.int64))
    (result,) = graph.graph_outputs
    return set(graph.unaligned_buffers), result.get_name()


def lower_offload() -> list[tuple[list[int], list[int]]]:
    """Sizes and strides of the loops in a graph that moves heads which a product reads too."""

    def attend(x: Tensor) -> tuple[Tensor, Tensor]:
        heads = aten.permute(aten.view(x, [2, 5, 3, 4]), [0, 2, 1, 3])
        copy = aten.clone(heads, memory_format=torch.contiguous_format)
        ticket = OFFLOAD(copy, "store", "copy", "nvme", True, 0)
        rows = aten.view(copy, [6, 5, 4])
        return ticket, aten.bmm(rows, aten.permute(rows, [0, 2, 1]))

    loops = [
        b for b in lower(attend, torch.empty(2, 5, 12)).buffers if isinstance(b, ComputedBuffer)
    ]
    return [(list(loop.get_size()), list(loop.get_stride())) for loop in loops]


@pytest.fixture
def unknown_ops() -> Iterator[None]:
    """Remove the lowerings of our ops from Inductor."""
    before = {op: lowering.lowerings.pop(op, None) for op in OPS}
    yield
    for op, function in before.items():
        lowering.lowerings.pop(op, None)
        if function is not None:
            lowering.lowerings[op] = function


def test_values_are_stored_with_the_strides_of_the_graph(unknown_ops: None) -> None:
    """By default Inductor stores the heads with other strides, and copies them for the product."""
    sizes = [2, 3, 5, 4]
    (first, *copies) = lower_offload()
    assert first == (sizes, [60, 4, 12, 1])
    assert len(copies) == 2
    for _ in range(2):  # The second call finds the first one's work.
        keep_strides(OFFLOAD)
        assert lower_offload() == [(sizes, [60, 20, 4, 1])]


@pytest.mark.parametrize("met", [True, False])
def test_values_on_cuda_are_taken_as_aligned(unknown_ops: None, met: bool) -> None:
    """Fake CUDA tensors; without our lowering the ticket, a CPU input, would spoil the value."""
    cuda = torch.device("cuda", 0)
    if met:
        unaligned, result = lower_wait(cuda)
        assert result in unaligned
    for _ in range(2):  # The second call finds the first one's work.
        take_as_returned(WAIT)
        unaligned, result = lower_wait(cuda)
        assert result not in unaligned
        assert len(unaligned) == 1  # The ticket.
    # Host tensors may come back at any address (see runtime/devices/host.py).
    unaligned, result = lower_wait(torch.device("cpu"))
    assert result in unaligned


def test_generated_code_calls_kernels_directly(unknown_ops: None) -> None:
    for _ in range(2):  # The second call finds the first one's work.
        call_directly(WAIT)
        graph = lower(
            lambda ticket: WAIT(ticket, [8], [1], torch.float32, torch.device("cpu")),
            torch.empty(1, dtype=torch.int64),
        )
        names = [getattr(each, "python_kernel_name", None) for each in graph.operations]
        assert "torch.ops.fxoffload.wait.default.direct" in names
    assert getattr(WAIT, DIRECT) is kernels._wait


def test_compiling_adapts_what_inductor_makes_of_the_ops(unknown_ops: None) -> None:
    run_compiled(two_outputs, compile_with_inductor, inner_compile=skip_code)
    unaligned, result = lower_wait(torch.device("cuda", 0))
    assert result not in unaligned
    assert len(lower_offload()) == 1
    for op in OPS:
        assert "call_directly" in str(getattr(lowering.lowerings[op], _ADAPTED))


@pytest.mark.parametrize(
    ("target", "alone"),
    [
        (aten.mm.default, True),
        (aten.addmm.default, True),
        (aten.convolution.default, True),
        (aten._scaled_dot_product_flash_attention_for_cpu.default, True),
        (aten._scaled_dot_product_flash_attention_for_cpu_backward.default, True),
        (aten.histc.default, True),
        (run_and_save_rng_state, True),
        (PREFETCH, True),  # An op that Inductor may not have met yet.
        (aten.sin.default, False),
        (aten.sum.dim_IntList, False),
        (aten.gather.default, False),
        (aten.var_mean.correction, False),
        (operator.getitem, False),
    ],
)
def test_what_runs_alone(target: Any, alone: bool) -> None:
    assert runs_alone(fx.Graph().call_function(target)) is alone
