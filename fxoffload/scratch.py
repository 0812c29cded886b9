"""Memory that kernels take from the allocator while they run, and for themselves.

Read off the allocator: attention on an H200 with torch 2.11, convolutions on a CPU with AVX-512
and torch 2.13. What is left out there stays below 3 MiB or an eighth of the operands.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxoffload.graph import get_tensor
from fxoffload.torch_internals.tensor_sizes import count_bytes, guess_int

aten = torch.ops.aten

_SUMMED_IN_FLOAT32 = (
    aten._scaled_dot_product_cudnn_attention_backward,
    aten._scaled_dot_product_flash_attention_backward,
)
# oneDNN computes in these, other dtypes go through a matrix of all windows.
_BLOCKED_DTYPES = (torch.float32, torch.bfloat16)
_BLOCKS = {"AVX512": 16, "AVX2": 8}  # Channels that lie together, by what a CPU can.


def count_scratch_bytes(node: fx.Node) -> int:
    """Bytes that the kernel of `node` takes beside its operands and results."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _SUMMED_IN_FLOAT32:
        return _count_query_sums(node)
    if packet is aten.convolution:
        return _count_convolution(node)
    if packet is aten.convolution_backward:
        return _count_convolution_backward(node)
    return 0


def _count_query_sums(node: fx.Node) -> int:
    """The gradient of attention's queries is added up in float32, beside its softmax's sums.

    Source: aten's cudnn/MHA.cpp and flash_attn/flash_api.cpp (dq_accum).
    """
    query = _find_tensor(node, 1)
    batch, heads, length, dim = (guess_int(size) for size in query.size())
    return torch.float32.itemsize * batch * heads * length * (dim + 1)


def _count_convolution(node: fx.Node) -> int:
    """On a CPU; a GPU's workspaces are cudnn's, which knows no bound."""
    x, weight = _find_tensor(node, 0), _find_tensor(node, 1)
    y = get_tensor(node)
    assert y is not None
    if not _is_plain(x):
        return 0
    _, _, bias, _, _, _, transposed, _, groups = node.args
    if x.dtype not in _BLOCKED_DTYPES:
        return _count_windows(x, weight, y, groups, copies=1)
    blocked = _count_blocked(x) + count_bytes(weight) + _count_blocked(y)
    # The result is put in plain order when the blocks of x are free again.
    scratch = max(blocked - count_bytes(y), _count_blocked(y))
    # Transposed, the bias is added to a copy.
    return scratch + count_bytes(y) * (bool(transposed) and bias is not None)


def _count_convolution_backward(node: fx.Node) -> int:
    gradient, x, weight = (_find_tensor(node, index) for index in range(3))
    if not _is_plain(x):
        return 0
    *_, groups, wanted = node.args
    assert isinstance(wanted, list | tuple)
    if x.dtype not in _BLOCKED_DTYPES:
        return _count_windows(x, weight, gradient, groups, copies=2)
    of_x = of_weight = 0
    if wanted[0]:
        blocked = _count_blocked(gradient) + count_bytes(weight) + _count_blocked(x)
        of_x = max(blocked - count_bytes(x), _count_blocked(x))
    if wanted[1]:  # Last, beside the other gradient.
        of_weight = _count_blocked(x, padded=False) + _count_blocked(gradient)
        if weight.dtype is not torch.float32:  # It is added up in that.
            of_weight += weight.numel() * torch.float32.itemsize
        of_x -= count_bytes(weight)  # There is no gradient of the weight yet.
    return max(of_x, of_weight)


def _is_plain(x: torch.Tensor) -> bool:
    """Whether a convolution on a CPU puts `x` in another order first: not what is channels_last."""
    return x.device.type == "cpu" and x.is_contiguous()


def _count_blocked(x: torch.Tensor, *, padded: bool = True) -> int:
    """Bytes of `x` in blocks of channels; fewer than a block stay as they are if not `padded`.

    Source: oneDNN's memory formats (nChw16c).
    """
    block = _BLOCKS.get(torch.backends.cpu.get_cpu_capability(), 1)
    channels = guess_int(x.size(1))
    if channels < block and not padded:
        return 0
    return count_bytes(x) // max(1, channels) * (-(-channels // block) * block)


def _count_windows(
    x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, groups: Any, *, copies: int
) -> int:
    """The matrix of what each result is made of. Source: aten's ConvolutionMM2d.cpp (columns).

    copies: how many operands each of several groups copies its part of.
    """
    groups = guess_int(groups)
    batch, channels, *_ = map(guess_int, x.size())
    window = math.prod(map(guess_int, weight.size()[2:]))
    places = math.prod(map(guess_int, y.size()[2:]))
    matrix = x.itemsize * batch * channels // groups * window * places
    parts = sorted((count_bytes(x), count_bytes(y)))[-copies:]
    return matrix + sum(parts) // groups * (groups > 1)


def _find_tensor(node: fx.Node, index: int) -> torch.Tensor:
    argument = node.args[index]
    assert isinstance(argument, fx.Node)
    tensor = get_tensor(argument)
    assert tensor is not None
    return tensor
