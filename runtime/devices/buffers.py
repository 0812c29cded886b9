"""Raw bytes of tensors, memory at a wanted alignment, and reusable staging buffers."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

STAGING_ALIGNMENT = 4096
# Memory that a transfer fills comes in huge pages from here on: each page of 4 KiB would be made,
# zeroed and pinned for itself.
LEAST_HUGE_BYTES = 4 * 2**20

_libc = ctypes.CDLL(None)


def find_span(tensor: torch.Tensor) -> int:
    """Bytes from the first to behind the last element of `tensor` in its storage."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.nbytes
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def span_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The span of `tensor` as a uint8 tensor on the same memory, whatever the dtype."""
    offset = tensor.storage_offset() * tensor.element_size()
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), offset, (find_span(tensor),), (1,))


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The span of the CPU tensor `tensor` as a writable memoryview that keeps it alive."""
    if tensor.numel() and tensor.dim() and tensor.is_contiguous() and tensor.stride(-1) == 1:
        return tensor.view(torch.uint8).numpy().data.cast("B")  # The same, in half the time.
    return span_tensor(tensor).numpy().data


def same_layout(
    size: Sequence[int], stride: Sequence[int], other: Sequence[int], other_stride: Sequence[int]
) -> bool:
    """Whether both place every element alike; strides of dimensions of length 1 say nothing."""
    if stride == other_stride and size == other:
        return True
    return tuple(size) == tuple(other) and all(
        n <= 1 or s == t for n, s, t in zip(size, stride, other_stride, strict=True)
    )


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself, or a contiguous copy where the span is larger than the elements.

    Expanded dimensions of a copy have length 1. Elements that overlap in any other way keep their
    span, as no copy could be written back over them.
    """
    if tensor.is_contiguous() or find_span(tensor) <= tensor.nbytes:
        return tensor
    for dim, (size, stride) in enumerate(zip(tensor.shape, tensor.stride(), strict=True)):
        if stride == 0 and size > 1:
            tensor = tensor.narrow(dim, 0, 1)
    reach = 0
    dims = zip(tensor.stride(), tensor.shape, strict=True)
    for stride, size in sorted((stride, size) for stride, size in dims if size > 1):
        if stride <= reach:
            return tensor
        reach += stride * (size - 1)
    return tensor.clone(memory_format=torch.contiguous_format)


def copy_values(target: torch.Tensor, source: torch.Tensor) -> None:
    """Copy `source` to `target`, which may be expanded: one copy of each element is written."""
    for dim, (size, stride) in enumerate(zip(target.shape, target.stride(), strict=True)):
        if stride == 0 and size > 1:
            target, source = target.narrow(dim, 0, 1), source.narrow(dim, 0, 1)
    target.copy_(source)


def empty_at(
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    *,
    span: int,
    phase: int,
    alignment: int,
) -> tuple[torch.Tensor, memoryview]:
    """An uninitialised CPU tensor whose address modulo `alignment` is `phase`, and its bytes.

    `span` is that of a tensor of this shape. The storage starts at that address too (storage
    offset 0): views are replayed with `as_strided`, which counts from the start of the storage.
    """
    memory = torch.empty(span + alignment, dtype=torch.uint8)
    if span >= LEAST_HUGE_BYTES:
        ask_for_huge_pages(memory)
    start = (phase - memory.data_ptr()) % alignment
    view = memory.numpy().data[start : start + span]
    return torch.frombuffer(view, dtype=dtype).as_strided(size, stride), view


def ask_for_huge_pages(memory: torch.Tensor) -> None:
    """Let Linux back the fresh `memory` with huge pages, where it grants them on request.

    Source: madvise(2), MADV_HUGEPAGE.
    """
    start = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    nbytes = memory.data_ptr() + memory.nbytes - start
    # Only advice: what a kernel without huge pages answers changes nothing.
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(nbytes), mmap.MADV_HUGEPAGE)


@dataclass(slots=True, eq=False)
class StagingBuffer:
    """Host memory, aligned to STAGING_ALIGNMENT: the same bytes as a tensor and as a view."""

    tensor: torch.Tensor
    view: memoryview


class StagingPool:
    """Reuses staging buffers by power-of-two size; keeps at most `max_free_bytes` for later.

    It has no lock, for it runs inside finalizers: it relies on deque operations being atomic, and
    racing threads may exceed the bound by a buffer each.
    """

    def __init__(self, *, max_free_bytes: int = 64 * 2**20) -> None:
        self._max_free_bytes = max_free_bytes
        self._free: dict[int, deque[StagingBuffer]] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes of the buffers that wait for reuse."""
        return sum(size * len(buffers) for size, buffers in list(self._free.items()))

    def take(self, nbytes: int) -> StagingBuffer:
        """A buffer of at least `nbytes`."""
        size = max(STAGING_ALIGNMENT, 1 << (nbytes - 1).bit_length())
        try:
            return self._free[size].pop()
        except (KeyError, IndexError):
            return self._allocate(size)

    def give(self, buffer: StagingBuffer) -> None:
        """Take `buffer` back; nothing may read or write it any more."""
        size = buffer.tensor.numel()
        if self.free_bytes + size <= self._max_free_bytes:
            self._free.setdefault(size, deque()).append(buffer)

    def _allocate(self, size: int) -> StagingBuffer:
        memory = torch.empty(size + STAGING_ALIGNMENT, dtype=torch.uint8)
        tensor = memory.narrow(0, -memory.data_ptr() % STAGING_ALIGNMENT, size)
        return StagingBuffer(tensor, tensor.numpy().data)
