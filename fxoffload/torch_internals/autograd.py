"""Queries of the state of autograd, and of the memory of tensors."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from torch._functorch import config as functorch_config
from torch._subclasses.fake_tensor import unset_fake_temporarily


def keeps_graph() -> bool:
    """Whether the backward that runs now was called with retain_graph or create_graph.

    Source: torch._C._autograd._get_current_graph_task_keep_graph (outside a backward: True).
    """
    autograd: Any = torch._C._autograd  # pyright: ignore[reportAttributeAccessIssue]
    return bool(autograd._get_current_graph_task_keep_graph())


def is_shared(x: torch.Tensor) -> bool:
    """Whether another tensor than `x` holds the memory of `x`.

    Source: torch._C._storage_Use_Count, which also counts the local `storage`, besides that of `x`.
    """
    internal: Any = torch._C
    storage = x.untyped_storage()
    return internal._storage_Use_Count(storage._cdata) > 2


def make_version_counter(x: torch.Tensor) -> torch.Tensor | None:
    """A tensor without memory that shares the version counter of `x`; None for inference tensors.

    A detached tensor shares the version counter of its source, and keeps it when its memory is
    replaced. In the kernel of an op the dispatcher skips the ADInplaceOrView key, and `detach` then
    creates a new counter; the guard puts the key back. Source: VariableHooks::set_data,
    c10::DispatchKey::ADInplaceOrView.
    """
    if x.is_inference():
        return None
    internal: Any = torch._C
    with internal._SetExcludeDispatchKeyGuard(internal.DispatchKey.ADInplaceOrView, False):
        counter = x.detach()
    counter.data = torch.empty(0, dtype=x.dtype, device=x.device)
    return counter


def keeps_tangents() -> bool:
    """Whether the gradients that are passed to a backward live until it has returned.

    If False, each gradient is freed after its last reader. Source:
    torch._functorch._aot_autograd.runtime_wrappers (2.11 keeps them, 2.13 does not).
    """
    return torch.__version__ < "2.12"


def outside_of_tracing() -> AbstractContextManager[Any]:
    """A context in which tensors are real and ops run, also while AOTAutograd traces.

    Source: torch._subclasses.fake_tensor.
    """
    return unset_fake_temporarily()


def describe_tracing() -> str:
    """The state that AOTAutograd's graphs depend on beside the program, as text for a cache key.

    These are the modes of autograd and the options of functorch, as in torch's own key of a
    compiled graph (AOTAutogradCacheDetails).
    """
    modes = {
        "grad": torch.is_grad_enabled(),
        "inference": torch.is_inference_mode_enabled(),
        "autocast": [torch.is_autocast_enabled(kind) for kind in ("cpu", "cuda")],
        "deterministic": torch.are_deterministic_algorithms_enabled(),
    }
    return f"{modes} functorch {functorch_config.get_hash().hex()}"
