"""The cost model: the seconds of a node, by a roofline of the device.

It is coarse. The partition of a graph is chosen by it. Schedules use it only for nodes that were
not measured: from the first step on, they have the clocks of the ops.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch.utils._pytree import tree_map
from torch.utils.flop_counter import flop_registry

from fxoffload.graph import get_tensor
from fxoffload.hardware import Hardware
from fxoffload.ops import OPS
from fxoffload.planner.link import Link
from fxoffload.torch_internals.tensor_sizes import guess_int, is_strided

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class DeviceSpeed:
    """The sustained speed of one device.

    flops_per_second: a multiply-add counts as two. memory_bytes_per_second: read and written.
    mask_store_seconds, mask_load_seconds: the extra time of a fused loop for each bool that it
    stores, and for each that it loads, beyond the memory traffic.
    """

    flops_per_second: float
    memory_bytes_per_second: float
    mask_store_seconds: float = 0.0
    mask_load_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class CostModel:
    """The speeds that a plan is made by.

    links: to each tier. speed: of the device that computes.
    """

    links: Mapping[str, Link]
    speed: DeviceSpeed

    def mask_seconds(self, stored: int, loaded: int) -> float:
        """The extra seconds of fused loops that store and load so many bools; see DeviceSpeed."""
        return stored * self.speed.mask_store_seconds + loaded * self.speed.mask_load_seconds

    def node_seconds(
        self, node: fx.Node, traffic_bytes: int, *, mask_seconds: float = 0.0
    ) -> float:
        """Seconds of `node`: the larger of arithmetic and memory time.

        traffic_bytes: bytes that the node reads from and writes to memory; 0 for a view, and for a
        result that a fused loop keeps in registers. mask_seconds: from the method of this name.
        Symbolic sizes count by guess_int.
        """
        if node.op != "call_function" or node.target in OPS:
            return 0.0
        return max(
            _count_flops(node) / self.speed.flops_per_second,
            traffic_bytes / self.speed.memory_bytes_per_second + mask_seconds,
        )


def make_cost_model(hardware: Hardware, *, with_host_tier: bool = False) -> CostModel:
    """The CostModel of stated hardware, whose transfers take nothing from compute."""
    link = float(hardware.host_link_bytes_per_second)
    latency = hardware.transfer_latency_seconds
    write = float(hardware.drive_write_bytes_per_second)
    read = float(hardware.drive_read_bytes_per_second)
    links = {"nvme": Link(min(write, link), min(read, link), latency)}
    if with_host_tier:
        links["host"] = Link(link, link, latency)
    speed = DeviceSpeed(float(hardware.flops_per_second), float(hardware.memory_bytes_per_second))
    return CostModel(links=links, speed=speed)


def counts_flops(node: fx.Node) -> bool:
    """Whether torch.utils.flop_counter knows the op of `node`, such as a matrix product."""
    return _find_packet(node) in flop_registry


def _find_packet(node: fx.Node) -> Any:
    """The key of the op of `node` in torch's FLOP registry: its packet, or the higher-order op."""
    return getattr(node.target, "overloadpacket", node.target)


def _count_flops(node: fx.Node) -> float:
    packet = _find_packet(node)
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu:
        return _attention_flops(node, products=2)
    if packet is torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward:
        return _attention_flops(node, products=5)
    tensors = [x for x in map(get_tensor, [node, *node.all_input_nodes]) if x is not None]
    if packet not in flop_registry or not all(map(is_strided, tensors)):
        return 0.0
    args = tree_map(_concretise, node.args)
    kwargs = tree_map(_concretise, node.kwargs)
    out = tree_map(_concretise, node.meta.get("val"))
    try:
        return float(flop_registry[packet](*args, **kwargs, out_val=out))
    except TypeError as error:  # torch 2.13 raises it for aten._slow_conv2d_forward.
        log.info("torch's FLOP formula does not take the arguments of %s: %s", packet, error)
        return 0.0


def _attention_flops(node: fx.Node, *, products: int) -> float:
    """FLOPs of `products` matrix products of attention, for the CPU kernels.

    torch's registry does not have these. The first tensor arguments are query, key and value, each
    (batch, heads, length, dim); in the backward, the output's gradient is before them.
    """
    tensors = [arg.meta["val"] for arg in node.args[:4] if isinstance(arg, fx.Node)]
    first = tensors[0]
    batch, heads, query_length, dim = (guess_int(size) for size in first.size())
    key_length = guess_int(tensors[-1].size(2))
    return 2.0 * products * batch * heads * query_length * key_length * dim


def _concretise(value: Any) -> Any:
    """An argument for a FLOP formula: a meta tensor or an int, its sizes made ints by guess_int."""
    if isinstance(value, fx.Node):
        return tree_map(_concretise, value.meta.get("val"))
    if isinstance(value, torch.Tensor):
        size = [guess_int(size) for size in value.size()]
        return torch.empty(size, dtype=value.dtype, device="meta")
    if isinstance(value, torch.SymInt):
        return guess_int(value)
    return value
