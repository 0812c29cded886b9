"""find_saved_values: one record for each storage, its lifetime, and its refusal."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import toys
from torch import Tensor, fx
from toys import WEIGHT, Sketch, aten, itself, make_input, make_viewed, names_of

import fxoffload
from fxoffload.errors import MarkError
from fxoffload.graph import TrainingGraph
from fxoffload.passes.lifetimes import build_alias_graph, find_saved_values
from fxoffload.planner.plan import KEPT, SavedValue

Tracer = Callable[..., TrainingGraph]


def find_movable(graph: TrainingGraph) -> list[SavedValue]:
    return [value for value in find_saved_values(graph) if value.refusal is None and value.owned]


def find_by_name(graph: TrainingGraph, name: str, **options: int) -> SavedValue:
    (value,) = (v for v in find_saved_values(graph, **options) if v.name == name)
    return value


def take(start: int, end: int, dim: int = 1, step: int = 1) -> Callable[..., fx.Node]:
    return lambda sketch, a: sketch.forward.call(aten.slice.Tensor, a, dim, start, end, step)


def transpose(sketch: Sketch, a: fx.Node) -> fx.Node:
    return sketch.forward.call(aten.t.default, a)


# --- one value for each storage -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("views", "member_bytes"),
    [
        ((itself, transpose), 1024),
        ((take(0, 10), take(6, 16)), 640),
        ((take(0, 16, step=2), take(1, 16, step=2), transpose), 1024),
        ((take(0, 5), take(5, 10), take(10, 16)), 512),
    ],
    ids=["transpose", "overlapping", "strided", "chunks"],
)
def test_views_of_one_storage_are_one_value(
    views: tuple[Callable[..., fx.Node], ...], member_bytes: int
) -> None:
    graph = make_viewed(*views)
    (value,) = find_saved_values(graph)
    assert value.name == "sin_default"
    assert len(value.members) == len(views)
    assert (value.nbytes, value.member_bytes) == (512, member_bytes)
    assert value.refusal is None
    assert not value.gathered


def test_zoo_saves_each_storage_once(zoo_graph: TrainingGraph) -> None:
    """No two values share a node of the alias graph, whatever views were saved."""
    aliases = build_alias_graph(zoo_graph.forward.graph)
    nodes = {node.name: node for node in zoo_graph.forward.graph.nodes}
    storages: list[int] = []
    for value in find_saved_values(zoo_graph):
        if value.gathered:
            continue
        tensor = nodes[value.name].meta["val"]
        storages.append(tensor.untyped_storage()._cdata)
        assert all(member in aliases for member in (nodes[name] for name in value.members))
    assert len(set(storages)) == len(storages)


def test_chunks_of_one_product(trace: Tracer) -> None:
    (value,) = find_movable(trace(toys.qkv, make_input()))
    assert (value.name, value.nbytes) == ("mm", 16 * 48 * 4)


def test_square_transpose_is_its_source(trace: Tracer) -> None:
    """A transposed view has the shape of its base: storages tell them apart, not shapes."""

    def function(x: Tensor) -> Tensor:
        h = (x @ WEIGHT).tanh()
        return (h @ h.t() @ WEIGHT).sum()

    values = find_movable(trace(function, make_input()))
    assert [value.name for value in values if value.nbytes == 1024] == ["tanh", "mm_1"]


def test_attention_outputs(trace: Tracer) -> None:
    """Items of a multi-output op are storages of their own."""
    graph = trace(toys.sdpa, make_input())
    names = [value.name for value in find_movable(graph)]
    items = [node for node in names if node.startswith("getitem")]
    assert len(items) == 2


@pytest.mark.parametrize(
    ("function", "dtype"),
    [
        (toys.bool_mask, torch.bool),
        (toys.int_indices, torch.int64),
        (toys.half, torch.bfloat16),
    ],
)
def test_dtypes(trace: Tracer, function: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
    graph = trace(function, make_input())
    nodes = {node.name: node for node in graph.forward.graph.nodes}
    sizes = [v.nbytes for v in find_movable(graph) if nodes[v.name].meta["val"].dtype == dtype]
    assert sizes == [256 * dtype.itemsize]


def test_expanded_member_counts_its_row() -> None:
    def expand(sketch: Sketch, a: fx.Node) -> fx.Node:
        row = sketch.forward.call(aten.slice.Tensor, a, 0, 0, 1)
        return sketch.forward.call(aten.expand.default, row, [64, 16])

    (value,) = find_saved_values(make_viewed(itself, expand))
    assert value.member_bytes == 512 + 64


# --- lifetimes ----------------------------------------------------------------------------------


def test_positions() -> None:
    graph = toys.make_chain(3)
    values = {value.name: value for value in find_saved_values(graph)}
    forward = [node.name for node in graph.forward.graph.nodes]
    backward = [node.name for node in graph.backward.graph.nodes]
    for index, value in enumerate(values.values()):
        assert forward[value.born] == f"layer{index}"
        assert forward[value.last_use] == (f"layer{index + 1}" if index < 2 else "out")
        assert backward[value.first_use] == backward[value.freed] == f"grad{index}"


def test_last_use_looks_through_views() -> None:
    sketch = Sketch()
    a = sketch.begin(4, 4)
    view = sketch.forward.call(aten.t.default, sketch.forward.call(aten.t.default, a))
    early = sketch.forward.call(aten.cos.default, a)
    late = sketch.forward.call(aten.exp.default, view, name="late")
    graph = sketch.finish_saving(a, early, late)
    (value,) = find_saved_values(graph)
    assert value.last_use == toys.position(graph.forward.graph, "late")


def test_a_view_is_no_reader() -> None:
    """A saved view at the end of the forward does not make its base a late value."""
    graph = make_viewed(transpose)
    (value,) = find_saved_values(graph)
    assert value.last_use == toys.position(graph.forward.graph, "cos_default")
    assert names_of(graph.forward.graph)[-1] == "t_default"


def test_backward_uses_look_through_views() -> None:
    sketch = Sketch()
    a = sketch.begin(4, 4)
    (saved,) = sketch.save(a)
    tangent = sketch.backward.input("tangents_1", torch.empty(4, 4))
    view = sketch.backward.call(aten.t.default, saved)
    other = sketch.backward.call(aten.exp.default, tangent)
    first = sketch.backward.call(aten.mul.Tensor, other, view, name="first")
    last = sketch.backward.call(aten.mul.Tensor, first, view, name="last")
    graph = sketch.finish([a], [last])
    (value,) = find_saved_values(graph)
    assert value.first_use == toys.position(graph.backward.graph, "first")
    assert value.freed == toys.position(graph.backward.graph, "last")


def test_value_that_the_backward_returns_is_read_by_its_end() -> None:
    sketch = Sketch()
    a = sketch.begin(4, 4)
    b = sketch.forward.call(aten.cos.default, a)
    (saved,) = sketch.save(a)
    graph = sketch.finish([b], [sketch.backward.call(aten.t.default, saved)])
    (value,) = find_saved_values(graph)
    assert value.first_use == value.freed == len(graph.backward.graph.nodes) - 1


def test_item_of_a_tuple_is_born_with_the_op_that_makes_it() -> None:
    """However far behind it the item is taken out."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(16, 16))
    sort = sketch.forward.call(aten.sort.default, x, name="sort")
    other = sketch.forward.call(aten.cos.default, x, name="other")
    (saved,) = sketch.save(sketch.forward.call(toys.operator.getitem, sort, 0, name="values"))
    graph = sketch.finish([other], [sketch.backward.call(aten.exp.default, saved)])
    (value,) = find_saved_values(graph)
    assert value.name == "values"
    assert value.born == value.last_use == toys.position(graph.forward.graph, "sort")


def test_order_is_of_birth(zoo_graph: TrainingGraph) -> None:
    born = [value.born for value in find_saved_values(zoo_graph)]
    assert born == sorted(born)


# --- small windows ------------------------------------------------------------------------------


def test_small_window_is_gathered() -> None:
    graph = make_viewed(take(0, 2), take(8, 10))
    values = find_saved_values(graph)
    assert [value.gathered for value in values] == [True, True]
    assert [value.nbytes for value in values] == [64, 64]
    assert [value.members for value in values] == [("slice_tensor",), ("slice_tensor_1",)]
    assert [value.last_use for value in values] == [value.born for value in values]
    assert [value.first_use for value in values] == [3, 4]


def test_covering_views_move_the_whole_storage() -> None:
    """Just above half of the storage: one transfer of all of it."""
    (value,) = find_saved_values(make_viewed(take(0, 5), take(8, 12)))
    assert not value.gathered
    assert value.nbytes == 512


def test_window_that_is_read_by_absolute_offsets_is_not_gathered() -> None:
    """as_strided looks at the storage: a dense copy of the window has another one."""
    sketch = Sketch()
    a = sketch.begin(8, 16)
    window = sketch.forward.call(aten.slice.Tensor, a, 0, 2, 4)
    b = sketch.forward.call(aten.cos.default, a)
    (saved,) = sketch.save(window)
    again = sketch.backward.call(aten.as_strided.default, saved, [2, 16], [16, 1], 16)
    graph = sketch.finish([b], [sketch.backward.call(aten.exp.default, again)])
    (value,) = find_saved_values(graph)
    assert not value.gathered


def test_window_that_nobody_reads_is_refused() -> None:
    sketch = Sketch()
    a = sketch.begin(8, 16)
    windows = [take(start, start + 2)(sketch, a) for start in (0, 8)]
    b = sketch.forward.call(aten.cos.default, a)
    (read, _) = sketch.save(*windows)
    values = find_saved_values(sketch.finish([b], [sketch.backward.call(aten.exp.default, read)]))
    assert [value.refusal for value in values] == [None, "not read by the backward"]
    assert [value.is_read for value in values] == [True, False]


# --- refusals -----------------------------------------------------------------------------------


def test_small_values_are_refused() -> None:
    graph = make_viewed(itself)
    assert find_by_name(graph, "sin_default", min_bytes=512).refusal is None
    refusal = find_by_name(graph, "sin_default", min_bytes=513).refusal
    assert refusal == "smaller than min_bytes"


def test_values_that_may_grow_beyond_the_least_size_are_not_refused(fresh_dynamo: None) -> None:
    graph = toys.trace_dynamic(lambda x: (x @ WEIGHT).exp().sin())
    (exp,) = (value for value in find_saved_values(graph) if value.name == "exp")
    for factor, refusal in ((16, None), (17, "smaller than min_bytes")):
        assert find_by_name(graph, "exp", min_bytes=factor * exp.nbytes).refusal == refusal


def test_empty_values_are_refused() -> None:
    def empty(sketch: Sketch, a: fx.Node) -> fx.Node:
        return sketch.forward.call(aten.new_empty.default, a, [0, 4])

    (value,) = find_saved_values(make_viewed(empty), min_bytes=0)
    assert value.refusal == "smaller than min_bytes"


# --- what the program says ----------------------------------------------------------------------


def test_what_the_program_keeps_stays(trace: Tracer) -> None:
    """The storage, whichever view of it was marked."""

    def function(x: Tensor) -> Tensor:
        h = (x @ WEIGHT).tanh()
        fxoffload.keep(h.t())
        return (fxoffload.keep(h.t()) @ h @ WEIGHT).sin().sum()

    graph = trace(function, make_input())
    assert find_by_name(graph, "tanh").refusal == KEPT
    assert [v.name for v in find_saved_values(graph) if v.refusal == KEPT] == ["tanh"]


def test_a_region_keeps_what_it_makes_and_what_its_backward_reads(trace: Tracer) -> None:
    def function(x: Tensor) -> Tensor:
        read = (x @ WEIGHT).tanh()
        beside = (x @ WEIGHT).sigmoid()
        with fxoffload.keeping():
            made = (read @ WEIGHT).exp()
        return ((made * beside) @ WEIGHT).sin().sum()

    found = find_saved_values(trace(function, make_input()))
    values = {v.name: v.refusal for v in found if v.owned}
    kept = {name for name, refusal in values.items() if refusal == KEPT}
    assert kept == {"tanh", "exp"}
    assert values["sigmoid"] is None


def test_an_activation_of_another_graph_that_is_kept_counts(trace: Tracer) -> None:
    def function(x: Tensor) -> Tensor:
        return (fxoffload.keep(x) @ WEIGHT).sin().sum()

    graph = trace(function, make_input().requires_grad_())
    value = find_by_name(graph, "primals_1")
    assert (value.owned, value.refusal, value.counts) == (False, KEPT, True)


def test_what_must_move_does_so_however_small(trace: Tracer) -> None:
    def function(x: Tensor) -> Tensor:
        with fxoffload.keeping():
            h = fxoffload.move((x @ WEIGHT).tanh())
        return (h @ WEIGHT).sigmoid().sum()

    graph = trace(function, make_input())
    value = find_by_name(graph, "tanh", min_bytes=2**20)
    assert (value.must_move, value.refusal) == (True, None), "stronger than the region"
    others = [v for v in find_saved_values(graph, min_bytes=2**20) if v.name != "tanh"]
    assert not any(v.must_move for v in others)
    assert "smaller than min_bytes" in {v.refusal for v in others}


def test_what_is_empty_or_not_saved_need_not_move(trace: Tracer) -> None:
    def function(x: Tensor) -> Tensor:
        empty = fxoffload.move((x[:0] @ WEIGHT).tanh())
        unread = fxoffload.move(x @ WEIGHT)
        return unread.tanh().sum() + empty.sum()

    values = find_saved_values(trace(function, make_input()))
    assert not any(value.must_move for value in values)


PARAMETER = torch.nn.Parameter(WEIGHT.detach().clone())


def move_parameter(x: Tensor) -> Tensor:
    return ((x @ WEIGHT) @ fxoffload.move(PARAMETER)).sin().sum()


def move_result(x: Tensor) -> Tensor:
    return fxoffload.move((x @ WEIGHT).tanh())


def move_input(x: Tensor) -> Tensor:
    return (fxoffload.move(x) @ WEIGHT).sum()


def move_and_keep(x: Tensor) -> Tensor:
    h = (x @ WEIGHT).tanh()
    return (fxoffload.move(h) @ fxoffload.keep(h.t())).sum()


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (
            move_parameter,
            r"is marked by fxoffload.move, and may not .*: parameter, buffer .*remove",
        ),
        (move_result, r"tanh \(0\.0 MiB\) is marked .*: aliased by an output .*; remove the mark"),
        (move_input, r"primals_1 .*: input that belongs to the caller"),
        (move_and_keep, r"tanh .* is marked by fxoffload.keep and by fxoffload.move: remove one"),
    ],
)
def test_what_may_not_move_is_an_error(
    trace: Tracer, function: Callable[[Tensor], Tensor], message: str
) -> None:
    graph = trace(function, make_input())
    with pytest.raises(MarkError, match=message):
        find_saved_values(graph)


def test_value_that_nobody_reads_is_refused() -> None:
    sketch = Sketch()
    a = sketch.begin(4, 4)
    out = sketch.forward.call(aten.cos.default, a)
    sketch.save(a)
    tangent = sketch.backward.input("tangents_1", torch.empty(4, 4))
    (value,) = find_saved_values(sketch.finish([out], [tangent]))
    assert value.refusal == "not read by the backward"
    assert not value.is_read


# --- aliases ------------------------------------------------------------------------------------


def test_aliases_only_through_own_arguments() -> None:
    """Equal fake tensors do not alias two values: only an op's own arguments can."""
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(4, 4))
    a = sketch.forward.call(aten.sin.default, x, name="a")
    b = sketch.forward.call(aten.cos.default, x, name="b")
    b.meta["val"] = a.meta["val"]
    out = sketch.forward.call(aten.mul.Tensor, a, b)
    placeholders = sketch.save(a, b)
    gradients = [sketch.backward.call(aten.exp.default, node) for node in placeholders]
    values = find_saved_values(sketch.finish([out], gradients))
    assert [value.members for value in values] == [("a",), ("b",)]


def test_analysis_changes_nothing(zoo_graph: TrainingGraph) -> None:
    before = toys.describe(zoo_graph.forward.graph), toys.describe(zoo_graph.backward.graph)
    first = find_saved_values(zoo_graph)
    assert find_saved_values(zoo_graph) == first
    after = toys.describe(zoo_graph.forward.graph), toys.describe(zoo_graph.backward.graph)
    assert before == after
