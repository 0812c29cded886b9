"""Scratch memory of kernels: the counted bytes, compared with the allocator on this CPU."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_leaves
from toys import Half, Sketch, aten

from fxoffload.scratch import count_scratch_bytes
from fxoffload.sizes import MIB

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.measure import record_memory


@pytest.mark.parametrize(
    "packet",
    [
        aten._scaled_dot_product_cudnn_attention_backward,
        aten._scaled_dot_product_flash_attention_backward,
    ],
)
def test_the_backward_of_attention_adds_up_in_float32(packet: Any) -> None:
    """The gradient of the queries, and a sum for each row of its softmax."""
    half = Sketch().forward
    gradient, query = (half.input(name, torch.empty(2, 3, 16, 8)) for name in "gq")
    node = half.graph.call_function(packet.default, (gradient, query))
    assert count_scratch_bytes(node) == 4 * 2 * 3 * 16 * (8 + 1)
    assert count_scratch_bytes(half.call(aten.sin.default, query)) == 0


TRIES = 20


def arrange(dims: int = 2, *, transposed: bool = False, groups: int = 1) -> list[Any]:
    """The last arguments of a convolution with windows of 3."""
    return [[1] * dims, [1] * dims, [1] * dims, transposed, [0] * dims, groups]


def make_case(
    shape: tuple[int, ...],
    weight: tuple[int, ...],
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.contiguous_format,
) -> tuple[torch.Tensor, torch.Tensor]:
    x = torch.randn(shape).to(dtype).to(memory_format=memory_format)
    return x, torch.randn(weight).to(dtype).to(memory_format=memory_format)


LAST = torch.channels_last
CONVOLUTIONS: dict[str, tuple[tuple[torch.Tensor, torch.Tensor], list[Any]]] = {
    "32 channels": (make_case((8, 32, 64, 64), (32, 32, 3, 3)), arrange()),
    "channels that are padded": (make_case((8, 33, 64, 64), (33, 33, 3, 3)), arrange()),
    "an image": (make_case((8, 3, 64, 64), (32, 3, 3, 3)), arrange()),
    "fewer results": (make_case((8, 32, 64, 64), (8, 32, 3, 3)), arrange()),
    "a large weight": (make_case((4, 256, 16, 16), (256, 256, 3, 3)), arrange()),
    "groups": (make_case((8, 32, 64, 64), (32, 8, 3, 3)), arrange(groups=4)),
    "one dimension": (make_case((8, 32, 4096), (32, 32, 3)), arrange(1)),
    "three dimensions": (make_case((2, 32, 16, 32, 32), (32, 32, 3, 3, 3)), arrange(3)),
    "transposed": (make_case((8, 32, 64, 64), (32, 32, 3, 3)), arrange(transposed=True)),
    "channels last": (
        make_case((8, 32, 64, 64), (32, 32, 3, 3), memory_format=LAST), arrange()
    ),
    "float64": (make_case((2, 32, 64, 64), (32, 32, 3, 3), torch.float64), arrange()),
    "float64 in groups": (
        make_case((2, 32, 64, 64), (32, 16, 3, 3), torch.float64), arrange(groups=2)
    ),
}  # fmt: skip


def count(target: Any, *args: Any) -> int:
    half: Half = Sketch().forward
    numbered = enumerate(args)
    nodes = [half.input(f"x{i}", x) if isinstance(x, torch.Tensor) else x for i, x in numbered]
    return count_scratch_bytes(half.call(target, *nodes))


def check(call: Callable[[], Any], counted: int, operands: int) -> None:
    """`counted` is what is allocated at the most, less what stays; oneDNN takes little beside."""
    kept = sum(x.nbytes for x in tree_leaves(call()) if x is not None)
    slack = max(MIB / 2, operands / 8)
    measured = 0
    for _ in range(TRIES):  # A peak that is too short is missed now and then.
        measured = max(measured, record_memory(call).peak_bytes - kept)
        if measured >= counted - slack:
            break
    assert counted - slack <= measured <= counted + slack


@pytest.mark.skipif(
    torch.backends.cpu.get_cpu_capability() != "AVX512", reason="read off a CPU with AVX-512"
)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_take_what_is_counted(name: str) -> None:
    (x, weight), rest = CONVOLUTIONS[name]
    args = (x, weight, None, *rest)
    y = aten.convolution(*args)
    operands = x.nbytes + weight.nbytes + y.nbytes
    counted = count(aten.convolution.default, *args)
    check(lambda: aten.convolution(*args), counted, operands)
    gradient = torch.randn_like(y)
    for wanted in ([True, True, False], [False, True, False]):
        args = (gradient, x, weight, None, *rest, wanted)
        counted = count(aten.convolution_backward.default, *args)
        check(partial(aten.convolution_backward, *args), counted, operands)


def test_a_convolution_on_a_gpu_counts_nothing() -> None:
    half = Half(FakeTensorMode())
    with half.mode:
        x = torch.empty(8, 32, 64, 64, device="cuda")
        weight = torch.empty(32, 32, 3, 3, device="cuda")
    node = half.call(
        aten.convolution.default, half.input("x", x), half.input("w", weight), None, *arrange()
    )
    assert count_scratch_bytes(node) == 0
