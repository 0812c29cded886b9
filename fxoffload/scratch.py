"""Scratch memory: bytes that a kernel allocates for itself while it runs.

The formulas were checked against the allocator: attention on an H200 with torch 2.11, convolutions
on a CPU with AVX-512 and torch 2.13. Scratch memory that they do not count was below 3 MiB, or an
eighth of the operands.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import fx

from fxoffload.graph import require_tensor
from fxoffload.torch_internals.tensor_sizes import count_bytes, guess_int

aten = torch.ops.aten

_SUMMED_IN_FLOAT32 = (
    aten._scaled_dot_product_cudnn_attention_backward,
    aten._scaled_dot_product_flash_attention_backward,
)
# oneDNN convolves these dtypes on a CPU; for others, torch builds a matrix of all windows.
_BLOCKED_DTYPES = (torch.float32, torch.bfloat16)
_BLOCKS = {"AVX512": 16, "AVX2": 8}  # Channels in a block of oneDNN's layout, by CPU capability.


def count_scratch_bytes(node: fx.Node) -> int:
    """Bytes that the kernel of `node` allocates beside its operands and results."""
    packet = getattr(node.target, "overloadpacket", None)
    if packet in _SUMMED_IN_FLOAT32:
        return _count_query_sums(node)
    if packet is aten.convolution:
        return _count_convolution(node)
    if packet is aten.convolution_backward:
        return _count_convolution_backward(node)
    return 0


def _count_query_sums(node: fx.Node) -> int:
    """Scratch bytes of attention's backward: the queries' gradient and softmax sums, in float32.

    Source: aten's cudnn/MHA.cpp and flash_attn/flash_api.cpp (dq_accum).
    """
    query = _find_tensor(node, 1)
    batch, heads, length, dim = (guess_int(size) for size in query.size())
    return torch.float32.itemsize * batch * heads * length * (dim + 1)


def _count_convolution(node: fx.Node) -> int:
    """Scratch bytes on a CPU; 0 on a GPU, as cudnn states no bound for its workspaces."""
    x, weight = _find_tensor(node, 0), _find_tensor(node, 1)
    y = require_tensor(node)
    if not _is_plain(x):
        return 0
    _, _, bias, _, _, _, transposed, _, groups = node.args
    if x.dtype not in _BLOCKED_DTYPES:
        return _count_windows(x, weight, y, groups, copies=1)
    blocked = _count_blocked(x) + count_bytes(weight) + _count_blocked(y)
    # The blocks of x are freed before the result is converted to plain order.
    scratch = max(blocked - count_bytes(y), _count_blocked(y))
    # A transposed convolution adds the bias to a copy of the result.
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
    if wanted[1]:  # Computed last, while the gradient of x is in memory.
        of_weight = _count_blocked(x, padded=False) + _count_blocked(gradient)
        if weight.dtype is not torch.float32:  # The gradient of the weight is summed in float32.
            of_weight += weight.numel() * torch.float32.itemsize
        of_x -= count_bytes(weight)  # The gradient of the weight is not in memory yet.
    return max(of_x, of_weight)


def _is_plain(x: torch.Tensor) -> bool:
    """Whether a CPU convolution reorders `x` first; it does not if `x` is channels_last."""
    return x.device.type == "cpu" and x.is_contiguous()


def _count_blocked(x: torch.Tensor, *, padded: bool = True) -> int:
    """Bytes of a copy of `x` in blocks of channels, as oneDNN lays it out.

    padded: whether fewer channels than a block are padded to one; if not, they are not copied.
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
    """Bytes of the matrix of all windows. Source: aten's ConvolutionMM2d.cpp (columns).

    copies: the number of operands of which each group copies its part, if there are several groups.
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
    return require_tensor(argument)
