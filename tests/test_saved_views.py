"""Views of what was moved: the same bits as the saved ones, from the first reader on."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import toys
from test_insertion import move_everything
from torch import Tensor
from toys import WEIGHT, Sketch, aten, names_of

from fxoffload.graph import TrainingGraph

Tracer = Callable[..., TrainingGraph]


def test_view_of_another_dtype() -> None:
    sketch = Sketch()
    a = sketch.begin(4, 6)
    bits = sketch.forward.call(aten.view.dtype, a, torch.int16)
    part = sketch.forward.call(aten.slice.Tensor, bits, 1, 3, 11)
    out = sketch.forward.call(aten.cos.default, a)
    saved = sketch.save(part, a)
    gradients = [
        sketch.backward.call(aten.bitwise_not.default, saved[0]),
        sketch.backward.call(aten.exp.default, saved[1]),
    ]
    graph = sketch.finish([out], gradients)
    before = move_everything(graph)
    toys.assert_same_step(before, graph)


@pytest.mark.parametrize("dtype", [None, torch.int32, torch.int16])
def test_views_of_an_input_that_does_not_start_its_storage(dtype: torch.dtype | None) -> None:
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(10, 4)[2:])
    look = x if dtype is None else sketch.forward.call(aten.view.dtype, x, dtype)
    part = sketch.forward.call(aten.slice.Tensor, look, 0, 1, 8)
    out = sketch.forward.call(aten.sin.default, x)
    (saved,) = sketch.save(part)
    tangent = sketch.backward.input("tangents_1", torch.empty(8, 4))
    graph = sketch.finish([out], [tangent, sketch.backward.call(aten.neg.default, saved)])
    before = move_everything(graph)
    toys.assert_same_step(before, graph)


def test_complex_look_at_a_real_storage(trace: Tracer) -> None:
    def function(x: Tensor) -> Tensor:
        h = (x @ WEIGHT).tanh()
        z = torch.view_as_complex(h.view(16, 8, 2))
        return (torch.view_as_real(z.exp()).sum() + (h @ WEIGHT).exp().sum()).sin()

    graph = trace(function, toys.make_input())
    before = move_everything(graph)
    toys.assert_same_step(before, graph)


def test_views_sink_to_their_readers() -> None:
    """A view at the top of the backward does not pull the wait up to it."""
    sketch = Sketch()
    a = sketch.begin(4, 4)
    out = sketch.forward.call(aten.cos.default, a)
    (saved,) = sketch.save(a)
    tangent = sketch.backward.input("tangents_1", torch.empty(4, 4))
    view = sketch.backward.call(aten.t.default, saved, name="view")
    again = sketch.backward.call(aten.t.default, view, name="again")
    other = sketch.backward.call(aten.exp.default, tangent, name="other")
    reader = sketch.backward.call(aten.mul.Tensor, other, again, name="reader")
    graph = sketch.finish([out], [reader])
    before = move_everything(graph)
    names = names_of(graph.backward.graph)
    assert names == ["other", "prefetch_default", "wait_sin_default", "view", "again", "reader"]
    toys.assert_same_step(before, graph)
