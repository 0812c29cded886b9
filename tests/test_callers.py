"""Saved tensors of the caller: a changed one raises as in autograd, a kept one is not written."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxoffload
from fxoffload.errors import ModifiedError, OffloadError
from fxoffload.runtime.store.callers import CallersTensor
from fxoffload.torch_internals import make_version_counter

WIDTH = 32
BLOCKS = 12


def test_a_change_by_any_view_is_seen() -> None:
    base = torch.zeros(4, 4)
    watched = [CallersTensor(x, make_version_counter(x)) for x in (base, base[1:], base.t())]
    for each in watched:
        each.check_unchanged("x")
    base.view(-1)[0] = 1
    for each in watched:
        with pytest.raises(ModifiedError, match=r"x: .*is at version 1; expected version 0"):
            each.check_unchanged("x")


def test_the_error_is_that_of_torch_and_ours() -> None:
    assert issubclass(ModifiedError, RuntimeError)
    assert issubclass(ModifiedError, OffloadError)


def test_an_inference_tensor_has_no_version() -> None:
    with torch.inference_mode():
        x = torch.zeros(4)
        watched = CallersTensor(x, make_version_counter(x))
        x.add_(1)
        watched.check_unchanged("x")


def test_no_memory_is_held() -> None:
    x = torch.zeros(1000)
    watched = CallersTensor(x, make_version_counter(x))
    assert watched.alive
    del x
    assert not watched.alive


def test_the_same_tensor_is_known_again() -> None:
    x = torch.zeros(8)
    watched = CallersTensor(x, make_version_counter(x))
    assert watched.is_same(x)
    assert watched.is_same(x.view(8)), "elements, not objects, are compared"
    assert not watched.is_same(x[:4])
    assert not watched.is_same(x.view(2, 4))
    assert not watched.is_same(x.view(torch.int32))
    assert not watched.is_same(torch.zeros(8))
    assert not CallersTensor(x).is_same(x), "its changes are not seen"
    x.add_(1)
    assert not watched.is_same(x)


class Layer(nn.Module):
    """Returns what it saves, which the next layer saves too."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.linear, self.function = nn.Linear(WIDTH, WIDTH), function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self.linear(x))


def make_layers(function: Callable[[Tensor], Tensor]) -> list[nn.Module]:
    torch.manual_seed(0)
    return [Layer(function) for _ in range(BLOCKS)]


def run_step(layers: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x.sum()


@pytest.mark.parametrize("budget", ["min", None])
@pytest.mark.parametrize("function", [torch.relu, torch.tanh])
def test_what_two_graphs_save_moves_once(
    spill_directory: Path,
    fresh_programs: None,
    fresh_dynamo: None,
    budget: str | None,
    function: Any,
) -> None:
    """And is read once: the backward that asks for it first passes it on to the other one."""
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))
    plain = make_layers(function)
    run_step(plain, x).backward()
    layers = make_layers(function)
    options: dict[str, Any] = {"memory_budget": budget, "min_bytes": 1, "compiler": "eager"}
    compiled = [
        fxoffload.compile(layer, directory=spill_directory, ioengine="posix", **options)
        for layer in layers
    ]
    for _ in range(3):
        fxoffload.reset_statistics()
        run_step(compiled, x).backward()
        done = fxoffload.statistics()
        for layer, other in zip(layers, plain, strict=True):
            for parameter, expected in zip(layer.parameters(), other.parameters(), strict=True):
                assert torch.equal(parameter.grad, expected.grad)
                parameter.grad = None
        assert done.live_bytes == 0
        if budget == "min":
            assert done.offloaded_bytes == BLOCKS * x.nbytes
            assert done.deduplicated_bytes == (BLOCKS - 1) * x.nbytes
    if budget == "min":
        assert done.read_bytes + done.forwarded_bytes == BLOCKS * x.nbytes
        (schedule,) = fxoffload.schedules()
        assert schedule.moved_bytes == schedule.saved_bytes == BLOCKS * x.nbytes


def test_what_the_program_holds_is_written_in_no_step_but_the_first(
    spill_directory: Path, fresh_programs: None, fresh_dynamo: None
) -> None:
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))
    options: dict[str, Any] = {"memory_budget": "min", "min_bytes": 1, "compiler": "eager"}
    layers = [
        fxoffload.compile(layer, directory=spill_directory, ioengine="posix", **options)
        for layer in make_layers(torch.relu)
    ]
    held: list[Tensor] = []
    for holds, expected in ((True, BLOCKS), (True, 0), (False, 0), (False, BLOCKS)):
        fxoffload.reset_statistics()
        y = x
        for layer in layers:
            y = layer(y)
            if holds:
                held.append(y)
        loss = y.sum()
        del y
        loss.backward()
        held.clear()
        done = fxoffload.statistics()
        assert done.offloaded_bytes == expected * x.nbytes
        assert done.kept_bytes == (0 if expected else BLOCKS * x.nbytes)


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
@pytest.mark.parametrize("by_view", [False, True])
def test_a_change_between_the_passes_is_an_error_as_without_this_backend(
    spill_directory: Path, fresh_dynamo: None, compiler: str, by_view: bool
) -> None:
    """Also where the value has been written out before the change."""

    def train(backend: Any, *, changed: bool) -> Tensor:
        torch._dynamo.reset()
        weight = torch.linspace(-1, 1, WIDTH * WIDTH).view(WIDTH, WIDTH).requires_grad_()
        step = torch.compile(lambda x: torch.relu(x @ weight).sum(), backend=backend)
        x = torch.linspace(0, 1, 64 * WIDTH).view(64, WIDTH).requires_grad_() * 1
        loss = step(x)
        if changed:
            with torch.no_grad():
                (x[1:] if by_view else x).add_(1)
        loss.backward()
        assert weight.grad is not None
        return weight.grad

    options = {"memory_budget": "min", "min_bytes": 1, "ioengine": "posix"}
    config = fxoffload.OffloadConfig(directory=spill_directory, compiler=compiler, **options)
    ours = fxoffload.backend.BoundBackend(config)
    expected = train("aot_eager", changed=False)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        train("aot_eager", changed=True)
    for _ in range(2):  # In the second step it is known that x stays anyway.
        fxoffload.reset_statistics()
        assert torch.allclose(train(ours, changed=False), expected)
        done = fxoffload.statistics()
        assert done.offloaded_bytes + done.kept_bytes >= 64 * WIDTH * 4, "x is moved"
        with pytest.raises(ModifiedError, match="modified by an inplace operation"):
            train(ours, changed=True)
