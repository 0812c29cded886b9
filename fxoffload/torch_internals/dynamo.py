"""Dynamo: recompile limits, tracing without memory, user errors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import ShortenTraceback
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._pytree import tree_map_only

from fxoffload.errors import OffloadError


def unlimited_recompiles() -> AbstractContextManager[None]:
    """A context in which Dynamo retraces a function for new arguments without a limit.

    At its limit, Dynamo would run the function in eager mode, without calling the backend. Source:
    torch._dynamo.config.recompile_limit, accumulated_recompile_limit.
    """
    limit = 2**31
    return dynamo_config.patch(recompile_limit=limit, accumulated_recompile_limit=limit)


@contextmanager
def without_memory() -> Generator[Callable[[Any], Any], None, None]:
    """A context in which tensors have sizes, strides and a device, but no memory and no data.

    Yields a function that makes such a copy of a module, or of tensors in lists, tuples and dicts;
    Dynamo can trace the copy. Copies of meta tensors are on the CPU. Source:
    torch._subclasses.fake_tensor.FakeTensorMode.
    """

    def copy_tensor(tensor: torch.Tensor) -> torch.Tensor:
        device = torch.device("cpu") if tensor.device.type == "meta" else tensor.device
        copied = torch.empty_strided(
            tensor.size(), tensor.stride(), dtype=tensor.dtype, device=device
        )
        if isinstance(tensor, torch.nn.Parameter):
            return torch.nn.Parameter(copied, requires_grad=tensor.requires_grad)
        return copied.requires_grad_(tensor.requires_grad)

    def copy_value(value: Any) -> Any:
        if isinstance(value, torch.nn.Module):
            tensors = (*value.parameters(), *value.buffers())
            # The second argument is deepcopy's memo: these copies replace the tensors.
            return copy.deepcopy(value, {id(tensor): copy_tensor(tensor) for tensor in tensors})
        return tree_map_only(torch.Tensor, copy_tensor, value)

    # Other tensors that a function or a module holds stay real.
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield copy_value


def as_user_error(error: OffloadError) -> Exception:
    """`error` in a form that torch.compile passes on to the user unchanged.

    Dynamo wraps every exception of a backend that is not a ShortenTraceback, and adds its own
    frames. The result is an instance of both ShortenTraceback and the class of `error`. Dynamo also
    appends hints for debugging Dynamo to the message, which do not help with a wrong option: the
    result prints only the message of `error`. Source:
    torch._dynamo.output_graph.call_user_compiler, torch._dynamo.exc.augment_exc_message.
    """
    kind = type(error)
    frame = inspect.currentframe()
    caller = frame.f_back if frame is not None else None

    def initialise(self: Any, *args: Any) -> None:
        ShortenTraceback.__init__(self, *args, first_useful_frame=caller)

    message = str(error)

    def show(_: object) -> str:
        return message

    methods = {"__init__": initialise, "__str__": show}
    shown: Any = type(kind.__name__, (ShortenTraceback, kind), methods)
    shown.__module__ = kind.__module__
    result = shown(*error.args)
    vars(result).update(vars(error))
    return result
