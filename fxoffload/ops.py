"""The graph language: the schemas and fake kernels of the four ops.

    forward                                     backward
    t = offload(x, store, name, tier, ...)      prefetch(t)
    ... last readers of x ...                   ... compute that hides the read ...
    release(t, x, block)                        y = wait(t, size, stride, dtype, device)
    return (..., t)                             ... first reader of y ...

The ticket `t` is a one-element int64 CPU tensor. `release` and `prefetch` declare that they change
it, so that no compiler drops them or swaps them with `wait`. The value comes out of `wait` alone,
as data: a reader in front of it cannot be written down, and no pass of a compiler can make one.
(With a `wait` that mutates the prefetched tensor, Inductor's CPU loop fusion moved readers across
it: SchedulerNode.recompute_size_and_body forgets mutations, torch 2.13.) The real kernels are in
`fxoffload.runtime.kernels`; this module only says what the ops mean.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

NAMESPACE = "fxoffload"

OpEvent = tuple[str, str]  # One op of a graph that ran: its kind, and the name of its value.
# When each op ran, in seconds of compute since the first of its forward or backward.
Clocks = Mapping[OpEvent, float]

# needs_exact_strides: the bytes that leave are laid out as the graph says, so that views can be
# replayed on them (torch_internals.keep_strides has Inductor heed it). cudagraph_unsafe: a recorded
# graph must not replay a transfer to an old address.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.cudagraph_unsafe)
_SCHEMAS = (
    # Starts to copy the storage of x out; returns the ticket. `store` is the key of the store,
    # `name` the saved value in messages, `tier` "nvme" or "host". `owned` is False when x belongs
    # to the caller, so that it may never be handed to the backward as scratch memory.
    # `duplicate_bytes`: bytes of other saved views that this one transfer stands for.
    # `graph`: under what the runtime knows the graph, whose steps it records where asked to.
    "offload(Tensor x, str store, str name, str tier, bool owned, SymInt duplicate_bytes, "
    'str graph="") -> Tensor',
    # No forward node after this one reads x. With block=True the call returns only when the
    # memory of x may be overwritten; block=False (nothing follows) leaves x to the store.
    "release(Tensor(a!) ticket, Tensor x, bool block) -> ()",
    # Allocates memory for the value and starts to read into it.
    "prefetch(Tensor(a!) ticket) -> ()",
    # Returns the value once it is there; raises TransferError when the bytes cannot be had.
    "wait(Tensor ticket, SymInt[] size, SymInt[] stride, ScalarType dtype, Device device)"
    " -> Tensor",
)

LIBRARY = torch.library.Library(NAMESPACE, "DEF")
for _schema in _SCHEMAS:
    LIBRARY.define(_schema, tags=_TAGS)

OFFLOAD = torch.ops.fxoffload.offload.default
RELEASE = torch.ops.fxoffload.release.default
PREFETCH = torch.ops.fxoffload.prefetch.default
WAIT = torch.ops.fxoffload.wait.default
OPS = (OFFLOAD, RELEASE, PREFETCH, WAIT)


def _fake_offload(
    x: torch.Tensor,
    store: str,
    name: str,
    tier: str,
    owned: bool,
    duplicate_bytes: int,
    graph: str = "",
) -> torch.Tensor:
    return torch.empty(1, dtype=torch.int64, device="cpu")


def _fake_release(ticket: torch.Tensor, x: torch.Tensor, block: bool) -> None:
    return None


def _fake_prefetch(ticket: torch.Tensor) -> None:
    return None


def _fake_wait(
    ticket: torch.Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device=device)


for _name, _fake in (
    ("offload", _fake_offload),
    ("release", _fake_release),
    ("prefetch", _fake_prefetch),
    ("wait", _fake_wait),
):
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=LIBRARY)
