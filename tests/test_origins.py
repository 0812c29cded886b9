"""Where values come from is read from what torch.compile notes on nodes."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest
import torch
from torch import Tensor, fx, nn

import fxoffload
from fxoffload.origins import find_origin
from fxoffload.planner.plan import Origin


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(8, 8), nn.Linear(8, 8)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = layer(x).tanh()
        return x


@pytest.mark.usefixtures("fresh_dynamo")
def test_values_of_a_compiled_model(spill_directory: Path) -> None:
    options = {"directory": spill_directory, "compiler": "eager", "min_bytes": 1}
    (graph,) = fxoffload.explain(Block(), torch.randn(4, 8), options=options).graphs
    found = {value.name: value.origin for value in graph.plan.values}
    lines, start = inspect.getsourcelines(Block.forward)
    line = start + next(index for index, text in enumerate(lines) if "tanh" in text)
    assert found["tanh"] == Origin("", f"{__file__}:{line}", "tanh", "4 x 8", "float32")


def test_the_innermost_module_without_the_name_of_the_root() -> None:
    graph = fx.Graph()
    node = graph.placeholder("x")
    for path, expected in (
        ("L['self']", ""),
        ("L['self'].layers.0.up", "layers.0.up"),
        ("L['self']._modules['layers']._modules['0']", "layers.0"),
        ("L['fn'].1", "1"),
    ):
        node.meta["nn_module_stack"] = {"a": ("L['self']", Block), "b": (path, nn.Linear)}
        assert find_origin(node).module == expected


def test_a_node_of_which_nothing_is_noted() -> None:
    node = fx.Graph().placeholder("x")
    assert find_origin(node) == Origin(op="input")
