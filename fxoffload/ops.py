"""The graph language: the schemas and fake kernels of the four ops.

    forward                                     backward
    t = offload(x, store, name, tier, ...)      prefetch(t)
    ... last readers of x ...                   ... compute that hides the read ...
    release(t, x)                               y = wait(t, size, stride, dtype, device)
    return (..., t)                             ... first reader of y ...

The ticket `t` is a one-element int64 CPU tensor. `release` and `prefetch` declare that they mutate
it, so that no compiler drops them or swaps them with `wait`. Readers of the value take the result
of `wait`, so the data dependency keeps them after it, and no compiler pass can move one before it.
(With a `wait` that mutated the prefetched tensor instead, Inductor's CPU loop fusion moved readers
across it: SchedulerNode.recompute_size_and_body forgets mutations, torch 2.13.) The real kernels
are in `fxoffload.runtime.kernels`; this module only defines what the ops mean.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

NAMESPACE = "fxoffload"

DIRECT = "direct"  # The attribute of an op that has its kernel, a function of the same arguments.
OpEvent = tuple[str, str]  # An op that ran: its kind ("offload", ...), and the name of its value.

# needs_exact_strides: the moved bytes have the strides of the graph, so that views can be recreated
# on them (torch_internals.keep_strides makes Inductor obey it). cudagraph_unsafe: a CUDA graph must
# not replay a transfer to an old address.
_TAGS = (torch.Tag.needs_exact_strides, torch.Tag.cudagraph_unsafe)
_SCHEMAS = (
    # Starts to copy the storage of x out; returns the ticket. `store` is the key of the store,
    # `name` the name of the saved value in messages, `tier` "nvme" or "host". `owned` is False if x
    # belongs to the caller: then x itself is never given to the backward as memory to overwrite.
    # `duplicate_bytes`: bytes of other saved views of x, which need no transfer of their own.
    # `graph`: identifies the graph to the runtime, whose schedules decide where x goes, and when
    # its memory is free; "" for a graph without: then x goes to `tier`.
    "offload(Tensor x, str store, str name, str tier, bool owned, SymInt duplicate_bytes, "
    'str graph="") -> Tensor',
    # States that no later node of the forward reads x, and leaves it to the store, which may keep
    # it: no later result may be put into its memory (torch_internals.FusedAtLast has Inductor heed
    # it). Without a schedule it returns when x has been written.
    "release(Tensor(a!) ticket, Tensor x) -> ()",
    # Allocates memory for the value and starts to read into it.
    "prefetch(Tensor(a!) ticket) -> ()",
    # Returns the value once it is in memory; raises TransferError if it cannot be read.
    # `owned`: as in offload; where False, the result may be the caller's own tensor.
    "wait(Tensor ticket, SymInt[] size, SymInt[] stride, ScalarType dtype, Device device, "
    "bool owned=True) -> Tensor",
)

LIBRARY = torch.library.Library(NAMESPACE, "DEF")
for _schema in _SCHEMAS:
    LIBRARY.define(_schema, tags=_TAGS)

OFFLOAD = torch.ops.fxoffload.offload.default
RELEASE = torch.ops.fxoffload.release.default
PREFETCH = torch.ops.fxoffload.prefetch.default
WAIT = torch.ops.fxoffload.wait.default
OPS = (OFFLOAD, RELEASE, PREFETCH, WAIT)


# The fake kernels: the schemas above name their arguments.
def _fake_offload(*_: Any, **__: Any) -> torch.Tensor:
    return torch.empty(1, dtype=torch.int64, device="cpu")


def _return_nothing(*_: Any, **__: Any) -> None:
    return None


def _fake_wait(
    ticket: torch.Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    *_: Any,
) -> torch.Tensor:
    return torch.empty_strided(size, stride, dtype=dtype, device=device)


for _name, _fake in (
    ("offload", _fake_offload),
    ("release", _return_nothing),
    ("prefetch", _return_nothing),
    ("wait", _fake_wait),
):
    torch.library.register_fake(f"{NAMESPACE}::{_name}", _fake, lib=LIBRARY)
