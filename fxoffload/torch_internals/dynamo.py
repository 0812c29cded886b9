"""Dynamo: graphs that are kept to be compiled again, limits, tracing without memory, errors."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Generator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import fx
from torch._dynamo import config as dynamo_config
from torch._dynamo.exc import ShortenTraceback
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.utils._pytree import tree_map_only

from fxoffload.errors import OffloadError
from fxoffload.torch_internals.partitioning import copy_module
from fxoffload.torch_internals.tensor_sizes import is_static


@dataclass(frozen=True)
class DynamoGraph:
    """A Dynamo graph, to be compiled once more later."""

    gm: fx.GraphModule
    fake_mode: FakeTensorMode

    @contextmanager
    def compiling(self, inputs: Sequence[Any]) -> Generator[fx.GraphModule, None, None]:
        """Within, what backends find when Dynamo calls them: a graph of one's own.

        inputs: the tensors that it is compiled with; their sizes are taken as they are.
        """
        with tracing(TracingContext(self.fake_mode)):
            # The compiler finds the fake tensor of each, as long as somebody holds it. By itself it
            # would give a tensor that Dynamo has not seen symbolic sizes, which no guard is for.
            fakes = [self.fake_mode.from_tensor(x, static_shapes=True) for x in inputs]
            yield _copy_dynamo_graph(self.gm)
            del fakes


def keep_dynamo_graph(gm: fx.GraphModule) -> DynamoGraph | None:
    """What compiling `gm` takes, or None where it cannot be compiled outside of Dynamo.

    Not with symbolic sizes, which come as inputs: new guards on them would have to reach Dynamo.
    Source: torch._dynamo.output_graph.OutputGraph.call_user_compiler.
    """
    inputs = [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]
    if not inputs or not all(isinstance(x, FakeTensor) and is_static(x) for x in inputs):
        return None
    return DynamoGraph(_copy_dynamo_graph(gm), inputs[0].fake_mode)


def _copy_dynamo_graph(gm: fx.GraphModule) -> fx.GraphModule:
    # The key of AOTAutograd's cache has all that is there, and Dynamo's lazy class: the copy must
    # meet what is compiled of the original in another process.
    with _use_lazy_graph_module(True):
        copied = copy_module(gm, type(gm).__bases__[0])
    copied.meta = dict(gm.meta)
    for name, value in vars(gm).items():
        vars(copied).setdefault(name, value)
    pairs = zip(
        gm.graph.find_nodes(op="placeholder"),
        copied.graph.find_nodes(op="placeholder"),
        strict=True,
    )
    for node, other in pairs:
        other._dynamo_source = node._dynamo_source  # By this it is known as static.
    return copied


def unlimited_recompiles() -> AbstractContextManager[None]:
    """Within, Dynamo traces a function anew however often it was traced for other arguments.

    At its limit it would run the function in eager mode, and no graph would be seen. Source:
    torch._dynamo.config.recompile_limit, accumulated_recompile_limit.
    """
    limit = 2**31
    return dynamo_config.patch(recompile_limit=limit, accumulated_recompile_limit=limit)


@contextmanager
def without_memory() -> Generator[Callable[[Any], Any], None, None]:
    """Within, tensors have sizes, strides and a device, but no memory, and nothing is computed.

    Yields what makes such a copy of a module, or of tensors in lists, tuples and dicts. Tensors on
    the meta device come out as those of a CPU, which they stand for. Source:
    torch._subclasses.fake_tensor.FakeTensorMode; Dynamo traces what it makes.
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
            # deepcopy takes these for copies that it has made already.
            return copy.deepcopy(value, {id(tensor): copy_tensor(tensor) for tensor in tensors})
        return tree_map_only(torch.Tensor, copy_tensor, value)

    # What a function or a module holds beside parameters and buffers is real.
    with FakeTensorMode(allow_non_fake_inputs=True):
        yield copy_value


def as_user_error(error: OffloadError) -> Exception:
    """`error` in a form that torch.compile hands to the user as it is.

    Dynamo wraps what a backend raises, and prints its own inside, unless it is a ShortenTraceback.
    The result is an instance of both. To each message Dynamo adds how to debug itself, which is no
    help with an option: the result shows its own alone. Source:
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
