"""The speeds of this machine as a CostModel: measured, or nominal ones that all ranks agree on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from fxoffload import runtime, torch_internals
from fxoffload.config import OffloadConfig
from fxoffload.cost import CostModel, DeviceSpeed, counts_flops, make_cost_model
from fxoffload.graph import TrainingGraph, get_tensor
from fxoffload.planner.link import Link

# The latency of a transfer is the time that a worker thread waits for the interpreter lock. On a
# CPU it waits while a compiled kernel runs; on a GPU, where kernels run asynchronously, only while
# Python code runs.
TRANSFER_LATENCY_SECONDS = 0.02
GPU_TRANSFER_LATENCY_SECONDS = 0.002
# Copies between a GPU and host memory need no worker thread.
GPU_COPY_LATENCY_SECONDS = 0.0002

# Core seconds for each bool: torch converts vectors of bools element by element. Source: VecMask in
# ATen/cpu/vec/vec_mask.h; measured by Inductor's kernel profile of a T5 with AVX-512, whose relu
# stores 8.4 million bools.
MASK_STORE_CORE_SECONDS = 1.6e-8
MASK_LOAD_CORE_SECONDS = 4e-9

# The ranks of one job choose their cuts by these numbers, which are those of a common GPU or CPU
# with one drive. A cut decides which collectives are recomputed, so all ranks must choose the same
# one, but their measured numbers differ. By its measured numbers, a rank decides what moves.
_NOMINAL_SPEEDS = {"cpu": DeviceSpeed(5e11, 5e10), "cuda": DeviceSpeed(3e14, 2e12)}
_NOMINAL_HOST_BYTES = 2**36
_NOMINAL_LINKS = {
    "nvme": Link(2e9, 3e9, TRANSFER_LATENCY_SECONDS),
    "host": Link(2e10, 2e10, GPU_TRANSFER_LATENCY_SECONDS),
}


def is_distributed() -> bool:
    """Whether this process is one of several ranks of a torch.distributed job."""
    return (
        torch.distributed.is_available()
        and torch.distributed.is_initialized()
        and torch.distributed.get_world_size() > 1
    )


def measure_links(config: OffloadConfig) -> dict[str, Link]:
    """Bandwidth and latency between host memory and each tier, by tier.

    Raises the errors of runtime.choose_engine.
    """
    tiers = {"nvme": runtime.choose_engine(config).bandwidth}
    if config.host_bytes and config.ioengine != "memory":
        tiers["host"] = runtime.probe_memory()
    return {tier: Link(*speed, TRANSFER_LATENCY_SECONDS) for tier, speed in tiers.items()}


def measure_cost(config: OffloadConfig, graph: TrainingGraph) -> CostModel:
    """The CostModel of the device of `graph`: its speed, and the links as seen from this device.

    The speed is measured with the dtype of the first matrix product. On a CPU the links include the
    compute time that a transfer takes from the cores; on a GPU they include the bus. Where the
    options state hardware, nothing is measured. Raises the errors of measure_links.
    """
    stated = find_stated_cost(config)
    if stated is not None:
        return stated
    device, dtype = find_device(graph)
    with torch_internals.outside_of_tracing():
        speed = DeviceSpeed(*runtime.recall_speed(device, dtype), *_find_mask_seconds(device))
        return CostModel(find_links(config, device), speed)


def find_device_limit(config: OffloadConfig, device: torch.device) -> int | None:
    """Bytes that everything on `device` may take by `config`; None without a limit."""
    limit = config.device_memory
    if isinstance(limit, float):
        return int(limit * runtime.find_device_bytes(device))
    assert not isinstance(limit, str)
    return limit


def find_room(config: OffloadConfig, device: torch.device) -> int | None:
    """Bytes that the limit of find_device_limit leaves free on `device`; None without a limit.

    Also None if the device does not count what is on it.
    """
    limit, held_bytes = find_device_limit(config, device), count_held_bytes(device)
    return None if limit is None or held_bytes is None else max(0, limit - held_bytes)


def count_held_bytes(device: torch.device) -> int | None:
    """Bytes that this process and others have on `device`; None if it does not count them."""
    live_bytes = runtime.count_live_bytes(device)
    return None if live_bytes is None else live_bytes + runtime.count_foreign_bytes(device)


def find_links(config: OffloadConfig, device: torch.device) -> dict[str, Link]:
    """Links by tier as transfers from `device` see them, and what they take from its compute.

    If the options state hardware, these are its links. Must not be called while tracing. Raises as
    measure_links.
    """
    stated = find_stated_cost(config)
    if stated is not None:
        return dict(stated.links)
    links = measure_links(config)
    # Transfers to all tiers, the host tier included, run on the cores that compute the graph.
    if device.type == "cpu":
        taken = runtime.recall_contention(config).mean
        return {tier: replace(link, compute_seconds_per_byte=taken) for tier, link in links.items()}
    if device.type == "cuda":
        exchange = runtime.recall_exchange(device)
        bus = Link(*exchange, GPU_COPY_LATENCY_SECONDS, 0.0, *exchange)
        has_default = find_default_host_bytes(config, device) is not None
        tiers = {**links, "host": bus} if has_default else links
        return _go_through(tiers, config, bus)
    return links


def find_default_host_bytes(config: OffloadConfig, device: torch.device) -> int | None:
    """Bytes of the host tier that values of a GPU have where no option says it; else None.

    Stated hardware has none: its plans must not depend on the memory that is available here.
    """
    may_choose = config.host_bytes is None and config.stated_hardware is None
    if may_choose and device.type == "cuda" and config.ioengine != "memory":
        return runtime.find_host_share()
    return None


def find_host_bytes(
    config: OffloadConfig, links: Iterable[str], *, is_nominal: bool = False
) -> int:
    """Bytes of the host tier; 0 where `links`, the names of the tiers, have none.

    is_nominal: where no option says it, the number that all ranks agree on.
    """
    if "host" not in links:
        return 0
    if config.host_bytes is not None:
        return config.host_bytes
    return _NOMINAL_HOST_BYTES if is_nominal else runtime.find_host_share()


def find_stated_cost(config: OffloadConfig) -> CostModel | None:
    """The CostModel of the hardware that the options state; None where they state none."""
    if config.stated_hardware is None:
        return None
    return make_cost_model(config.stated_hardware, with_host_tier=config.host_bytes is not None)


def find_nominal_cost(links: Iterable[str], graph: TrainingGraph) -> CostModel:
    """A CostModel of nominal numbers: equal for equal graphs on every machine.

    links: the names of the tiers.
    """
    device, _ = find_device(graph)
    speed = _NOMINAL_SPEEDS.get(device.type, _NOMINAL_SPEEDS["cpu"])
    return CostModel(find_nominal_links(links), speed)


def find_nominal_links(tiers: Iterable[str]) -> dict[str, Link]:
    """Nominal links by tier, equal on every machine like those of find_nominal_cost."""
    return {tier: _NOMINAL_LINKS[tier] for tier in tiers}


def find_device(graph: TrainingGraph) -> tuple[torch.device, torch.dtype]:
    """The device on which the graph computes, and the dtype of its first matrix product."""
    device, dtype = torch.device("cpu"), torch.float32
    for node in graph.forward.graph.nodes:
        tensor = get_tensor(node)
        if tensor is not None and tensor.is_floating_point():
            device = tensor.device
            if counts_flops(node):
                return device, tensor.dtype
    return device, dtype


def find_compute_device(inputs: Sequence[Any]) -> torch.device:
    """The device of a graph with these inputs: a GPU if one is among them, else the first one's."""
    devices = [x.device for x in inputs if isinstance(x, torch.Tensor)]
    found = [device for device in devices if device.type == "cuda"] or devices
    return found[0] if found else torch.device("cpu")


def _find_mask_seconds(device: torch.device) -> tuple[float, float]:
    """The mask_store_seconds and mask_load_seconds of DeviceSpeed."""
    if device.type != "cpu":
        return 0.0, 0.0
    threads = torch.get_num_threads()
    return MASK_STORE_CORE_SECONDS / threads, MASK_LOAD_CORE_SECONDS / threads


def _go_through(links: Mapping[str, Link], config: OffloadConfig, bus: Link) -> dict[str, Link]:
    """`links` as seen from a GPU, whose transfers pass the bus.

    bus: copies between the GPU and host memory. The host tier is as fast as these; a drive is at
    most as fast.
    """
    found: dict[str, Link] = {}
    for tier, link in links.items():
        if tier == "host" or (config.ioengine == "memory" and not config.checksum):
            found[tier] = bus
        else:
            found[tier] = replace(
                bus,
                write_bytes_per_second=min(link.write_bytes_per_second, bus.write_bytes_per_second),
                read_bytes_per_second=min(link.read_bytes_per_second, bus.read_bytes_per_second),
                latency_seconds=GPU_TRANSFER_LATENCY_SECONDS,
            )
    return found
