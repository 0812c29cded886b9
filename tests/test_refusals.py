"""find_saved_values: the reason for which each kind of value may not be moved."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, fx
from toys import WEIGHT, Sketch, aten, itself, make_input, make_viewed

from fxoffload.graph import TrainingGraph
from fxoffload.passes.lifetimes import find_saved_values

Tracer = Callable[..., TrainingGraph]


def find_refusal(graph: TrainingGraph) -> str | None:
    """The refusal of the only saved value."""
    (value,) = find_saved_values(graph)
    return value.refusal


def test_parameters_and_buffers_are_refused(trace: Tracer) -> None:
    module = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.Tanh(), torch.nn.Linear(16, 16))
    module.register_buffer("scale", torch.linspace(0, 1, 16))

    def function(x: Tensor) -> Tensor:
        return (module(x) * module.scale).sum()

    graph = trace(function, make_input())
    values = find_saved_values(graph)
    refusals = [v.refusal for v in values if v.name in graph.static_inputs]
    assert refusals == ["parameter, buffer or other static input"] * 2


def test_output_alias_is_refused() -> None:
    sketch = Sketch()
    a = sketch.begin(4, 4)
    view = sketch.forward.call(aten.t.default, a)
    assert find_refusal(sketch.finish_saving(a, view)) == "aliased by an output of the forward"


def save_input(gradient: bool) -> TrainingGraph:
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(4, 4))
    out = sketch.forward.call(aten.sin.default, x)
    (saved,) = sketch.save(x)
    cos = sketch.backward.call(aten.cos.default, saved)
    return sketch.finish([out], [cos if gradient else None])


def test_callers_input_is_refused() -> None:
    (value,) = find_saved_values(save_input(gradient=False))
    assert (value.owned, value.refusal) == (False, "input that belongs to the caller")


def test_input_that_gets_a_gradient_may_move_and_is_not_ours() -> None:
    (value,) = find_saved_values(save_input(gradient=True))
    assert (value.owned, value.refusal) == (False, None)


def test_input_that_the_program_stashed_itself_is_refused() -> None:
    """Autograd passes such a tensor to the backward without a check for changes."""
    graph = save_input(gradient=True)
    (x,) = graph.forward.graph.find_nodes(op="placeholder")
    x.meta["saved_tensor_with_no_vc_check"] = True
    (value,) = find_saved_values(graph)
    assert value.refusal is not None
    assert "stashed itself" in value.refusal


def test_constant_is_refused() -> None:
    sketch = Sketch()
    out = sketch.begin(4, 4)
    with sketch.forward.graph.inserting_before(out):
        constant = sketch.forward.graph.get_attr("constant")
    constant.meta["val"] = out.meta["val"].clone()
    (saved,) = sketch.save(constant)
    backward = sketch.backward.finish([sketch.backward.call(aten.exp.default, saved)])
    sketch.forward.graph.output((out, constant))
    forward = fx.GraphModule({"constant": torch.ones(4, 4)}, sketch.forward.graph)
    assert find_refusal(TrainingGraph(forward, backward, 1)) == "constant of the graph"


def test_mutated_storage_is_refused() -> None:
    """Written to through a view; the saved value is the base."""
    sketch = Sketch()
    a = sketch.begin(4, 4)
    view = sketch.forward.call(aten.t.default, a)
    sketch.forward.call(aten.add_.Scalar, view, 1)
    out = sketch.forward.call(aten.cos.default, a)
    assert find_refusal(sketch.finish_saving(a, out)) == "mutated in the forward"


def test_random_state_is_refused() -> None:
    graph = make_viewed(itself)
    placeholder = graph.forward.graph.find_nodes(op="placeholder")[0]
    placeholder.name = "fwd_rng_state_0"
    output = next(iter(graph.forward.graph.find_nodes(op="output")))
    output.args = ((output.args[0][0], placeholder),)
    (saved, *_) = graph.backward.graph.find_nodes(op="placeholder")
    saved.name = placeholder.name
    # A gradient for it, so that it does not count as the caller's.
    assert find_refusal(graph) == "state of a random number generator"


def test_data_dependent_size_is_refused(trace: Tracer) -> None:
    def function(x: Tensor) -> Tensor:
        h = x @ WEIGHT
        rows = h[h[:, 0] > 0]
        return (rows.sin() @ WEIGHT).exp().sum()

    with torch._dynamo.config.patch(capture_dynamic_output_shape_ops=True):
        graph = trace(function, make_input())
    refusals = [value.refusal for value in find_saved_values(graph)]
    assert "size that depends on data" in refusals


def test_storage_with_gaps_is_refused() -> None:
    """An input may be a part of a larger storage of the caller."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(4, 8)[:, ::2])
    out = sketch.forward.call(aten.sin.default, x)
    (saved,) = sketch.save(x)
    graph = sketch.finish([out], [sketch.backward.call(aten.cos.default, saved)])
    assert find_refusal(graph) == "storage with gaps or overlaps"


def test_conjugated_view_is_refused() -> None:
    sketch = Sketch()
    a = sketch.begin(4, 4, dtype=torch.complex64)
    view = sketch.forward.call(aten._conj.default, a)
    out = sketch.forward.call(aten.cos.default, a)
    assert find_refusal(sketch.finish_saving(view, out)) == "lazily conjugated or negated view"


def test_foreign_device_is_refused() -> None:
    def on_meta(sketch: Sketch, a: fx.Node) -> fx.Node:
        return sketch.forward.call(aten.empty.memory_format, [4, 4], device="meta")

    assert find_refusal(make_viewed(on_meta)) == "device meta is not supported"


def test_sparse_layout_is_refused() -> None:
    graph = make_viewed(itself)
    for node in graph.forward.graph.find_nodes(op="call_function", target=aten.sin.default):
        with node.meta["val"].fake_mode:
            node.meta["val"] = torch.eye(4).to_sparse()
    assert find_refusal(graph) == "tensor subclass or layout that is not understood"
