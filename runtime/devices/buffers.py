"""Raw bytes of tensors, aligned memory, and reusable staging buffers."""

from __future__ import annotations

import ctypes
import mmap
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

STAGING_ALIGNMENT = 4096
# Memory of at least this size that a transfer fills is requested in huge pages: the kernel would
# allocate, zero and pin each page of 4 KiB separately.
LEAST_HUGE_BYTES = 4 * 2**20

_libc = ctypes.CDLL(None)


def find_span(tensor: torch.Tensor) -> int:
    """Bytes from the start of the first element to the end of the last one in the storage."""
    if tensor.is_contiguous() or tensor.numel() == 0:
        return tensor.nbytes
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return (last + 1) * tensor.element_size()


def span_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """The span of `tensor`, of any dtype, as a 1-d uint8 tensor on the same memory."""
    if _is_dense(tensor):
        return tensor.view(torch.uint8).view(-1)  # In half the time.
    offset = tensor.storage_offset() * tensor.element_size()
    empty = torch.empty(0, dtype=torch.uint8, device=tensor.device)
    return empty.set_(tensor.untyped_storage(), offset, (find_span(tensor),), (1,))


def byte_view(tensor: torch.Tensor) -> memoryview:
    """The span of the CPU tensor `tensor` as a writable memoryview that keeps it alive."""
    return _view_memory(tensor, tensor.data_ptr(), find_span(tensor))


def _view_memory(owner: torch.Tensor, address: int, nbytes: int) -> memoryview:
    """A writable view of `nbytes` at `address`, memory of `owner`, which the view keeps alive.

    Takes half the time of a view by numpy where compute has emptied the caches.
    """
    memory: Any = (ctypes.c_ubyte * nbytes).from_address(address)
    memory.owner = owner
    return memoryview(memory).cast("B")


def _is_dense(tensor: torch.Tensor) -> bool:
    """Whether bytes can be a view of `tensor`."""
    return bool(
        tensor.numel() and tensor.dim() and tensor.is_contiguous() and tensor.stride(-1) == 1
    )


def same_layout(
    size: Sequence[int], stride: Sequence[int], other: Sequence[int], other_stride: Sequence[int]
) -> bool:
    """Whether both layouts place each element at the same offset.

    Strides of dimensions of length 1 are not compared.
    """
    if stride == other_stride and size == other:
        return True
    return tuple(size) == tuple(other) and all(
        n <= 1 or s == t for n, s, t in zip(size, stride, other_stride, strict=True)
    )


def materialise(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, or a copy of it if it is conjugated or negated by a flag, not by its bytes."""
    if tensor.is_conj() or tensor.is_neg():
        return tensor.resolve_conj().resolve_neg()
    return tensor


def compact(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor` itself, or a contiguous copy if the span is larger than the elements.

    Expanded dimensions have length 1 in a copy. A tensor whose elements overlap in another way is
    not copied, as a copy could not be written back to it.
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
    """Copy `source` to `target`; elements that an expanded `target` repeats are written once."""
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

    span: that of the tensor (see find_span). The storage starts at the same address (storage offset
    0), as `as_strided`, which recreates views, counts from the start of the storage.
    """
    memory = torch.empty(span + alignment, dtype=torch.uint8)
    if span >= LEAST_HUGE_BYTES:
        ask_for_huge_pages(memory)
    address = memory.data_ptr()
    view = _view_memory(memory, address + (phase - address) % alignment, span)
    return torch.frombuffer(view, dtype=dtype).as_strided(size, stride), view


def ask_for_huge_pages(memory: torch.Tensor) -> None:
    """Request huge pages for the new `memory`, where Linux gives them on request.

    Source: madvise(2), MADV_HUGEPAGE.
    """
    start = -(-memory.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    nbytes = memory.data_ptr() + memory.nbytes - start
    # The call is only advice: an error, as from a kernel without huge pages, changes nothing.
    _libc.madvise(ctypes.c_void_p(start), ctypes.c_size_t(nbytes), mmap.MADV_HUGEPAGE)


@dataclass(slots=True, eq=False)
class StagingBuffer:
    """Host memory, aligned to STAGING_ALIGNMENT: the same bytes as a uint8 tensor and as a view."""

    tensor: torch.Tensor
    view: memoryview

    def take_bytes(self, nbytes: int) -> torch.Tensor:
        """The first `nbytes` as a tensor."""
        return self.tensor if nbytes == len(self.view) else self.tensor[:nbytes]


class StagingPool:
    """Reuses staging buffers by power-of-two size; keeps at most `max_free_bytes` of free ones.

    It has no lock, as finalizers call it. It relies on atomic operations of deques; each racing
    thread may exceed the bound by one buffer.
    """

    def __init__(self, *, max_free_bytes: int = 64 * 2**20) -> None:
        self._max_free_bytes = max_free_bytes
        self._free: dict[int, deque[StagingBuffer]] = {}

    @property
    def free_bytes(self) -> int:
        """Bytes of the free buffers."""
        return sum(size * len(buffers) for size, buffers in list(self._free.items()))

    def take(self, nbytes: int) -> StagingBuffer:
        """A buffer of at least `nbytes`."""
        size = max(STAGING_ALIGNMENT, 1 << (nbytes - 1).bit_length())
        try:
            return self._free[size].pop()
        except (KeyError, IndexError):
            return self._allocate(size)

    def give(self, buffer: StagingBuffer) -> None:
        """Take `buffer` back for reuse; the caller may not use it after this."""
        size = buffer.tensor.numel()
        if self.free_bytes + size <= self._max_free_bytes:
            self._free.setdefault(size, deque()).append(buffer)

    def _allocate(self, size: int) -> StagingBuffer:
        memory = torch.empty(size + STAGING_ALIGNMENT, dtype=torch.uint8)
        tensor = memory.narrow(0, -memory.data_ptr() % STAGING_ALIGNMENT, size)
        return StagingBuffer(tensor, tensor.numpy().data)
