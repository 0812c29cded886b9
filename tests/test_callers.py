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
from fxoffload.runtime.store.callers import CallersTensor, Sites
from fxoffload.torch_internals import make_version_counter

WIDTH = 32
BLOCKS = 12


def test_a_change_by_any_view_is_seen() -> None:
    base = torch.zeros(4, 4)
    watched = [
        CallersTensor(x, "site", make_version_counter(x)) for x in (base, base[1:], base.t())
    ]
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
        watched = CallersTensor(x, "site", make_version_counter(x))
        x.add_(1)
        watched.check_unchanged("x")


def test_no_memory_is_held() -> None:
    x = torch.zeros(1000)
    watched = CallersTensor(x, "site", make_version_counter(x))
    assert watched.alive
    del x
    assert not watched.alive


def test_sites() -> None:
    sites = Sites()
    assert not sites.stay("a")
    sites.note("a", alive=True)
    sites.note("b", alive=False)
    sites.note(None, alive=True)
    assert sites.stay("a")
    assert not sites.stay("b")
    assert not sites.stay(None)
    sites.note("a", alive=False)
    sites.note("a", alive=True)
    assert not sites.stay("a"), "once alone, it moves for good"


class Layer(nn.Module):
    """Returns what it saves, which the next layer saves too."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.linear(x))


def make_layers() -> list[nn.Module]:
    torch.manual_seed(0)
    return [Layer() for _ in range(BLOCKS)]


def run_step(layers: list[Callable[[Tensor], Tensor]], x: Tensor) -> Tensor:
    for layer in layers:
        x = layer(x)
    return x.sum()


def test_what_the_graph_before_keeps_is_written_in_no_step_but_the_first(
    spill_directory: Path, fresh_dynamo: None
) -> None:
    x = torch.randn(64, WIDTH, generator=torch.Generator().manual_seed(1))
    plain = make_layers()
    run_step(plain, x).backward()
    layers = make_layers()
    options: dict[str, Any] = {"memory_budget": "min", "min_bytes": 1, "compiler": "eager"}
    compiled = [
        fxoffload.compile(layer, directory=spill_directory, ioengine="posix", **options)
        for layer in layers
    ]
    written: list[int] = []
    for _ in range(3):
        fxoffload.reset_statistics()
        run_step(compiled, x).backward()
        done = fxoffload.statistics()
        written.append(done.offloaded_bytes)
        for layer, other in zip(layers, plain, strict=True):
            for parameter, expected in zip(layer.parameters(), other.parameters(), strict=True):
                assert torch.equal(parameter.grad, expected.grad)
                parameter.grad = None
        assert done.live_bytes == 0
    # What every layer takes from another one; torch would compile the code that they share no
    # more than eight times, if each had a backend of its own.
    assert written == [(BLOCKS - 1) * x.nbytes, 0, 0]
    assert done.kept_bytes == (BLOCKS - 1) * x.nbytes


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
