"""The speeds of this machine as a CostModel: measured, or nominal ones that all ranks agree on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace

import torch

from fxoffload import runtime, torch_internals
from fxoffload.config import OffloadConfig
from fxoffload.cost import CostModel, DeviceSpeed, counts_flops
from fxoffload.graph import TrainingGraph, get_tensor
from fxoffload.planner.link import Link
from fxoffload.profile import Profile

# The delay of one transfer is that of a worker thread which waits for the interpreter lock: on a
# CPU while a compiled kernel runs; on a GPU, whose kernels are only started, while Python does.
TRANSFER_LATENCY_SECONDS = 0.02
GPU_TRANSFER_LATENCY_SECONDS = 0.002
# No thread of ours has a part in copies between a GPU and host memory.
GPU_COPY_LATENCY_SECONDS = 0.0002

# Vectors of bools are converted one by one. Source: VecMask in ATen/cpu/vec/vec_mask.h; core
# seconds by Inductor's kernel profile of a T5 with AVX-512, whose relu stores 8.4 million of them.
MASK_STORE_CORE_SECONDS = 1.6e-8
MASK_LOAD_CORE_SECONDS = 4e-9

# The ranks of one job choose their cuts by these numbers: a cut decides which collectives are
# computed again, so all ranks must choose the same one, and what each of them measures differs.
# They are those of one common GPU or CPU with one drive. What moves, a rank decides by its own.
_NOMINAL_SPEEDS = {"cpu": DeviceSpeed(5e11, 5e10), "cuda": DeviceSpeed(3e14, 2e12)}
_NOMINAL_LINKS = {
    "nvme": Link(2e9, 3e9, TRANSFER_LATENCY_SECONDS),
    "host": Link(2e10, 2e10, GPU_TRANSFER_LATENCY_SECONDS),
}


def measure_links(config: OffloadConfig) -> dict[str, Link]:
    """Bandwidth and latency from host memory to each tier.

    The same in every process, as compile caches need it.
    """
    tiers = {"nvme": runtime.choose_engine(config).bandwidth}
    if config.host_bytes and config.ioengine != "memory":
        tiers["host"] = runtime.probe_memory()
    return {tier: Link(*speed, TRANSFER_LATENCY_SECONDS) for tier, speed in tiers.items()}


def measure_cost(
    config: OffloadConfig,
    links: Mapping[str, Link],
    graph: TrainingGraph,
    profile: Profile | None = None,
) -> CostModel:
    """What the device of `graph` sustains, and what transfers over `links` take from it.

    The speed is that at the dtype of the first matrix product. Measured once on a machine, so that
    every process plans with the same numbers. Raises as measure_links.
    """
    device, dtype = _find_device(graph)
    with torch_internals.outside_of_tracing():
        speed = DeviceSpeed(*runtime.recall_speed(device, dtype), *_find_mask_seconds(device))
        # The cores that transfers take from are those of the graph; the host tier's no others.
        if device.type == "cpu":
            taken = runtime.recall_contention(config).mean
            links = {
                tier: replace(link, compute_seconds_per_byte=taken) for tier, link in links.items()
            }
        elif device.type == "cuda":
            links = _go_through(links, config, runtime.recall_exchange(device))
    return CostModel(links, speed, profile)


def find_nominal_cost(links: Iterable[str], graph: TrainingGraph) -> CostModel:
    """Numbers that nobody measured: equal for equal graphs, whatever the machine.

    links: the tiers that there are.
    """
    device, _ = _find_device(graph)
    speed = _NOMINAL_SPEEDS.get(device.type, _NOMINAL_SPEEDS["cpu"])
    return CostModel({tier: _NOMINAL_LINKS[tier] for tier in links}, speed)


def _find_device(graph: TrainingGraph) -> tuple[torch.device, torch.dtype]:
    """Where the graph computes, and the dtype of its first matrix product."""
    device, dtype = torch.device("cpu"), torch.float32
    for node in graph.forward.graph.nodes:
        tensor = get_tensor(node)
        if tensor is not None and tensor.is_floating_point():
            device = tensor.device
            if counts_flops(node):
                return device, tensor.dtype
    return device, dtype


def _find_mask_seconds(device: torch.device) -> tuple[float, float]:
    """Of one bool that a fused loop stores, and of one that it loads; see DeviceSpeed."""
    if device.type != "cpu":
        return 0.0, 0.0
    threads = torch.get_num_threads()
    return MASK_STORE_CORE_SECONDS / threads, MASK_LOAD_CORE_SECONDS / threads


def _go_through(
    links: Mapping[str, Link], config: OffloadConfig, exchange: runtime.Bandwidth
) -> dict[str, Link]:
    """`links` from a GPU, whose own copies fill host memory; a drive is no faster than they are."""
    found: dict[str, Link] = {}
    for tier, link in links.items():
        if tier == "host" or (config.ioengine == "memory" and not config.checksum):
            found[tier] = Link(*exchange, GPU_COPY_LATENCY_SECONDS)
        else:
            write = min(link.write_bytes_per_second, exchange.write)
            read = min(link.read_bytes_per_second, exchange.read)
            found[tier] = Link(write, read, GPU_TRANSFER_LATENCY_SECONDS)
    return found
