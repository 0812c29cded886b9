"""Every graph of a model up to its partition, also with tensors that have no memory."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from compiling import Recorder
from torch import Tensor, fx, nn
from toys import WEIGHT, make_input

from fxoffload.config import OffloadConfig
from fxoffload.errors import BudgetError
from fxoffload.graph import get_results, get_tensor
from fxoffload.inspection.tracing import partition_graphs, partition_without_memory
from fxoffload.torch_internals import OffloadPartitioner

pytestmark = pytest.mark.usefixtures("fresh_dynamo")

EAGER = OffloadConfig(directory=".", compiler="eager")


class Recorders(list[Recorder]):
    """One for each graph; `make` is called for it."""

    def make(self) -> OffloadPartitioner:
        self.append(Recorder())
        return OffloadPartitioner(self[-1], "test")

    @property
    def rows(self) -> list[list[Any]]:
        """Rows of the first result of each partition that was made, graph by graph."""
        return [[find_rows(forward) for forward, *_ in each.calls] for each in self]


def find_rows(forward: fx.GraphModule) -> Any:
    tensor = get_tensor(get_results(forward.graph)[0])
    return None if tensor is None else tensor.size(0)


def broken(x: Tensor, *, scale: float) -> Tensor:
    h = (x @ WEIGHT).tanh()
    torch._dynamo.graph_break()
    return (h * scale @ WEIGHT).tanh().sum()


@pytest.mark.parametrize("compiler", ["eager", "inductor"])
def test_each_graph_has_a_partitioner_of_its_own(
    compiler: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("code was generated")

    monkeypatch.setattr(torch._inductor.graph.GraphLowering, "run", refuse)
    WEIGHT.grad = None  # Other tests have trained it.
    made, config = Recorders(), OffloadConfig(directory=".", compiler=compiler)
    found = partition_graphs(broken, (make_input(),), {"scale": 2.0}, config, made.make)
    assert found == 2
    assert [len(each.calls) for each in made] == [1, 1]
    assert WEIGHT.grad is None


def test_a_graph_that_saves_nothing_counts() -> None:
    made = Recorders()
    assert partition_graphs(lambda x: 2 * x, (torch.ones(3),), {}, EAGER, made.make) == 1
    assert [len(each.calls) for each in made] == [0]


def test_more_sizes_than_dynamos_limit_are_all_partitioned() -> None:
    """It would run what follows in eager mode, and no graph would be seen."""
    made = Recorders()
    sizes = list(range(2, 4 + torch._dynamo.config.recompile_limit))

    def model(*inputs: Tensor) -> None:
        for x in inputs:
            torch._dynamo.graph_break()
            layer(x)

    def layer(x: Tensor) -> Tensor:
        return (x @ WEIGHT).tanh()

    inputs = [make_input(size) for size in sizes]
    found = partition_graphs(model, inputs, {}, EAGER, made.make, dynamic=False)
    assert found == len(sizes)
    assert made.rows == [[size] for size in sizes]


def test_an_error_comes_out_as_it_is() -> None:
    def refuse(*_: Any) -> None:
        raise BudgetError("subject: fact; remedy")

    def make() -> OffloadPartitioner:
        return OffloadPartitioner(refuse, "test")  # pyright: ignore[reportArgumentType]

    with pytest.raises(BudgetError) as caught:
        partition_graphs(broken, (make_input(),), {"scale": 2.0}, EAGER, make)
    assert str(caught.value) == "subject: fact; remedy"


def test_nothing_has_memory_and_sizes_are_numbers() -> None:
    """Of 1 TiB and more; torch.compile would take the second batch for a symbolic size."""
    made = Recorders()

    def model(*inputs: Tensor) -> None:
        for x in inputs:
            torch._dynamo.graph_break()
            layer(x)

    def layer(x: Tensor) -> Tensor:
        return (2 * x).tanh()

    batches = (2**20, 2**21)
    inputs = [torch.empty(n, 2**18, device="meta", requires_grad=True) for n in batches]
    partition_without_memory(model, inputs, {}, EAGER, made.make)
    assert made.rows == [[2**20], [2**21]]
    assert all(type(rows) is int for (rows,) in made.rows)


def test_a_module_without_memory_is_traced_by_a_copy() -> None:
    """A layer of 256 GiB."""
    layer = nn.Sequential(nn.Linear(2**18, 2**18, bias=False, device="meta"), nn.Tanh())
    made = Recorders()
    x = torch.empty(2**20, 2**18, device="meta")
    partition_without_memory(layer, (x,), {}, EAGER, made.make)
    assert made.rows == [[2**20]]
    assert layer[0].weight.device.type == "meta"
