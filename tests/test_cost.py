"""CostModel: seconds of nodes and of transfers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import toys
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import fx
from torch._higher_order_ops.flex_attention import flex_attention, flex_attention_backward
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.fx.experimental.symbolic_shapes import ShapeEnv
from torch.utils.flop_counter import flop_registry
from toys import Half, Sketch, aten

from fxoffload.cost import CostModel, DeviceSpeed, counts_flops
from fxoffload.graph import TrainingGraph
from fxoffload.ops import OFFLOAD
from fxoffload.planner.link import Link

# One FLOP and one byte a second: seconds are counts.
FLOPS = CostModel(links={}, speed=DeviceSpeed(1.0, 1e30))
BYTES = CostModel(links={}, speed=DeviceSpeed(1e30, 1.0))


def make_node(target: Any, *sizes: tuple[int, ...], **kwargs: Any) -> fx.Node:
    half: Half = Sketch().forward
    inputs = [half.input(f"x{index}", torch.empty(size)) for index, size in enumerate(sizes)]
    return half.call(target, *inputs, **kwargs)


def test_link() -> None:
    link = Link(write_bytes_per_second=100, read_bytes_per_second=50, latency_seconds=0.5)
    assert link.write_seconds(200) == 2.0
    assert link.read_seconds(200) == 4.0
    assert link.round_trip_seconds(200) == 7.0


def test_matrix_product_is_arithmetic() -> None:
    node = make_node(aten.mm.default, (3, 5), (5, 7))
    assert FLOPS.node_seconds(node, traffic_bytes=10) == 2 * 3 * 5 * 7


def test_pointwise_is_traffic() -> None:
    node = make_node(aten.sin.default, (3, 5))
    assert BYTES.node_seconds(node, traffic_bytes=120) == 120
    assert BYTES.node_seconds(node, traffic_bytes=0) == 0.0, "fused: in registers"
    assert FLOPS.node_seconds(node, traffic_bytes=120) < 1e-20


def test_the_slower_of_both_counts() -> None:
    node = make_node(aten.mm.default, (3, 5), (5, 7))
    both = CostModel(links={}, speed=DeviceSpeed(1.0, 1.0))
    assert both.node_seconds(node, traffic_bytes=84) == 2 * 3 * 5 * 7
    assert both.node_seconds(node, traffic_bytes=840) == 840


def test_masks_take_time_beside_their_bytes() -> None:
    slow = CostModel(links={}, speed=DeviceSpeed(1.0, 1.0, 3.0, 2.0))
    assert slow.mask_seconds(stored=10, loaded=5) == 40.0
    assert BYTES.mask_seconds(stored=10, loaded=5) == 0.0
    node = make_node(aten.sin.default, (3, 5))
    assert slow.node_seconds(node, traffic_bytes=120, mask_seconds=40.0) == 160.0


def test_what_costs_nothing() -> None:
    (placeholder,) = make_node(aten.t.default, (3, 5)).all_input_nodes
    assert BYTES.node_seconds(placeholder, traffic_bytes=60) == 0.0
    half = Sketch().forward
    x = half.input("x", torch.empty(4))
    offload = half.call(OFFLOAD, x, "store", "x", "nvme", True, 0)
    assert BYTES.node_seconds(offload, traffic_bytes=16) == 0.0


def test_attention() -> None:
    """Two products forward, five backward, for the kernel that the CPU takes."""
    graph = toys.trace(toys.sdpa, toys.make_input())
    products = 2 * 1 * 2 * 16 * 16 * 8  # batch, heads, query, key, dim
    packet = aten._scaled_dot_product_flash_attention_for_cpu
    forward = toys.find_by_target(graph.forward.graph, packet.default)
    assert FLOPS.node_seconds(forward, 0) == 2 * products
    packet = aten._scaled_dot_product_flash_attention_for_cpu_backward
    backward = toys.find_by_target(graph.backward.graph, packet.default)
    assert FLOPS.node_seconds(backward, 0) == 5 * products


def test_symbolic_sizes_count_by_their_hint() -> None:
    x = toys.make_input(8)
    torch._dynamo.mark_dynamic(x, 0)
    graph = toys.trace(toys.deep, x)
    node = next(n for n in graph.forward.graph.nodes if n.target is aten.mm.default)
    assert FLOPS.node_seconds(node, 0) == 2 * 8 * 16 * 16


# Of every op of torch's registry: its tensors with `n` rows, its other arguments, and its result.
Shape = tuple[Any, ...]
Call = tuple[list[Shape], list[Any], Shape | list[Shape]]


def convolve(n: Any) -> tuple[list[Shape], Shape]:
    return [(n, 4, 9, 9), (6, 4, 3, 3)], (n, 6, 7, 7)


def attend(n: Any, *, tensors: int, of_lengths: bool = False) -> list[Shape]:
    """Query, key, value, and gradients or results of that shape."""
    return [(n, 5, 2, 8) if of_lengths else (2, 5, n, 8)] * tensors


WINDOW = [[1, 1], [0, 0], [1, 1]]
CALLS: dict[Any, Callable[[Any], Call]] = {
    aten.mm: lambda n: ([(n, 5), (5, 7)], [], (n, 7)),
    aten.addmm: lambda n: ([(7,), (n, 5), (5, 7)], [], (n, 7)),
    aten.bmm: lambda n: ([(3, n, 5), (3, 5, 7)], [], (3, n, 7)),
    aten.baddbmm: lambda n: ([(3, n, 7), (3, n, 5), (3, 5, 7)], [], (3, n, 7)),
    aten._scaled_mm: lambda n: ([(n, 16), (16, 32), (), ()], [], (n, 32)),
    **{
        packet: lambda n: (convolve(n)[0], [None, *WINDOW, False, [0, 0], 1], convolve(n)[1])
        for packet in (aten.convolution, aten._convolution, aten.convolution_overrideable)
    },
    aten.cudnn_convolution: lambda n: (
        convolve(n)[0], [[0, 0], [1, 1], [1, 1], 1, False, False, False], convolve(n)[1]
    ),
    aten._slow_conv2d_forward: lambda n: (
        convolve(n)[0], [[3, 3], None, [1, 1], [0, 0]], convolve(n)[1]
    ),
    aten.convolution_backward: lambda n: (
        [convolve(n)[1], *convolve(n)[0]],
        [None, *WINDOW, False, [0, 0], 1, [True, True, False]],
        [(n, 4, 9, 9), (6, 4, 3, 3)],
    ),
    **{
        packet: lambda n: (attend(n, tensors=3), [], (2, 5, n, 8))
        for packet in (
            aten._scaled_dot_product_efficient_attention,
            aten._scaled_dot_product_flash_attention,
            aten._scaled_dot_product_cudnn_attention,
            flex_attention,
        )
    },
    **{
        packet: lambda n: (attend(n, tensors=4), [], (2, 5, n, 8))
        for packet in (
            aten._scaled_dot_product_efficient_attention_backward,
            aten._scaled_dot_product_flash_attention_backward,
            aten._scaled_dot_product_cudnn_attention_backward,
        )
    },
    flex_attention_backward: lambda n: (
        [*attend(n, tensors=4), (2, 5, n), (2, 5, n, 8)], [], (2, 5, n, 8)
    ),
    aten._flash_attention_forward: lambda n: (
        attend(n, tensors=3, of_lengths=True), [None, None, 5, 5], (n, 5, 2, 8)
    ),
    aten._efficient_attention_forward: lambda n: (
        attend(n, tensors=3, of_lengths=True), [None, None, None, 5, 5], (n, 5, 2, 8)
    ),
    aten._flash_attention_backward: lambda n: (
        attend(n, tensors=6, of_lengths=True), [None, None, 5, 5], (n, 5, 2, 8)
    ),
    aten._efficient_attention_backward: lambda n: (
        attend(n, tensors=4, of_lengths=True), [None, (n, 5, 2, 8), None, None, 5, 5], (n, 5, 2, 8)
    ),
}  # fmt: skip


def find_flops(packet: Any, n: Any, mode: FakeTensorMode) -> float:
    shapes, others, result = CALLS[packet](n)
    graph = fx.Graph()
    with mode:
        tensors = []
        for index, shape in enumerate(shapes):
            tensors.append(graph.placeholder(f"x{index}"))
            tensors[-1].meta["val"] = torch.empty(shape)
        others = [torch.empty(each) if isinstance(each, tuple) else each for each in others]
        node = graph.create_node("call_function", packet, (*tensors, *others))
        several = isinstance(result, list)
        node.meta["val"] = [*map(torch.empty, result)] if several else torch.empty(result)
    assert counts_flops(node)
    return FLOPS.node_seconds(node, 0)


@pytest.mark.parametrize("packet", [packet for packet in flop_registry], ids=str)
@settings(max_examples=10)
@given(largest=st.integers(2, 1000))
def test_sizes_that_depend_on_data_count_as_the_largest(packet: Any, largest: int) -> None:
    """In the formula of every op that torch's registry has: a new one belongs in CALLS."""
    if str(packet) not in {str(each) for each in CALLS}:
        assert "varlen" in str(packet) or "torch_attn" in str(packet), "an op without a call"
        return
    shapes = ShapeEnv()
    size = shapes.create_unbacked_symint()
    torch._check(size >= 0)
    torch._check(size <= largest)
    found = find_flops(packet, size, FakeTensorMode(shape_env=shapes))
    assert found == find_flops(packet, largest, FakeTensorMode())
    # Torch's formula for this one does not take the arguments of the op.
    assert (found > 0) == (packet is not aten._slow_conv2d_forward)


def test_every_node_of_the_zoo_has_a_time(zoo_graph: TrainingGraph) -> None:
    cost = CostModel(links={}, speed=toys.CPU_SPEED)
    for module in (zoo_graph.forward, zoo_graph.backward):
        seconds = [cost.node_seconds(node, 1000) for node in module.graph.nodes]
        assert all(0.0 <= second < 1.0 for second in seconds)
        assert sum(seconds) > 0
