"""One of two ranks that train small programs with values that move, and with none that do.

    python parity_job.py RANK PORT DIRECTORY

Prints, for each program, the bytes that moved; fails where gradients differ or something stays.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from functools import partial

rank, port, directory = int(sys.argv[1]), sys.argv[2], sys.argv[3]
os.environ["XDG_CACHE_HOME"] = f"{directory}/cache{rank}"
# As a launcher names this process to accelerate.
os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": "2"}
os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}

import torch
import torch.distributed as dist
from accelerate import Accelerator
from ranks import join_ranks
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe
from torch.nn.parallel import DistributedDataParallel
from waiting import wait_for_writes

import fxoffload

WIDTH, BATCH, DEPTH, STEPS = 32, 16, 3, 2

Options = dict[str, object]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up = nn.Linear(WIDTH, 4 * WIDTH)
        self.down = nn.Linear(4 * WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(nn.functional.gelu(self.up(x)))


class Model(nn.Module):
    """seed: of the weights."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x


def find_loss(output: Tensor, target: Tensor) -> Tensor:
    return (output - target).square().sum()


def make_data(seed: int) -> tuple[Tensor, Tensor]:
    torch.manual_seed(seed)
    return torch.randn(BATCH, WIDTH), torch.randn(BATCH, WIDTH)


def take_gradients(model: nn.Module) -> list[Tensor]:
    """Return the gradients of this rank, and set them to None."""
    found = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    assert found
    model.zero_grad(set_to_none=True)
    return [each.to_local() if isinstance(each, dist.tensor.DTensor) else each for each in found]


def train(run: Callable[..., Tensor], model: nn.Module) -> list[Tensor]:
    """The gradients of all steps, on this rank's own batches."""
    found: list[Tensor] = []
    for step in range(STEPS):
        x, target = make_data(10 * rank + step)
        find_loss(run(x), target).backward()
        found += take_gradients(model)
    return found


def distribute(model: nn.Module) -> nn.Module:
    """Wrap `model` in DDP with buckets of a few parameters each."""
    return DistributedDataParallel(model, bucket_cap_mb=0.02)


def shard(model: Model) -> nn.Module:
    mesh = init_device_mesh("cpu", (2,))
    for block in model.blocks:
        fully_shard(block, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train_ddp_outside(options: Options) -> list[Tensor]:
    model = Model()
    return train(fxoffload.compile(distribute(model), **options), model)


def train_ddp_inside(options: Options) -> list[Tensor]:
    model = Model()
    return train(distribute(fxoffload.compile(model, **options)), model)


def make_compiled_blocks(options: Options) -> Model:
    model = Model()
    fxoffload.compile_in_place(model, "blocks", **options)
    return model


def train_blocks(wrap: Callable[[Model], nn.Module], options: Options) -> list[Tensor]:
    model = make_compiled_blocks(options)
    return train(wrap(model), model)


def train_compiled_later(
    wrap: Callable[[Model], nn.Module], modules: str, options: Options
) -> list[Tensor]:
    model = Model()
    run = wrap(model)
    fxoffload.compile_in_place(run, modules, **options)
    return train(run, model)


def train_accelerate(options: Options) -> list[Tensor]:
    model = make_compiled_blocks(options)
    accelerator = Accelerator(cpu=True)
    run = accelerator.prepare(model)
    assert isinstance(run, DistributedDataParallel)
    return train(run, model)


def train_fsdp(options: Options) -> list[Tensor]:
    model = Model()
    return train(fxoffload.compile(shard(model), **options), model)


def train_pipeline(make_schedule: Callable[..., object], options: Options) -> list[Tensor]:
    """Two stages of one rank each, four microbatches."""
    stage = Model(seed=rank)
    fxoffload.compile_in_place(stage, "blocks", **options)
    schedule = make_schedule(
        PipelineStage(stage, rank, 2, torch.device("cpu")), n_microbatches=4, loss_fn=find_loss
    )
    found: list[Tensor] = []
    for step in range(STEPS):
        x, target = make_data(step)
        schedule.step(x) if rank == 0 else schedule.step(target=target)
        found += take_gradients(stage)
    return found


PROGRAMS: dict[str, Callable[[Options], list[Tensor]]] = {
    "DDP outside": train_ddp_outside,
    "DDP inside": train_ddp_inside,
    "DDP of blocks": partial(train_blocks, distribute),
    "DDP compiled later": partial(train_compiled_later, distribute, "Block"),
    "accelerate": train_accelerate,
    "FSDP": train_fsdp,
    "FSDP of blocks": partial(train_blocks, shard),
    "FSDP compiled later": partial(train_compiled_later, shard, "blocks"),
    "GPipe": partial(train_pipeline, ScheduleGPipe),
    "1F1B": partial(train_pipeline, Schedule1F1B),
}


def run_program(program: Callable[[Options], list[Tensor]], **options: object) -> list[Tensor]:
    torch._dynamo.reset()
    fxoffload.reset_statistics()
    return program({"directory": directory, "compiler": "eager", "min_bytes": 1, **options})


def compare(name: str) -> int:
    """Compare a run that moves values with one that moves none; return the bytes moved."""
    program = PROGRAMS[name]
    expected = run_program(program, enabled=False)
    assert fxoffload.statistics().offloaded_bytes == 0
    found = run_program(program, memory_budget="min")
    assert len(found) == len(expected)
    assert all(map(torch.equal, found, expected)), name
    wait_for_writes()
    done = fxoffload.statistics()
    assert (done.live_bytes, done.inflight_bytes) == (0, 0), name
    return done.offloaded_bytes


if __name__ == "__main__":
    torch.set_num_threads(1)
    dist._DEFAULT_FIRST_BUCKET_BYTES = 1  # As small as the other buckets.
    join_ranks(rank, port, timeout_seconds=60)
    for name in PROGRAMS:
        print(name, compare(name), sep=": ", flush=True)
    dist.destroy_process_group()
