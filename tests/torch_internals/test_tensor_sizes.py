"""Sizes and layouts of fake tensors as numbers: dense, symbolic, and dependent on data."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import toys
from torch import Tensor
from torch.fx.experimental.symbolic_shapes import ShapeEnv

from fxoffload.graph import get_saved, get_tensor
from fxoffload.torch_internals.tensor_sizes import (
    count_bytes,
    guess_int,
    has_hints,
    hint_int,
    is_bounded,
    is_dense,
    is_static,
    is_strided,
    may_grow,
)


@pytest.mark.parametrize(
    ("tensor", "dense"),
    [
        (torch.empty(4, 6), True),
        (torch.empty(4, 6).t(), True),
        (torch.empty(2, 3, 4).permute(1, 2, 0), True),
        (torch.empty(4, 1, 6)[:, :, :], True),
        (torch.empty(()), True),
        (torch.empty(0, 4), True),
        (torch.empty(4, 6)[:, :3], False),
        (torch.empty(4, 6)[:, ::2], False),
        (torch.empty(1, 6).expand(4, 6), False),
        (torch.empty(16).as_strided((4, 4), (2, 1)), False),
    ],
)
def test_is_dense(tensor: Tensor, dense: bool) -> None:
    assert is_dense(tensor) is dense


def test_count_bytes() -> None:
    assert count_bytes(torch.empty(3, 5, dtype=torch.bfloat16)) == 30
    assert count_bytes(torch.empty(1, 5, dtype=torch.bool).expand(4, 5)) == 20
    assert count_bytes(torch.empty(0, 5)) == 0


def test_symbolic_sizes_count_by_their_hint() -> None:
    graph = toys.trace_dynamic(toys.deep)
    tensors = [get_tensor(node) for node in get_saved(graph)]
    (symbolic, *_) = (t for t in tensors if t is not None and isinstance(t.size(0), torch.SymInt))
    assert has_hints(symbolic)
    assert hint_int(symbolic.size(0)) == 8
    assert count_bytes(symbolic) == 8 * 16 * 4


def test_a_symbolic_size_is_the_largest_that_is_declared() -> None:
    """The bound of a guard is not used: it may be far above the sizes that occur."""
    found: list[int] = []
    grows: list[bool] = []

    def backend(gm: torch.fx.GraphModule, inputs: list[Any]) -> Any:
        rows, columns = (x for x in inputs if isinstance(x, torch.SymInt))
        found.extend(map(guess_int, (rows, columns, rows * columns + 3)))
        example = gm.graph.find_nodes(op="placeholder")[-1].meta["example_value"]
        made = [example.new_empty(size) for size in (rows, columns, 4)]
        grows.extend(map(may_grow, (example, *made)))
        assert hint_int(rows) == 16
        return gm

    def step(x: torch.Tensor) -> torch.Tensor:
        return x + 1 if x.shape[1] < 1000 else x

    x = torch.randn(16, 8)
    torch._dynamo.mark_dynamic(x, 0, min=2, max=64)
    torch._dynamo.mark_dynamic(x, 1)
    torch.compile(step, backend=backend)(x)
    assert found == [64, 8, 64 * 8 + 3]
    assert grows == [True, False, True, False], "no largest number of columns is declared"


def test_size_that_depends_on_data_is_the_largest_it_can_be() -> None:
    shapes = ShapeEnv()
    unbounded, bounded = shapes.create_unbacked_symint(), shapes.create_unbacked_symint()
    torch._check(bounded <= 24)
    torch._check(bounded >= 0)
    assert (guess_int(bounded), guess_int(2 * bounded + 1), is_bounded(bounded)) == (24, 49, True)
    assert (guess_int(unbounded), is_bounded(unbounded)) == (0, False)
    with pytest.raises(ValueError, match="no hint"):
        hint_int(bounded)


@pytest.mark.parametrize("layout", toys.LAYOUTS)
def test_layouts_that_are_not_understood_are_not_touched(layout: str) -> None:
    tensor = toys.make_layout(layout)
    assert not is_strided(tensor)
    assert (count_bytes(tensor), has_hints(tensor), is_static(tensor)) == (0, False, False)
