"""Checkpoints: the memory that they hold between forward and backward, and policies."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import (
    CheckpointPolicy,
    checkpoint,
    create_selective_checkpoint_contexts,
)
from waiting import wait_for_writes

import fxoffload
from benchmarks.measure import count_allocated_bytes

WIDTH, BATCH, DEPTH = 128, 512, 4
VALUE_BYTES = WIDTH * BATCH * 4
OPTIONS: dict[str, Any] = {"compiler": "eager", "ioengine": "memory", "min_bytes": 1}


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
    """The bytes allocated between forward and backward of the second step, and its gradients."""
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


# --- policies of selective checkpointing --------------------------------------------------------


class Selective(nn.Module):
    """Two products, under a checkpoint with a policy for products; all else is recomputed."""

    def __init__(self, policy: CheckpointPolicy) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)

        def decide(_: object, op: object, *args: object, **kwargs: object) -> CheckpointPolicy:
            return policy if op is torch.ops.aten.mm.default else CheckpointPolicy.PREFER_RECOMPUTE

        self.contexts = partial(create_selective_checkpoint_contexts, decide)

    def compute(self, x: Tensor) -> Tensor:
        return self.second(self.first(x).tanh()).tanh()

    def forward(self, x: Tensor) -> Tensor:
        x = x.sin()
        return x + checkpoint(self.compute, x, use_reentrant=False, context_fn=self.contexts)


def count_products_moved(policy: str, *, steps: int = 1, **options: Any) -> int:
    """The number of products that the last step moves; checks its gradients."""
    torch.manual_seed(0)
    model = nn.Sequential(*(Selective(CheckpointPolicy[policy]) for _ in range(DEPTH)))
    x = torch.randn(BATCH, WIDTH)

    def run_step(compiled: nn.Module) -> list[Tensor]:
        model.zero_grad()
        compiled(x).square().sum().backward()
        return [p.grad.clone() for p in model.parameters() if p.grad is not None]

    torch._dynamo.reset()
    expected = run_step(fxoffload.compile(model, **OPTIONS, enabled=False))
    torch._dynamo.reset()
    compiled, found = fxoffload.compile(model, **{**OPTIONS, **options}), list[Tensor]()
    for _ in range(steps):
        fxoffload.reset_statistics()
        found = run_step(compiled)
    wait_for_writes()
    assert all(map(torch.equal, found, expected))
    moved, left = divmod(fxoffload.statistics().offloaded_bytes, VALUE_BYTES)
    assert left == 0
    return moved


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ({"min_bytes": "1GiB"}, 1),
        ({"min_bytes": "1GiB", "memory_budget": "1GiB"}, 4),
        ({"memory_budget": "1GiB"}, 4),
    ],
)
def test_what_a_policy_must_offload_moves(options: dict[str, Any], steps: int) -> None:
    """Without a budget, under an ample one, and below min_bytes."""
    assert count_products_moved("MUST_CPU_OFFLOAD", steps=steps, **options) == 2 * DEPTH
    assert count_products_moved("MUST_SAVE", steps=steps, **options) == 0


def test_what_a_policy_prefers_to_offload_moves_by_plan() -> None:
    """Such a value is always saved; the plan decides whether it moves."""
    own = count_products_moved("MUST_SAVE", memory_budget="min")
    assert count_products_moved("PREFER_CPU_OFFLOAD", memory_budget="min") == own >= 2 * DEPTH
    assert count_products_moved("PREFER_CPU_OFFLOAD", min_bytes="1GiB") == 0


def test_what_a_policy_must_offload_and_may_not_move_is_an_error() -> None:
    """A product that is saved, and that the program returns."""
    contexts = Selective(CheckpointPolicy.MUST_CPU_OFFLOAD).contexts
    weight = torch.eye(WIDTH, requires_grad=True)

    def compute(x: Tensor) -> tuple[Tensor, Tensor]:
        product = x @ weight
        return product, product.tanh()

    def function(x: Tensor) -> Any:
        return checkpoint(compute, x, use_reentrant=False, context_fn=contexts)

    message = r"mm \(0\.2 MiB\) is marked by CheckpointPolicy.MUST_CPU_OFFLOAD, and may not be mov"
    with pytest.raises(fxoffload.MarkError, match=message):
        fxoffload.compile(function, **OPTIONS)(torch.randn(BATCH, WIDTH))
