"""torch's structured trace, which the variable TORCH_TRACE turns on and tlparse shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import fx
from torch._logging import trace_structured


def emit_artifact(
    name: str, encoding: Literal["string", "json"], make_payload: Callable[[], Any]
) -> None:
    """Add the artifact "fxoffload_`name`" to what the trace has of the graph that is compiled.

    make_payload: returns text, or for "json" what JSON can hold; it is called only if somebody
    traces. Source: torch._logging.trace_structured, "artifact" in torch._inductor.compile_fx.
    """
    trace_structured(
        "artifact",
        metadata_fn=lambda: {"name": f"fxoffload_{name}", "encoding": encoding},
        payload_fn=make_payload,
        expect_trace_id=False,
    )


def emit_graph(name: str, module: fx.GraphModule) -> None:
    """Add the code of `module`, with the type, shape, stride and device of each value."""
    emit_artifact(
        name,
        "string",
        lambda: module.print_readable(print_output=False, include_stride=True, include_device=True),
    )
