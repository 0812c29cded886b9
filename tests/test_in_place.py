"""Modules that are compiled in place, by path or by class."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from waiting import wait_for_writes

import fxoffload
from fxoffload.config import OffloadConfig
from fxoffload.errors import ConfigError
from fxoffload.in_place import compile_in_place

WIDTH = 8


class Block(nn.Module):
    """With another block inside if `depth`."""

    def __init__(self, depth: int = 0) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)
        self.inner = Block(depth - 1) if depth else None

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x).tanh()
        return x if self.inner is None else self.inner(x)


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.first = Block()
        self.listed = nn.ModuleList([Block(), Block(1)])
        self.chained = nn.Sequential(Block(), Block())
        self.named = nn.ModuleDict({"a": Block()})
        self.chain_of_torch = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.Tanh())

    def forward(self, x: Tensor) -> Tensor:
        for block in self.listed:
            x = block(x)
        return self.chain_of_torch(self.named["a"](self.chained(self.first(x))))


@pytest.fixture
def options(spill_directory: Path, fresh_dynamo: None) -> dict[str, Any]:
    """What makes everything move."""
    return {
        "directory": spill_directory, "memory_budget": "min", "min_bytes": 1, "compiler": "eager",
    }  # fmt: skip


def train(modules: str | None, **options: Any) -> tuple[list[Tensor], int, int]:
    """Gradients; graphs that were compiled; bytes that moved."""
    torch._dynamo.reset()
    model = Model()
    names = list(model.state_dict())
    compile_in_place(model, modules, **options)
    before = fxoffload.graph_counts().compiled
    fxoffload.reset_statistics()
    model(torch.linspace(-1, 1, 4 * WIDTH).view(4, WIDTH)).sum().backward()
    wait_for_writes()
    done = fxoffload.statistics()
    assert done.live_bytes == done.inflight_bytes == 0
    assert type(model) is Model
    assert list(model.state_dict()) == names
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    return gradients, fxoffload.graph_counts().compiled - before, done.offloaded_bytes


@pytest.mark.parametrize(
    ("modules", "graphs"),
    [(None, 1), ("first", 1), ("listed", 2), ("chained", 1), ("named", 1), ("Block", 3)],
)
def test_what_is_compiled(modules: str | None, graphs: int, options: dict[str, Any]) -> None:
    """Blocks share a graph if their inputs are alike, too; one within another is part of it."""
    moved, compiled, moved_bytes = train(modules, **options)
    unmoved, _, unmoved_bytes = train(modules, **options, enabled=False)
    assert compiled == graphs
    assert moved_bytes > 0 == unmoved_bytes
    assert len(moved) == len(unmoved) > 0
    assert all(map(torch.equal, moved, unmoved))


def test_the_modules_that_are_compiled_come_back(options: dict[str, Any]) -> None:
    model = Model()
    assert compile_in_place(model, **options) == (model,)
    assert compile_in_place(model, "listed.1", **options) == (model.listed[1],)
    assert compile_in_place(model, "listed", **options) == tuple(model.listed)
    blocks = (model.first, *model.listed, *model.chained, model.named["a"])
    assert compile_in_place(model, "Block", **options) == blocks


@pytest.mark.parametrize(
    ("modules", "words"),
    [
        ("liste", r"^modules='liste' names no module of Model, .*; did you mean 'listed'\? print"),
        ("Blok", r"did you mean 'Block'\?"),
        ("chain_of_torch", "does not compile Linear in place, as its forward is torch's own"),
        ("Linear", "does not compile Linear in place"),
    ],
)
def test_names_that_cannot_be_compiled(modules: str, words: str, options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=words):
        compile_in_place(Model(), modules, **options)


def test_a_cache_for_generation_is_warned_of(options: dict[str, Any]) -> None:
    model = Model()
    model.config = SimpleNamespace(use_cache=True)
    with pytest.warns(RuntimeWarning, match="^use_cache is on in the config of Model: torch then"):
        compile_in_place(model, "listed", **options)
    model.config.use_cache = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compile_in_place(model, "listed", **options)


def test_a_chain_of_torch_cannot_be_compiled_whole(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not compile Sequential in place"):
        compile_in_place(nn.Sequential(Block()), **options)


def test_options_are_checked_before_anything_is_compiled() -> None:
    model = Model()
    with pytest.raises(ConfigError, match="memory_budget='lots' is not a size"):
        compile_in_place(model, memory_budget="lots")
    with pytest.raises(ConfigError, match="does not exist"):
        compile_in_place(model, directory="/nowhere", ioengine="posix")
    assert model(torch.zeros(1, WIDTH)).shape == (1, WIDTH)


def test_the_arguments_of_torch_compile_are_passed_on(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    monkeypatch.setattr(Model, "compile", lambda self, **arguments: seen.update(arguments))
    options["compiler"] = "inductor"
    compile_in_place(Model(), dynamic=True, fullgraph=True, mode="max-autotune", **options)
    assert seen.pop("backend").config == OffloadConfig(**options, mode="max-autotune")
    assert seen == {"dynamic": True, "fullgraph": True}
