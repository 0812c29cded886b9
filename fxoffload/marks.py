"""Marks: what a program says itself about values that its forward saves for the backward.

    h = fxoffload.keep(h)           h = aten.alias(h)  {"fxoffload": "fxoffload.keep"}
    with fxoffload.keeping():
        y = self.head(h)            every node of it   {"fxoffload": "fxoffload.keeping"}

In compiled code a mark is an annotation of nodes, which AOTAutograd copies into the joint graph.
`torch_internals/marking.py` reads the annotations and removes the aliases, so that a mark costs
nothing at run time. In code that is not compiled a mark does nothing.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Final

import torch
from torch.fx.traceback import annotate

ANNOTATION: Final = "fxoffload"  # The key in node.meta["custom"].
# The marks, each under the name by which messages call it.
KEEP: Final = "fxoffload.keep"
KEEPING: Final = "fxoffload.keeping"
MOVE: Final = "fxoffload.move"
POLICY: Final = "CheckpointPolicy.MUST_CPU_OFFLOAD"


def keep(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, whose storage stays on the device if the backward needs it.

    It is neither moved nor recomputed, whatever the budget. Use the result in place of `tensor`:
    `h = fxoffload.keep(h)`. Raises TypeError for anything but a tensor. The compilation raises
    MarkError if another mark says that the same storage moves.
    """
    return _mark(tensor, KEEP)


def move(tensor: torch.Tensor) -> torch.Tensor:
    """`tensor`, whose storage moves if the backward needs it.

    It moves whatever the budget, however small it is, and is not recomputed. This is
    CheckpointPolicy.MUST_CPU_OFFLOAD without a checkpoint. Use the result in place of `tensor`:
    `h = fxoffload.move(h)`. Raises TypeError for anything but a tensor. The compilation raises
    MarkError if the storage may not be moved.
    """
    return _mark(tensor, MOVE)


def keeping() -> AbstractContextManager[None]:
    """A context in compiled code: what the ops in it save for their backward stays on the device.

    These are the values that they compute and those that their backward reads. Values that torch or
    a plan recomputes are recomputed. `move` is stronger. Around a call of compiled code it does
    nothing. torch (2.13) compiles no function with a graph break in the context: use `keep` there.
    Source: torch.fx.traceback.annotate.
    """
    return annotate({ANNOTATION: KEEPING})


def _mark(tensor: torch.Tensor, mark: str) -> torch.Tensor:
    if not isinstance(tensor, torch.Tensor):  # pyright: ignore[reportUnnecessaryIsInstance]
        kind = type(tensor).__name__
        raise TypeError(f"{mark} got a {kind}, and takes one tensor: call it for each tensor")
    if not torch.compiler.is_compiling():
        return tensor
    with annotate({ANNOTATION: mark}):
        return torch.ops.aten.alias.default(tensor)
