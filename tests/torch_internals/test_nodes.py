"""What a node is to torch: random numbers, collectives, wrappers."""

from __future__ import annotations

import operator
from typing import Any

import pytest
import torch
from torch import fx
from torch._inductor import inductor_prims
from torch._prims.rng_prims import run_and_save_rng_state
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.testing._internal.two_tensor import TwoTensor
from toys import Half, Sketch, aten

from fxoffload.torch_internals import is_collective, is_rng_state, is_wrapper_subclass


def test_collectives_are_told_from_other_ops() -> None:
    gather = torch.ops._c10d_functional.all_gather_into_tensor.default
    targets = (gather, torch.ops._c10d_functional.wait_tensor.default, aten.sin.default)
    found = [is_collective(fx.Graph().call_function(target)) for target in targets]
    assert found == [True, True, False]


def test_rng_states() -> None:
    half: Half = Sketch().forward
    both = half.graph.call_function(run_and_save_rng_state, (aten.rand.default, [4]))
    state = half.graph.call_function(operator.getitem, (both, 0))
    value = half.graph.call_function(operator.getitem, (both, 1))
    assert is_rng_state(state)
    assert not is_rng_state(value)
    assert is_rng_state(half.input("fwd_rng_state_0", torch.empty(16, dtype=torch.uint8)))
    assert not is_rng_state(half.input("primals_1", torch.empty(16)))
    other = half.call(aten.sort.default, half.input("x", torch.empty(4)))
    assert not is_rng_state(half.call(operator.getitem, other, 0))


ATTENTION_ON_CUDA = (
    aten._scaled_dot_product_flash_attention.default,
    aten._scaled_dot_product_efficient_attention.default,
    aten._scaled_dot_product_cudnn_attention.default,
)


@pytest.mark.parametrize("attention", ATTENTION_ON_CUDA)
def test_what_attention_drew_is_an_rng_state(attention: Any) -> None:
    """Two results of each: seed and offset, or the pair and what is left of it."""
    half: Half = Sketch().forward
    both = half.graph.call_function(attention, ())
    count = len(attention._schema.returns)
    states = [
        is_rng_state(half.graph.call_function(operator.getitem, (both, index)))
        for index in range(count)
    ]
    assert sum(states) == 2
    assert not any(states[:2])  # What it computes, and the sums of its softmax.


def test_parts_of_a_list_are_no_rng_states() -> None:
    half: Half = Sketch().forward
    parts = half.graph.call_function(aten.split.Tensor, ())
    assert not is_rng_state(half.graph.call_function(operator.getitem, (parts, 3)))


def test_inductors_seeds_are_rng_states() -> None:
    half: Half = Sketch().forward
    for target, args in ((inductor_prims.seed, ()), (inductor_prims.seeds, (2,))):
        assert is_rng_state(half.graph.call_function(target, (*args, torch.device("cpu"))))


def test_wrappers_have_no_storage_of_their_own() -> None:
    x = torch.ones(2)
    assert is_wrapper_subclass(TwoTensor(x, x))
    for other in (x, torch.nn.Parameter(x), FakeTensorMode().from_tensor(x)):
        assert not is_wrapper_subclass(other)
