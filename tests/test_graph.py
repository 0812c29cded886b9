"""Facts about nodes: aliases, views, mutation."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
import toys
from toys import Half, Sketch, aten

from fxoffload.graph import (
    find_alias_sources,
    find_mutated,
    find_views,
    get_output,
    get_results,
    get_returned,
    get_saved,
    is_scatter,
    is_view,
    require_tensor,
)


@pytest.fixture
def half() -> Half:
    return Sketch().forward


@pytest.mark.parametrize(
    ("target", "args", "view"),
    [
        (aten.t.default, (), True),
        (aten.view.default, ([16],), True),
        (aten.expand.default, ([3, 4, 4],), True),
        (aten.as_strided.default, ([2], [1]), True),
        (aten.view.dtype, (torch.int32,), True),
        (aten.detach.default, (), True),
        # The schema of these is silent; the storage tells.
        (aten._unsafe_view.default, ([16],), True),
        (aten.alias.default, (), True),
        (aten.sin.default, (), False),
        (aten.clone.default, (), False),
        (aten.add_.Scalar, (1,), False),
    ],
)
def test_is_view(half: Half, target: Any, args: tuple[Any, ...], view: bool) -> None:
    x = half.input("x", torch.empty(4, 4))
    node = half.call(target, x, *args)
    assert is_view(node) is view
    aliases = view or bool(find_mutated(node))
    assert find_alias_sources(node) == ([x] if aliases else [])


def test_schema_tells_where_metadata_does_not(half: Half) -> None:
    """Fake tensors that were made anew share no storage; a declared alias stays one."""
    x = half.input("x", torch.empty(4, 4))
    declared, silent = half.call(aten.t.default, x), half.call(aten._unsafe_view.default, x, [16])
    for node in (declared, silent):
        node.meta["val"] = node.meta["val"].clone()
    assert is_view(declared)
    assert not is_view(silent)


def test_inputs_are_no_views(half: Half) -> None:
    x = half.input("x", torch.empty(4, 4))
    assert not is_view(x)
    assert find_alias_sources(x) == []


def test_items_of_a_split_look_at_its_argument(half: Half) -> None:
    x = half.input("x", torch.empty(4, 4))
    split = half.call(aten.split.Tensor, x, 2)
    item = half.call(operator.getitem, split, 1)
    assert find_alias_sources(item) == [x]
    assert is_view(item)
    # The split reads no data either, now that an item of it is known.
    assert is_view(split)
    assert find_alias_sources(split) == []


def test_items_of_a_sort_are_new(half: Half) -> None:
    x = half.input("x", torch.empty(4, 4))
    sort = half.call(aten.sort.default, x)
    item = half.call(operator.getitem, sort, 1)
    assert find_alias_sources(item) == []
    assert is_view(item)
    assert not is_view(sort)


def test_list_arguments_are_looked_at(half: Half) -> None:
    x, y = half.input("x", torch.empty(4, 4)), half.input("y", torch.empty(4, 4))
    assert not is_view(half.call(aten.cat.default, [x, y]))


def test_views_of_views(half: Half) -> None:
    x, y = half.input("x", torch.empty(4, 4)), half.input("y", torch.empty(4, 4))
    turned = half.call(aten.t.default, x)
    flat = half.call(aten._unsafe_view.default, turned, [4, 2, 2])
    half.call(aten.relu.default, flat)
    other = half.call(aten.t.default, y)
    assert find_views([x]) == {turned, flat}
    assert find_views([x, y]) == {turned, flat, other}
    assert find_views([flat]) == set()


def test_mutated(half: Half) -> None:
    x, y = half.input("x", torch.empty(4)), half.input("y", torch.empty(4))
    assert find_mutated(half.call(aten.copy_.default, x, y)) == [x]
    assert find_mutated(half.call(aten.add.Tensor, x, y)) == []
    assert find_mutated(x) == []


def test_results_and_saved() -> None:
    graph = toys.make_chain(2)
    assert [node and node.name for node in get_results(graph.forward.graph)] == [
        "out",
        "layer0",
        "layer1",
    ]
    assert [node.name for node in get_returned(graph)] == ["out"]
    assert [node.name for node in get_saved(graph)] == ["layer0", "layer1"]
    assert get_output(graph.forward.graph).op == "output"


def test_a_tensor_is_required(half: Half) -> None:
    x = half.input("x", torch.empty(4))
    assert require_tensor(x) is x.meta["val"]
    with pytest.raises(AssertionError, match="output produces no tensor"):
        require_tensor(get_output(half.finish([x]).graph))


def test_constant_results_appear_as_none() -> None:
    sketch = Sketch()
    x = sketch.forward.input("x", torch.empty(4))
    assert get_results(sketch.forward.finish([None, x, 3]).graph) == [None, x, None]


@pytest.mark.parametrize(
    ("target", "scatters"),
    [
        (aten.index_put.default, True),
        (aten._unsafe_index_put.default, True),
        (aten._unsafe_masked_index_put_accumulate.default, True),
        (aten.scatter.src, True),
        (aten.scatter_add.default, True),
        (aten.scatter_reduce.two, True),
        # Their place is known: a loop like others.
        (aten.slice_scatter.default, False),
        (aten.select_scatter.default, False),
        (aten.sin.default, False),
        (operator.getitem, False),
    ],
)
def test_is_scatter(half: Half, target: Any, scatters: bool) -> None:
    assert is_scatter(half.graph.call_function(target)) is scatters
