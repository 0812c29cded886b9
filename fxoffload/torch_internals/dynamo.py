"""Dynamo: graphs to compile again, recompile limits, tracing without memory, user errors."""

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
from torch._dynamo.eval_frame import skip_code
from torch._dynamo.exc import ShortenTraceback
from torch._guards import TracingContext, tracing
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.fx._lazy_graph_module import _use_lazy_graph_module
from torch.utils._pytree import tree_map_only

from fxoffload.errors import OffloadError
from fxoffload.torch_internals.partitioning import copy_module
from fxoffload.torch_internals.tensor_sizes import is_static


@dataclass(frozen=True, eq=False)
class DynamoGraph:
    """A copy of a Dynamo graph that can be compiled again outside of Dynamo.

    fakes: what Dynamo traced it with, without memory: enough to trace it again.
    """

    gm: fx.GraphModule
    fakes: tuple[FakeTensor, ...]

    @contextmanager
    def compiling(self, inputs: Sequence[Any]) -> Generator[fx.GraphModule, None, None]:
        """A context in which a backend can compile, as if Dynamo had called it.

        Yields a copy of the graph. inputs: the tensors to compile it with, real ones for the keys
        of torch's caches to be those of Dynamo; their sizes are static.
        """
        mode = self.fakes[0].fake_mode
        with tracing(TracingContext(mode)):
            # The compiler uses these fake tensors as long as they are referenced. Without them, an
            # input that Dynamo has not seen would get symbolic sizes, for which there is no guard.
            fakes = [
                x if isinstance(x, FakeTensor) else mode.from_tensor(x, static_shapes=True)
                for x in inputs
            ]
            yield _copy_dynamo_graph(self.gm)
            del fakes


def keep_dynamo_graph(gm: fx.GraphModule) -> DynamoGraph | None:
    """A copy of `gm` that can be compiled later; None if `gm` needs Dynamo to be compiled.

    That is so for symbolic sizes, which are inputs of `gm`: new guards on them would have to reach
    Dynamo. Source: torch._dynamo.output_graph.OutputGraph.call_user_compiler.
    """
    inputs = [node.meta.get("example_value") for node in gm.graph.find_nodes(op="placeholder")]
    if not inputs or not all(isinstance(x, FakeTensor) and is_static(x) for x in inputs):
        return None
    return DynamoGraph(_copy_dynamo_graph(gm), tuple(inputs))


def _copy_dynamo_graph(gm: fx.GraphModule) -> fx.GraphModule:
    # AOTAutograd hashes all attributes and Dynamo's lazy class into its cache key. The copy needs
    # the same key as the original, so that it finds what another process compiled of that.
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
        other._dynamo_source = node._dynamo_source  # AOTAutograd finds static inputs by it.
    return copied


def unlimited_recompiles() -> AbstractContextManager[None]:
    """A context in which Dynamo retraces a function for new arguments without a limit.

    At its limit, Dynamo would run the function in eager mode, without calling the backend. Source:
    torch._dynamo.config.recompile_limit, accumulated_recompile_limit.
    """
    limit = 2**31
    return dynamo_config.patch(recompile_limit=limit, accumulated_recompile_limit=limit)


def skip_frame(function: Callable[..., Any]) -> None:
    """Let Dynamo not compile `function` by itself; it still traces it within what it compiles.

    Where Dynamo runs a caller uncompiled, such as a loop that a graph break is in, it would compile
    `function`, for which `torch.compiler.is_compiling` would be True. Source:
    torch._dynamo.decorators.skip, which would not let Dynamo trace it either.
    """
    skip_code(function.__code__)


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
