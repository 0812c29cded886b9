"""What the benchmarks of simulated hardware share: the hardware, and models without memory.

Nothing runs, and nothing is timed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor
from transformers.modeling_layers import GradientCheckpointingLayer

from fxoffload import BudgetError, Hardware
from fxoffload.cli.byte_models import Shape, build_model, make_tokens
from fxoffload.cli.transformers_models import LossOnly
from fxoffload.config import OffloadConfig
from fxoffload.cost import make_cost_model
from fxoffload.inspection.bounds import build_steps, trace_steps
from fxoffload.inspection.tracing import partition_without_memory
from fxoffload.planner.link import Link
from fxoffload.planner.plan import Cut, Plan
from fxoffload.planner.step import Step
from fxoffload.planning import build_partitioner, make_builder
from fxoffload.sizes import UNLIMITED_BYTES
from fxoffload.torch_internals import Graphs, OffloadPartitioner, PartitionFunction

CONFIG = OffloadConfig(directory=".")


def make_hardware(
    flops: str, memory: str, memory_bytes: str, write: str, read: str, link: str
) -> Hardware:
    """What a device, its drives, and its link to the host sustain, each per second."""
    return Hardware(
        flops_per_second=flops,
        memory_bytes_per_second=memory,
        memory_bytes=memory_bytes,
        drive_write_bytes_per_second=write,
        drive_read_bytes_per_second=read,
        host_link_bytes_per_second=link,
    )


# Without drives that are named, these are as fast as the link.
HARDWARE = {
    "H200": make_hardware("770TFLOP/s", "3.6TB/s", "141GiB", "54GB/s", "54GB/s", "54GB/s"),
    "A100": make_hardware("250TFLOP/s", "1.8TB/s", "80GiB", "20GB/s", "20GB/s", "20GB/s"),
    "RTX 4090": make_hardware("150TFLOP/s", "1TB/s", "24GiB", "25GB/s", "25GB/s", "25GB/s"),
    "H100, two drives": make_hardware(
        "770TFLOP/s", "2.6TB/s", "80GiB", "12GB/s", "14GB/s", "54GB/s"
    ),
}
# The number of layers that each device gets.
LAYERS = {"H200": 3, "A100": 4, "RTX 4090": 4, "H100, two drives": 4}
# Llama 3 8B, whatever the device.
LLAMA = Shape(layers=32, hidden=4096, heads=32, batch=1, length=8192, vocabulary=128256)


@dataclass(frozen=True, slots=True)
class Workload:
    """A model on a device. label: of rows, "gpt 3 x 8192"."""

    name: str
    shape: Shape
    device: str

    @property
    def label(self) -> str:
        """The model and its size."""
        return f"{self.name} {self.shape.layers} x {self.shape.hidden}"

    @property
    def hardware(self) -> Hardware:
        """That of the device."""
        return HARDWARE[self.device]

    def build(self) -> tuple[LossOnly, Tensor]:
        """The model in bfloat16, and its tokens; neither has memory."""
        with torch.device("meta"):
            model = build_model(self.name, self.shape)
            return model.bfloat16(), make_tokens(self.shape)

    @property
    def links(self) -> Mapping[str, Link]:
        """To its drives."""
        return make_cost_model(self.hardware).links

    def forecast(
        self, shares: Sequence[float | Literal["min"] | None], cuts: Sequence[Cut]
    ) -> tuple[Plan, list[Plan | BudgetError], list[Step]]:
        """The plan that moves nothing, those at budgets, and the steps at `cuts`, by one trace.

        shares: of the peak with nothing moved; None is no budget, "min" the lowest peak. A plan is
        that of fxoffload.simulate, which traces the model for each, or the error that it raises.
        """
        found: list[tuple[Plan, list[Plan | BudgetError], list[Step]]] = []
        cost = make_cost_model(self.hardware)

        def choose(
            partition: PartitionFunction, num_outputs: int, static_inputs: tuple[int, ...]
        ) -> Graphs:
            def plan(budget: int | Literal["min"] | None) -> Plan | BudgetError:
                plans: list[Plan] = []
                partitioner = build_partitioner(
                    replace(CONFIG, memory_budget=budget),
                    "",
                    cost=cost,
                    on_transformed=lambda _, found: plans.append(found.plan),
                )
                try:
                    partitioner.choose(partition, num_outputs, static_inputs)
                except BudgetError as error:
                    return error
                return plans[0]

            keep = plan(UNLIMITED_BYTES)
            assert isinstance(keep, Plan), "a budget that everything fits into"
            budgets: list[int | Literal["min"] | None] = [
                int(share * keep.peak_bytes) if isinstance(share, int | float) else share
                for share in shares
            ]
            build = make_builder(partition, num_outputs, static_inputs, {})
            steps = build_steps(map(build, cuts), CONFIG, cost)
            found.append((keep, [plan(budget) for budget in budgets], steps))
            return partition(None)

        model, tokens = self.build()
        partition_without_memory(
            model, (tokens,), {}, CONFIG, lambda: OffloadPartitioner(choose, "fxoffload limits")
        )
        (graph,) = found  # Shares are of the peak of one graph.
        return graph

    def trace(
        self, cuts: Sequence[Cut] = (None,), *, checkpoints: bool = False
    ) -> list[list[Step]]:
        """For each graph the steps at `cuts`; checkpoints: with each layer checkpointed."""
        model, tokens = self.build()
        if checkpoints:
            checkpoint_layers(model.model)
        return trace_steps(model, (tokens,), {}, CONFIG, make_cost_model(self.hardware), cuts)


def find_largest(graphs: Sequence[Sequence[Step]]) -> Step:
    """The first step of the graph with the most nodes; a loss may be a graph of its own."""
    return max((steps[0] for steps in graphs), key=lambda step: len(step.names))


def checkpoint_layers(model: Any) -> None:
    """Recompute each layer of a model of transformers, and nothing else."""
    model.gradient_checkpointing_enable({"use_reentrant": False})
    for module in model.modules():
        # The attention of a T5 would change the flags of a tensor, which Dynamo cannot trace.
        if not isinstance(module, GradientCheckpointingLayer):
            module.gradient_checkpointing = False


def choose_shape(name: str, device: str, hidden: int, batch: int, length: int) -> Shape:
    """The size of a model on a device; hidden, batch, length: not of the Llama."""
    if name == "llama":
        return LLAMA
    return Shape(LAYERS[device], hidden, hidden // 128, batch, length)
