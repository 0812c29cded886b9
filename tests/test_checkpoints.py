"""Checkpoints in programs of many graphs: the memory held between forwards and backwards."""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from waiting import wait_for_writes

import fxoffload
from benchmarks.measure import count_allocated_bytes

WIDTH, BATCH, DEPTH = 128, 512, 4
VALUE_BYTES = WIDTH * BATCH * 4
OPTIONS: dict[str, Any] = {
    "compiler": "eager", "ioengine": "memory", "min_bytes": 1
}  # fmt: skip


class Block(nn.Module):
    """Four values of VALUE_BYTES each inside, under a checkpoint."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(WIDTH, 4 * WIDTH), nn.GELU(), nn.Linear(4 * WIDTH, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + checkpoint(self.net, x, use_reentrant=False)


class Broken(nn.Module):
    """The blocks with a graph break behind each."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(Block() for _ in range(DEPTH))

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
            torch._dynamo.graph_break()
        return x


def compile_blocks(options: dict[str, Any]) -> nn.Module:
    model = nn.Sequential(*(Block() for _ in range(DEPTH)))
    for block in model:
        block.compile(backend="fxoffload", options=options)
    return model


def compile_broken(options: dict[str, Any]) -> nn.Module:
    return fxoffload.compile(Broken(), **options)


def measure_held_bytes(
    build: Callable[[dict[str, Any]], nn.Module], **options: Any
) -> tuple[int, list[Tensor]]:
    """What is allocated between the forward and the backward of the second step; its gradients."""
    torch._dynamo.reset()
    torch.manual_seed(0)
    model = build(OPTIONS | options)
    x = torch.randn(BATCH, WIDTH)
    model(x).sum().backward()
    model.zero_grad()
    gc.collect()
    before_bytes = count_allocated_bytes()
    loss = model(x).sum()
    wait_for_writes()
    held_bytes = count_allocated_bytes() - before_bytes
    loss.backward()
    return held_bytes, [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("build", [compile_blocks, compile_broken])
def test_no_more_is_held_than_by_the_programs_own_checkpoints(
    build: Callable[[dict[str, Any]], nn.Module],
) -> None:
    own_bytes, expected = measure_held_bytes(build, enabled=False)
    assert own_bytes < 1.5 * DEPTH * VALUE_BYTES, "the checkpoints must be at work"
    for budget in (None, "20MiB", "min"):
        held_bytes, gradients = measure_held_bytes(build, memory_budget=budget)
        assert held_bytes < own_bytes + VALUE_BYTES / 2, budget
        for found, reference in zip(gradients, expected, strict=True):
            assert torch.equal(found, reference)
