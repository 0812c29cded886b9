"""What a program marks stays or moves, whatever the budget, and computes the same."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from waiting import wait_for_writes

import fxoffload

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "one_thread", "fresh_programs")

ROWS, WIDTH, DEPTH = 128, 128, 4
VALUE_BYTES = ROWS * WIDTH * 4
NOTHING: dict[str, Any] = {"min_bytes": "1GiB"}  # Where nothing moves by itself.
ALL: dict[str, Any] = {"min_bytes": 1, "memory_budget": "min"}


def leave(x: Tensor) -> Tensor:
    return x


class Block(nn.Module):
    """Saves its input and the results of tanh, which is marked, and of sigmoid.

    region: what the product and the sigmoid are computed in.
    """

    def __init__(self, mark: Callable[[Tensor], Tensor], region: Callable[[], Any]) -> None:
        super().__init__()
        self.first = nn.Linear(WIDTH, WIDTH, bias=False)
        self.second = nn.Linear(WIDTH, WIDTH, bias=False)
        self.mark, self.region = mark, region

    def forward(self, x: Tensor) -> Tensor:
        h = self.mark(self.first(x).tanh())
        with self.region():
            y = self.second(h).sigmoid()
        return x + y.sin()


class Checkpointed(Block):
    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(super().forward, x, use_reentrant=False)


def make_model(
    mark: Callable[[Tensor], Tensor] = leave,
    region: Callable[[], Any] = nullcontext,
    kind: type[Block] = Block,
) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(kind(mark, region) for _ in range(DEPTH)))


def run_step(model: nn.Module, compiled: Callable[[Tensor], Tensor]) -> list[Tensor]:
    """The gradients of one step."""
    model.zero_grad()
    torch.manual_seed(1)
    compiled(torch.randn(ROWS, WIDTH)).square().sum().backward()
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def count_moved(model: nn.Module, *, steps: int = 1, **options: Any) -> int:
    """Values moved by the last of some steps, whose gradients are those of nothing moved."""
    common: dict[str, Any] = {"compiler": "eager", "ioengine": "memory"}
    common |= {name: options[name] for name in ("compiler", "inductor") if name in options}
    expected = run_step(model, fxoffload.compile(model, **common, enabled=False))
    torch._dynamo.reset()
    compiled = fxoffload.compile(model, **{**common, **options})
    found: list[Tensor] = []
    for _ in range(steps):
        fxoffload.reset_statistics()
        found = run_step(model, compiled)
    wait_for_writes()
    assert len(found) == len(expected) == 2 * DEPTH
    assert all(map(torch.equal, found, expected))
    moved, left = divmod(fxoffload.statistics().offloaded_bytes, VALUE_BYTES)
    assert left == 0
    return moved


# --- outside of compiled code -------------------------------------------------------------------


def test_without_a_compiler_a_mark_does_nothing() -> None:
    x = torch.ones(4, requires_grad=True)
    assert fxoffload.keep(x) is x
    assert fxoffload.move(x) is x
    with fxoffload.keeping():
        x.sin().sum().backward()
    assert x.grad is not None
    model, marked = make_model(), make_model(fxoffload.move, fxoffload.keeping)
    assert all(map(torch.equal, run_step(marked, marked), run_step(model, model)))


def test_around_a_call_of_compiled_code_a_region_does_nothing() -> None:
    def compute(x: Tensor) -> Tensor:
        return (x @ weight).tanh()

    weight = torch.ones(WIDTH, WIDTH, requires_grad=True)
    compiled = fxoffload.compile(compute, **ALL, compiler="eager", ioengine="memory")
    fxoffload.reset_statistics()
    with fxoffload.keeping():
        compiled(compiled(torch.ones(ROWS, WIDTH))).sum().backward()
    assert fxoffload.statistics().offloaded_bytes >= VALUE_BYTES


@pytest.mark.parametrize("mark", [fxoffload.keep, fxoffload.move])
def test_only_a_tensor_can_be_marked(mark: Callable[[Any], object]) -> None:
    with pytest.raises(TypeError, match=r"fxoffload\.\w+ got a list, and takes one tensor"):
        mark([torch.ones(1)])


# --- what moves ---------------------------------------------------------------------------------


def test_what_is_marked_moves_without_a_budget() -> None:
    assert count_moved(make_model(), **NOTHING) == 0
    assert count_moved(make_model(fxoffload.move), **NOTHING) == DEPTH


def test_what_is_kept_does_not_move() -> None:
    """The input of the first block is the caller's; it is no activation."""
    everything = count_moved(make_model(), **ALL)
    assert everything >= 3 * DEPTH - 1
    assert count_moved(make_model(fxoffload.keep), **ALL) == everything - DEPTH
    # Of tanh, which the product in the region saves, and of sigmoid.
    assert count_moved(make_model(region=fxoffload.keeping), **ALL) == everything - 2 * DEPTH
    assert count_moved(make_model(fxoffload.move, fxoffload.keeping), **ALL) == everything - DEPTH


def test_what_is_marked_is_not_recomputed() -> None:
    """The checkpoints are lifted for no other value: "min" and a large min_bytes are no gain."""
    model = make_model(kind=Checkpointed)
    assert count_moved(model, **NOTHING) == 0
    assert count_moved(make_model(fxoffload.move, kind=Checkpointed), **NOTHING) == DEPTH


@pytest.mark.parametrize(("mark", "moved"), [(leave, 0), (fxoffload.move, DEPTH)])
def test_schedules_move_what_must_move(mark: Callable[[Tensor], Tensor], moved: int) -> None:
    """Under a budget that is ample, in graphs that are compiled each by itself, too."""
    budget: dict[str, Any] = {"min_bytes": "1GiB", "memory_budget": "1GiB"}
    assert count_moved(make_model(mark), steps=4, **budget) == moved
    assert [each.moved_bytes for each in fxoffload.schedules()] == [moved * VALUE_BYTES] * bool(
        moved
    )


def test_a_budget_error_says_what_the_program_keeps() -> None:
    model = make_model(fxoffload.keep)
    with pytest.raises(fxoffload.BudgetError, match=r"0\.1 MiB of it kept by the program"):
        count_moved(model, min_bytes=1, memory_budget=DEPTH * VALUE_BYTES)


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_what_may_not_move_is_an_error(compiler: str) -> None:
    def function(x: Tensor) -> Tensor:
        return fxoffload.move((x @ weight).tanh())

    weight = torch.ones(WIDTH, WIDTH, requires_grad=True)
    compiled = fxoffload.compile(function, compiler=compiler, ioengine="memory")
    with pytest.raises(fxoffload.MarkError, match=r"tanh .* is marked by fxoffload\.move") as found:
        compiled(torch.ones(ROWS, WIDTH))
    assert "output of the forward" in str(found.value)


# --- Inductor -----------------------------------------------------------------------------------


@pytest.mark.slow
def test_inductor_and_its_caches() -> None:
    """Graphs that differ only in their marks have the same code, but no cache entry in common."""
    marks = {leave: 0, fxoffload.keep: 0, fxoffload.move: DEPTH}
    with torch._inductor.utils.fresh_cache():
        for _ in range(2):
            for mark, moved in marks.items():
                torch._dynamo.reset()
                options = {**NOTHING, "compiler": "inductor", "inductor": {"cpp.simdlen": 1}}
                found = count_moved(make_model(mark), **options)
                assert found == moved
