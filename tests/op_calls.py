"""Calls of the ops on plain tensors."""

from __future__ import annotations

import torch

from fxoffload.runtime import find_store

OPS = torch.ops.fxoffload


def offload(key: str, x: torch.Tensor, tier: str = "nvme") -> torch.Tensor:
    return OPS.offload(x, key, "value", tier, True, 0)


def fetch(ticket: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    OPS.prefetch(ticket)
    return OPS.wait(ticket, like.shape, like.stride(), like.dtype, like.device)


def live_bytes(key: str) -> int:
    return find_store(key).statistics().live_bytes
