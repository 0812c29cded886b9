"""The protocols of devices and of values in transfer, and the layout of a value in its slot."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import NamedTuple, Protocol

import torch

from fxoffload.runtime.devices.buffers import find_span
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture


class Layout(NamedTuple):
    """The tensor in a slot. The slot has the bytes of its span, without `head` and `tail`.

    size, stride: in elements. span: in bytes, see find_span. staged: whether the bytes go through a
    staging buffer. phase: the tensor's address modulo the alignment; 0 for staged bytes.
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
    """A tensor with the size and strides of a layout, to which a copy was started."""

    y: torch.Tensor

    def finish(self) -> None:
        """Make `y` valid for later work on the current stream."""
        ...

    def close(self) -> None:
        """Give the memory back once no copy uses it; called if nothing will use `y`."""
        ...


class Present:
    """An Arrival whose tensor is already valid on the current stream."""

    def __init__(self, y: torch.Tensor) -> None:
        self.y = y

    def finish(self) -> None:
        """Do nothing: `y` is valid."""

    def close(self) -> None:
        """Do nothing: no memory is held."""


class Outgoing(Protocol):
    """A value that is being stored, as long as its bytes are in memory."""

    layout: Layout
    shares_memory: bool  # Whether write() reads the tensor's own memory.
    crosses_bus: bool  # Whether forward() copies between host and device.
    stays: bool  # Whether the written bytes are only here, not in the slot, until it is freed.
    slot_bytes: int  # The size of slot to allocate: equal for equal tensors at any address.
    write_bytes: int  # The bytes that write() moves.

    def write(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to write to the slot at `offset`."""
        ...

    def release(self, block: bool) -> None:
        """Called when the program has read the tensor; with `block` it reuses the memory next."""
        ...

    def settle(self) -> bool:
        """Free the tensor's memory after the started copies; False if the write reads it."""
        ...

    def keep_copy(self) -> None:
        """Copy the bytes to private memory, so that the tensor's memory is no longer shared."""
        ...

    def lend(self) -> torch.Tensor | None:
        """The tensor itself; None if only a copy of it is possible."""
        ...

    def forward(self) -> Arrival:
        """Copy the value to a new tensor."""
        ...

    def close(self) -> None:
        """Give the memory back; the write has ended."""
        ...


class Incoming(Arrival, Protocol):
    """A value on its way back: read, again if that failed, and then finished or closed."""

    read_bytes: int  # The bytes that the latest read() moves, if it does not fail.

    def read(self, engine: IOEngine, offset: int) -> IOFuture:
        """Start to read the slot at `offset`, or what an earlier read, which ended, has not got."""
        ...


class Device(Protocol):
    """Moves tensors between the memory of one device and views that an engine can move."""

    def find_order(self) -> AbstractContextManager[object]:
        """A context, entered once, whose work comes in order behind the caller's work so far."""
        ...

    def send(self, x: torch.Tensor, alignment: int, engine: IOEngine) -> Outgoing:
        """Make the bytes of `x` ready to be written, as it seems by `engine`."""
        ...

    def receive(self, layout: Layout, alignment: int, engine: IOEngine) -> Incoming:
        """Allocate a tensor that the slot of `layout` can be read into by `engine`."""
        ...

    def keeps(self, engine: IOEngine) -> bool:
        """Whether values for `engine` stay in staging buffers of this device (Outgoing.stays)."""
        ...

    def close(self) -> None:
        """Give everything back; no transfer is in flight."""
        ...


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
    """The tensor that `layout` describes, as a view of `span`, a uint8 tensor."""
    return span.view(layout.dtype).as_strided(layout.size, layout.stride)
