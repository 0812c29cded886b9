"""What moves a tensor's bytes between its device and an engine: the protocols, and the layout."""

from __future__ import annotations

from typing import NamedTuple, Protocol

import torch

from fxoffload.runtime.devices.buffers import find_span
from fxoffload.runtime.engines.ioengine import IOEngine, IOFuture


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
    """A tensor of a layout's size and strides, that a copy has been started to."""

    y: torch.Tensor

    def finish(self) -> None:
        """Make `y` valid for what the current stream does next."""
        ...

    def close(self) -> None:
        """Nobody will use `y`: give the memory back as soon as no copy uses it."""
        ...


class Present:
    """An Arrival whose tensor is valid already, for whatever the current stream does next."""

    def __init__(self, y: torch.Tensor) -> None:
        self.y = y

    def finish(self) -> None:
        """Nothing to wait for."""

    def close(self) -> None:
        """Nothing to give back."""


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

    def release(self, block: bool) -> None:
        """The program no longer reads the tensor; with `block` it is about to reuse its memory."""
        ...

    def keep_copy(self) -> None:
        """Stop sharing the tensor's memory: keep the bytes in memory of our own."""
        ...

    def lend(self) -> torch.Tensor | None:
        """The tensor itself, or None where only a copy can be had."""
        ...

    def forward(self) -> Arrival:
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

    def receive(self, layout: Layout, alignment: int) -> Incoming:
        """Allocate a tensor that the slot of `layout` can be read into."""
        ...

    def keeps(self, engine: IOEngine) -> bool:
        """Whether what goes to `engine` stays in memory of this device's own, see Outgoing."""
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
    """The tensor that `layout` describes, on the memory of `span`."""
    return span.view(layout.dtype).as_strided(layout.size, layout.stride)
