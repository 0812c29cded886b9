"""Compile every graph of a model up to its partition, and generate no code."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import fx

from fxoffload import torch_internals
from fxoffload.config import OffloadConfig
from fxoffload.errors import OffloadError
from fxoffload.torch_internals import OffloadPartitioner


def partition_graphs(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    config: OffloadConfig,
    make_partitioner: Callable[[], OffloadPartitioner],
    *,
    dynamic: bool | None = None,
) -> int:
    """Compile every graph of `model(*args, **kwargs)` up to its partition; return their number.

    make_partitioner: called once for each graph; torch calls the partitioner if the graph saves
    something for a backward. dynamic: as in torch.compile. No code is generated. The forward runs
    in eager mode, so that the graphs after a graph break are traced, too; no backward runs. Raises
    an OffloadError of a partitioner unchanged.
    """
    graphs: list[fx.GraphModule] = []

    def trace(gm: fx.GraphModule, inputs: Sequence[Any]) -> Callable[..., Any]:
        # The compiler may change `gm`, so a copy runs. The compiler must get `gm` itself: a copy
        # does not say which inputs are static.
        original = copy.deepcopy(gm)
        graphs.append(original)
        partitioner = make_partitioner()
        try:
            if config.compiler == "eager":
                torch_internals.compile_with_aot(gm, inputs, partitioner)
            else:
                torch_internals.trace_with_inductor(
                    gm, inputs, partitioner, config.inductor_options
                )
        except OffloadError as error:
            raise torch_internals.as_user_error(error) from None
        return original.forward

    with torch_internals.unlimited_recompiles():
        torch.compile(model, backend=trace, dynamic=dynamic)(*args, **kwargs)
    return len(graphs)


def partition_without_memory(
    model: Callable[..., Any],
    args: Sequence[Any],
    kwargs: Mapping[str, Any],
    config: OffloadConfig,
    make_partitioner: Callable[[], OffloadPartitioner],
) -> None:
    """Like partition_graphs with static sizes; nothing is allocated or computed."""
    with torch_internals.without_memory() as copy_without_memory:
        shadow = copy_without_memory(model)
        args, kwargs = copy_without_memory((args, kwargs))
        partition_graphs(shadow, args, kwargs, config, make_partitioner, dynamic=False)
