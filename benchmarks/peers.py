"""Others' ways to move activations: to files by hooks, and to host memory as they are installed."""

from __future__ import annotations

import os
import tempfile
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch._functorch import config as functorch_config
from torch._inductor import config as inductor_config

# Tensors with no more elements stay in memory, as in PyTorch's tutorial on saved tensors.
HOOK_ELEMENTS = 1000

# Of torch's pass, for a graph of one layer: copies on a stream of their own, whose waits stand at
# the end of the forward, and reads that start early. GB/s: of the bus, measured on an H200.
OFFLOADING: dict[str, Any] = {
    "enable_activation_offloading": True,
    "activation_offload_separate_stream": True,
    "activation_offload_sink_wait": True,
    "activation_reload_prefetch": True,
    "activation_offload_cpu_gpu_bw": 54.0,
}


class PeerMissing(Exception):
    """A peer that cannot run here; the message says what is missing."""


def make_trl_hooks(model: nn.Module) -> Callable[[], AbstractContextManager[Any]]:
    """What returns TRL's OffloadActivations for `model`, with its defaults.

    It is the same at each call, until a step runs out of memory and leaves what it has packed.
    Raises PeerMissing without a GPU, or where the package cannot be imported.
    """
    _require_gpu("TRL's OffloadActivations")
    try:
        offloading = import_module("trl.models.activation_offloading")
    except ImportError as error:
        raise PeerMissing(
            f"TRL's OffloadActivations cannot be imported ({error}); install the wheel of trl"
        ) from None

    def make() -> Any:
        context = offloading.OffloadActivations()
        context.update_model_params(model)
        return context

    latest = make()

    def find() -> AbstractContextManager[Any]:
        nonlocal latest
        if latest.tracker:
            latest = make()
        return latest

    return find


@contextmanager
def offload_by_torch() -> Generator[None]:
    """A context in which Inductor's graphs offload all activations that torch's own pass can.

    The pass offloads what is marked, and torch marks nothing by itself, so every node is marked.
    Raises PeerMissing without a GPU, on which the pass measures nodes, or without the pass.
    """
    _require_gpu("torch's activation offloading")
    if not hasattr(functorch_config, "enable_activation_offloading"):
        raise PeerMissing(f"torch {torch.__version__} has no pass for activation offloading")
    known = {name: value for name, value in OFFLOADING.items() if hasattr(functorch_config, name)}
    with (
        functorch_config.patch(known),
        inductor_config.patch(joint_custom_post_pass=mark_all),
    ):
        yield


def mark_all(graph: fx.Graph) -> None:
    """Mark each node of a joint graph as one to offload."""
    for node in graph.nodes:
        if node.op == "call_function":
            node.meta["should_offload"] = True


def _require_gpu(what: str) -> None:
    if not torch.cuda.is_available():
        raise PeerMissing(f"{what} needs a GPU; torch {torch.__version__} finds none")


@contextmanager
def save_to_files(directory: Path) -> Generator[None]:
    """A context in which saved tensors are written to files, and read when the backward needs them.

    Source: PyTorch's tutorial "Hooks for autograd saved tensors".
    """

    def pack(tensor: Tensor) -> Tensor | SavedFile:
        return tensor if tensor.numel() <= HOOK_ELEMENTS else SavedFile(tensor, directory)

    def unpack(packed: Tensor | SavedFile) -> Tensor:
        return packed if isinstance(packed, Tensor) else torch.load(packed.path)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class SavedFile:
    """A tensor in a file, which is deleted together with this object."""

    def __init__(self, tensor: Tensor, directory: Path) -> None:
        number, self.path = tempfile.mkstemp(dir=directory, suffix=".pt")
        os.close(number)
        self._finalizer = weakref.finalize(self, os.unlink, self.path)
        torch.save(tensor, self.path)
