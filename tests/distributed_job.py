"""One of two ranks that train small programs with different links; prints each graph.

    python distributed_job.py RANK PORT DIRECTORY

Rank 0 assumes a drive so slow that moving never pays, rank 1 one so fast that it always does.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

rank, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["XDG_CACHE_HOME"] = f"{directory}/cache{rank}"

import torch
import torch.distributed as dist
import torch.distributed._functional_collectives as collectives
from ranks import join_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)
from torch.utils.checkpoint import checkpoint
from waiting import wait_for_writes

import fxoffload
from fxoffload import backend, machine, runtime
from fxoffload.graph import TrainingGraph
from fxoffload.passes import Transformed
from fxoffload.planner.link import Link
from fxoffload.torch_internals import is_collective

WIDTH, BATCH, DEPTH = 32, 64, 2


class Block(nn.Module):
    """A residual block whose middle part runs under a checkpoint if `checkpoints`."""

    def __init__(self, *, gathers: bool, checkpoints: bool) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(WIDTH)
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)
        self._gathers = gathers
        self._checkpoints = checkpoints

    def forward(self, x: Tensor) -> Tensor:
        if self._checkpoints:
            return x + checkpoint(self._compute, x, use_reentrant=False)
        return x + self._compute(x)

    def _compute(self, x: Tensor) -> Tensor:
        x = self.norm(x)
        if self._gathers:
            x = collectives.all_gather_tensor_autograd(x, 0, dist.group.WORLD)
        x = self.down(nn.functional.gelu(self.up(x)))
        if self._gathers:
            x = collectives.reduce_scatter_tensor_autograd(x, "sum", 0, dist.group.WORLD)
        return x


Wrap = Callable[[nn.Sequential], nn.Module]


def shard(model: nn.Sequential) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for block in model:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def split(model: nn.Sequential) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    plan = {"up": ColwiseParallel(), "down": RowwiseParallel()}
    for block in model:
        parallelize_module(block, mesh, plan)
    return model


@dataclass(frozen=True)
class Program:
    """A way to run the blocks on two ranks, at a budget that makes all graphs be cut anew.

    per_block: each block is compiled by itself.
    """

    wrap: Wrap
    budget_bytes: int
    gathers: bool = False
    per_block: bool = False


PROGRAMS = {
    "gathered": Program(lambda model: model, 330_000, gathers=True),
    "ddp": Program(nn.parallel.DistributedDataParallel, 200_000),
    "fsdp": Program(shard, 200_000),
    "fsdp per block": Program(shard, 200_000, per_block=True),
    "tensor parallel": Program(split, 120_000),
}

# Names, and whether parts of the blocks run under checkpoints: those then hold the collectives.
CASES = (*((name, False) for name in PROGRAMS), ("gathered", True))


def compute_gradients(
    program: Program, checkpoints: bool, *, steps: int = 3, **options: object
) -> list[Tensor]:
    """Of the last step of a fresh model, on this rank's own batch; the others are learned."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    blocks = [Block(gathers=program.gathers, checkpoints=checkpoints) for _ in range(DEPTH)]
    model = program.wrap(nn.Sequential(*blocks))
    run = model if program.per_block else torch.compile(model, **options)
    if program.per_block:
        for block in blocks:
            block.compile(**options)
    torch.manual_seed(0 if program.wrap is split else rank)
    x = torch.randn(BATCH, WIDTH)
    for _ in range(steps):
        model.zero_grad()
        fxoffload.reset_statistics()
        run(x).sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def find_collectives(graph: TrainingGraph) -> list[str]:
    """In the order in which they run."""
    halves = (graph.forward.graph, graph.backward.graph)
    return [str(node.target) for half in halves for node in half.nodes if is_collective(node)]


def run_cases() -> Iterator[tuple[str, list[tuple[object, list[str]]], int]]:
    """For each case what its graphs became, and the bytes that moved."""
    found: list[tuple[object, list[str]]] = []

    def note(graph: TrainingGraph, known: Transformed) -> None:
        found.append((known.plan.cut, find_collectives(graph)))

    build = backend.build_partitioner

    def build_noting(*args: object, on_transformed: Callable[..., None], **rest: object) -> object:
        def both(graph: TrainingGraph, known: Transformed) -> None:
            note(graph, known)
            on_transformed(graph, known)

        return build(*args, on_transformed=both, **rest)

    backend.build_partitioner = build_noting
    for name, checkpoints in CASES:
        program = PROGRAMS[name]
        compute = partial(compute_gradients, program, checkpoints)
        expected = compute(backend="aot_eager")
        for budget in (None, "min", program.budget_bytes):
            options = {
                "directory": directory, "compiler": "eager", "min_bytes": 1,
                "memory_budget": budget,
            }  # fmt: skip
            found.clear()
            # Under a budget in bytes, the seventh step may begin with other cuts.
            steps = 8 if isinstance(budget, int) else 3
            ours = compute(backend="fxoffload", steps=steps, options=options)
            assert len(ours) == len(expected) > 0
            for one, other in zip(ours, expected, strict=True):
                assert torch.equal(to_local(one), to_local(other)), (name, checkpoints, budget)
            wait_for_writes()
            statistics = fxoffload.statistics()
            assert statistics.live_bytes == statistics.inflight_bytes == 0
            yield f"{name} {checkpoints} {budget}", list(found), statistics.offloaded_bytes


def to_local(tensor: Tensor) -> Tensor:
    return tensor.to_local() if isinstance(tensor, dist.tensor.DTensor) else tensor


if __name__ == "__main__":
    join_ranks(rank, port, timeout_seconds=30)
    # One hides nothing, and the other one all, however fast this machine computes.
    link = Link(2e4, 2e4, 0.02) if rank == 0 else Link(1e10, 1e10, 0.0)
    machine.measure_links = lambda config: {"nvme": link}
    Link.correct = lambda link, *_: link  # What this run's transfers show hangs on other load.
    runtime.recall_contention = lambda *_: runtime.Contention(1e-12, 1e-12)
    runtime.recall_speed = lambda *_: runtime.Speed(1e8, 1e8)
    for case, graphs, moved_bytes in run_cases():
        print(f"{case}\t{graphs}\t{moved_bytes}", flush=True)
    dist.destroy_process_group()
