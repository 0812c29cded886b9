"""Begin a step with each forward of a model, so that what runs before its graphs counts, too."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import torch
from torch import nn

from fxoffload import runtime, torch_internals


def begin_with_forwards(model: object) -> None:
    """Let a step begin with each forward of `model`, if it is a module; see runtime.note_forward.

    Copies and files of the model keep the hook. If a compiler traces the forward, the hook adds
    nothing to the graph, and the step begins when the graph is called.
    """
    if isinstance(model, nn.Module) and _note_forward not in model._forward_pre_hooks.values():
        model.register_forward_pre_hook(_note_forward)


def _note_forward(model: nn.Module, args: object) -> None:
    """A function of this module, as copies and files of models keep their hooks by name."""
    if not torch.compiler.is_compiling():
        _note_uncompiled()


def _note() -> None:
    runtime.note_forward()


# Dynamo may run the hook of a model uncompiled, and would compile what the hook calls.
_note_uncompiled = cast("Callable[[], None]", torch.compiler.disable(_note))
torch_internals.skip_frame(_note_forward)
