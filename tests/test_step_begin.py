"""A step begins with a forward of the model, where the model runs uncompiled."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxoffload
from fxoffload import runtime
from fxoffload.step_begin import begin_with_forwards

WIDTH = 8


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).tanh()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([Block()])

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks[0](x + 1.0)


@pytest.fixture
def begun(monkeypatch: pytest.MonkeyPatch) -> list[None]:
    """Has an item for each begin."""
    found: list[None] = []
    monkeypatch.setattr(runtime, "note_forward", lambda: found.append(None))
    return found


def test_a_forward_begins_a_step(begun: list[None]) -> None:
    """Also of copies and files of the model, once each."""
    model = Model()
    begin_with_forwards(model)
    begin_with_forwards(model)
    x = torch.zeros(4, WIDTH)
    model(x)
    assert len(begun) == 1
    pickle.loads(pickle.dumps(copy.deepcopy(model)))(x)
    assert len(begun) == 2


def test_a_function_has_no_forward(begun: list[None]) -> None:
    begin_with_forwards(len)
    assert begun == []


def test_a_graph_has_nothing_of_it(begun: list[None], fresh_dynamo: None) -> None:
    """Its call begins the step, see runtime.note_forward."""
    model = Model()
    begin_with_forwards(model)
    torch.compile(nn.Sequential(model), backend="eager", fullgraph=True)(torch.zeros(4, WIDTH))
    assert begun == []


def test_a_compiled_model_begins_a_step_in_front_of_its_graph(
    begun: list[None], fresh_dynamo: None
) -> None:
    """The hooks of the outermost module are no part of the graph."""
    model = Model()
    begin_with_forwards(model)
    torch.compile(model, backend="eager", fullgraph=True)(torch.zeros(4, WIDTH))
    assert len(begun) == 1


def test_a_model_that_runs_uncompiled_for_a_graph_break_begins_a_step(
    begun: list[None], fresh_dynamo: None
) -> None:
    """Dynamo runs a loop with a graph break in it uncompiled, and compiles what it calls."""

    class Loop(Model):
        def forward(self, x: Tensor) -> Tensor:
            x = x + 1.0
            for block in self.blocks:
                x = block(x)
            return x

    model = Loop()
    model.blocks[0].register_forward_hook(lambda *_: torch._dynamo.graph_break())
    begin_with_forwards(model)
    compiled = torch.compile(nn.Sequential(model), backend="eager")
    for count in (1, 2):
        compiled(torch.zeros(4, WIDTH))
        assert len(begun) == count


@pytest.mark.parametrize(
    "compile_model",
    [
        fxoffload.compile,
        fxoffload.compile_in_place,
        partial(fxoffload.compile_in_place, modules="blocks"),
    ],
)
def test_models_that_are_compiled_begin_steps(
    begun: list[None],
    compile_model: Callable[..., Any],
    spill_directory: Path,
    fresh_dynamo: None,
) -> None:
    model = Model()
    compile_model(model, directory=spill_directory, compiler="eager")
    assert len(model._forward_pre_hooks) == 1
