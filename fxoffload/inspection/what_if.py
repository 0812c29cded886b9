"""What if: a training step on other hardware, and how far its micro-batch can grow.

    hardware = Hardware(flops_per_second="150TFLOP/s", memory_bytes_per_second="1.2TB/s", ...)
    print(simulate(model, x, hardware=hardware, memory_budget="8GiB"))
    print(largest_batch(model, lambda batch: (torch.empty(batch, 512),), hardware=hardware))

Nothing runs and nothing is allocated: the model is traced with tensors that have no memory, so it
may be larger than this machine (build it under `torch.device("meta")`). The graphs are those of the
device that the tensors are on; meta tensors stand for a CPU. The numbers are the predictions of
plans; `fxoffload.explain` prints such plans for this machine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import nn

from fxoffload import torch_internals
from fxoffload.config import OffloadConfig
from fxoffload.cost import make_cost_model
from fxoffload.errors import BudgetError, ConfigError
from fxoffload.graph import TrainingGraph
from fxoffload.hardware import Hardware
from fxoffload.inspection.forecast import BatchForecast, Forecast, LargestBatch
from fxoffload.inspection.tracing import partition_without_memory
from fxoffload.passes import Transformed
from fxoffload.planner.plan import Plan
from fxoffload.planning import build_partitioner
from fxoffload.torch_internals import OffloadPartitioner


def simulate(
    model: Callable[..., Any],
    *args: Any,
    hardware: Hardware,
    memory_budget: int | str | None = None,
    options: Mapping[str, Any] | None = None,
    **kwargs: Any,
) -> Forecast:
    """Predict a training step of `model(*args, **kwargs)` on `hardware`; nothing is run.

    args, kwargs: tensors on any device; only their sizes, strides and types are used.
    memory_budget: see OffloadConfig. options: other fields of OffloadConfig; those for directories
    and engines have no effect here. A model whose control flow depends on values of tensors cannot
    be traced. Raises BudgetError if no plan fits, ConfigError for an option that cannot work.
    """
    # Without a directory, OffloadConfig would search the disks of this machine for one.
    chosen = {"directory": ".", **(options or {}), "memory_budget": memory_budget}
    config = OffloadConfig.from_options(chosen)
    cost = make_cost_model(hardware, with_host_tier=config.host_bytes is not None)
    plans: list[Plan] = []

    def record(graph: TrainingGraph, found: Transformed) -> None:
        plans.append(found.plan)

    def make_partitioner() -> OffloadPartitioner:
        return build_partitioner(config, "", cost=cost, on_transformed=record)

    partition_without_memory(model, args, kwargs, config, make_partitioner)
    return Forecast(tuple(plans), count_resident_bytes(model), hardware)


def largest_batch(
    model: Callable[..., Any],
    make_inputs: Callable[[int], Sequence[Any]],
    *,
    hardware: Hardware,
    memory_budget: int | str | None = None,
    options: Mapping[str, Any] | None = None,
    stages: int = 1,
    microbatches: int = 1,
    max_batch: int = 2**16,
) -> LargestBatch:
    """Find the largest micro-batch of `model` that fits `memory_budget` on `hardware`.

    make_inputs(batch): returns the arguments of the model; the tensors that it makes have no
    memory. memory_budget: the activation peak of one micro-batch; by default the device's memory
    less parameters and buffers. stages: of a pipeline, of which `model` is one stage.
    microbatches: in a step, for the largest batch that fits with nothing moved. max_batch: the
    largest batch to try.

    Doubles the batch and then bisects. This assumes that a smaller batch always fits if a larger
    one does; plans come from a heuristic search, so the result may be slightly wrong near the
    limit. Raises BudgetError if one sample does not fit, ConfigError as `simulate`.
    """
    if min(stages, microbatches, max_batch) < 1:
        given = f"stages={stages}, microbatches={microbatches}, max_batch={max_batch}"
        raise ConfigError(f"{given}: each counts something; pass at least 1")
    budget = hardware.device_bytes - count_resident_bytes(model)
    budget = budget if memory_budget is None else memory_budget
    config = OffloadConfig.from_options({"directory": ".", "memory_budget": budget})
    if config.budget_bytes is None:
        raise ConfigError('memory_budget="min" is no limit for a batch; pass bytes or "8GiB"')
    found: dict[int, Forecast] = {}

    def forecast(batch: int) -> Forecast:
        if batch not in found:
            with torch_internals.without_memory():
                inputs = tuple(make_inputs(batch))
            found[batch] = simulate(
                model, *inputs, hardware=hardware, memory_budget=budget, options=options
            )
        return found[batch]

    def fits(batch: int) -> bool:
        try:
            return bool(forecast(batch).plans)
        except BudgetError:
            return False

    forecast(1)
    batch = find_largest(fits, max_batch)
    unmoved = find_largest(lambda size: fits(size) and found[size].keeps_all, batch)
    microsteps = -(-max(unmoved, 1) * microbatches // batch)
    return LargestBatch(
        memory_budget_bytes=config.budget_bytes,
        unmoved=BatchForecast(unmoved, microbatches, stages, found[unmoved]) if unmoved else None,
        moved=BatchForecast(batch, microbatches, stages, found[batch]),
        merged=BatchForecast(batch, microsteps, stages, found[batch]),
    )


def find_largest(holds: Callable[[int], bool], limit: int) -> int:
    """The largest n from 1 to `limit` with `holds(n)`, 0 for none; it must hold for all below n."""
    low, high = 0, 1
    while high <= limit and holds(high):
        low, high = high, 2 * high
    high = min(high, limit + 1)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if holds(middle) else (low, middle)
    return low


def count_resident_bytes(model: Callable[..., Any]) -> int:
    """Bytes of the parameters and buffers of `model`; 0 for a function."""
    if not isinstance(model, nn.Module):
        return 0
    return sum(tensor.nbytes for tensor in (*model.parameters(), *model.buffers()))
