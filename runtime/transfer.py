"""What moves a tensor's bytes between its device and an engine: the protocols, and the layout."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch

from fxoffload.runtime.buffers import copy_values, find_span, same_layout, span_tensor
from fxoffload.runtime.ioengine import IOEngine, IOFuture


class Layout(NamedTuple):
    """What lies in a slot: the span of a tensor of this shape, without `head` and `tail`.

    `phase` is the tensor's address modulo the alignment; staged bytes have no phase.
    """

    size: tuple[int, ...]
    stride: tuple[int, ...]
    dtype: torch.dtype
    device: torch.device
    span: int
    staged: bool
    phase: int = 0
    head: bytes = b""
    tail: bytes = b""


class Arrival(Protocol):
    """A tensor that a copy has been started to."""

    y: torch.Tensor

    def finish(self) -> None:
        """Make `y` valid for what the current stream does next."""
        ...

    def close(self) -> None:
        """Nobody will use `y`: give the memory back as soon as no copy uses it."""
        ...


class Outgoing(Protocol):
    """One value on its way out, for as long as its bytes are in memory."""

    layout: Layout
    shares_memory: bool  # The tensor's own memory is read until the write has ended.
    crosses_bus: bool  # forward() copies between host and device.
    stays: bool  # Written bytes lie here and nowhere else, until the value is freed.
    slot_bytes: int  # Room to ask for: the same for equal tensors, wherever they lie.
    write_bytes: int  # Bytes that write() moves.

    def write(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to write to the slot at `offset`."""
        ...

    def release(self) -> None:
        """The program is about to reuse the tensor's memory."""
        ...

    def keep_copy(self) -> None:
        """Stop sharing the tensor's memory: keep the bytes in memory of our own."""
        ...

    def lend(self, size: Sequence[int], stride: Sequence[int]) -> torch.Tensor | None:
        """The tensor itself in this shape, or None where only a copy can be had."""
        ...

    def forward(self, size: Sequence[int], stride: Sequence[int]) -> Arrival:
        """Copy the value to a new tensor."""
        ...

    def close(self) -> None:
        """Give the memory back; the write has ended."""
        ...


class Incoming(Arrival, Protocol):
    """One value on its way back; the engine fills `view`. `finish` comes when it has."""

    view: memoryview

    def arrive(self, read: IOFuture) -> None:
        """A read into `view` has ended, perhaps in an error; called by any thread, any time."""
        ...


class Device(Protocol):
    """Moves tensors of one device between its memory and views that an engine can move."""

    def send(self, x: torch.Tensor, alignment: int) -> Outgoing:
        """Make the bytes of `x` ready to be written."""
        ...

    def receive(
        self, layout: Layout, size: Sequence[int], stride: Sequence[int], alignment: int
    ) -> Incoming:
        """Allocate a tensor of this shape that the slot of `layout` can be read into."""
        ...

    def keeps(self, engine: IOEngine) -> bool:
        """Whether what goes to `engine` stays in memory of this device's own, see Outgoing."""
        ...

    def close(self) -> None:
        """Give everything back; no transfer is in flight."""
        ...


def copy_span(y: torch.Tensor, source: torch.Tensor, layout: Layout) -> None:
    """Copy the span bytes `source` of a value laid out as `layout` to `y`, on the same device."""
    if same_layout(y.shape, y.stride(), layout.size, layout.stride):
        span_tensor(y).copy_(source)
    else:
        copy_values(y, restore_tensor(layout, source))


def find_layout(
    tensor: torch.Tensor,
    *,
    staged: bool = True,
    phase: int = 0,
    head: bytes = b"",
    tail: bytes = b"",
) -> Layout:
    """The layout of `tensor`; by default all of its span goes through a staging buffer."""
    size, stride = tuple(tensor.shape), tensor.stride()
    span = find_span(tensor)
    return Layout(size, stride, tensor.dtype, tensor.device, span, staged, phase, head, tail)


def restore_tensor(layout: Layout, span: torch.Tensor) -> torch.Tensor:
    """The tensor that `layout` describes, on the memory of `span`."""
    return span.view(layout.dtype).as_strided(layout.size, layout.stride)
