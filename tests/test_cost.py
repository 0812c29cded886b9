"""CostModel: seconds of nodes and of transfers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toys
from torch import fx
from toys import Half, Sketch, aten

from fxoffload.cost import CostModel, DeviceSpeed, Link, count_scratch_bytes
from fxoffload.graph import TrainingGraph
from fxoffload.ops import OFFLOAD

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


def test_every_node_of_the_zoo_has_a_time(zoo_graph: TrainingGraph) -> None:
    cost = CostModel(links={}, speed=toys.CPU_SPEED)
    for module in (zoo_graph.forward, zoo_graph.backward):
        seconds = [cost.node_seconds(node, 1000) for node in module.graph.nodes]
        assert all(0.0 <= second < 1.0 for second in seconds)
        assert sum(seconds) > 0


@pytest.mark.parametrize(
    "packet",
    [
        aten._scaled_dot_product_cudnn_attention_backward,
        aten._scaled_dot_product_flash_attention_backward,
    ],
)
def test_the_backward_of_attention_adds_up_in_float32(packet: Any) -> None:
    """The gradient of the queries, and a sum for each row of its softmax."""
    half = Sketch().forward
    gradient, query = (half.input(name, torch.empty(2, 3, 16, 8)) for name in "gq")
    node = half.graph.call_function(packet.default, (gradient, query))
    assert count_scratch_bytes(node) == 4 * 2 * 3 * 16 * (8 + 1)
    assert count_scratch_bytes(half.call(aten.sin.default, query)) == 0
