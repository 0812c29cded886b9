"""Add artifacts to torch's structured trace, which TORCH_TRACE enables and tlparse shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

from torch import fx
from torch._logging import trace_structured
from torch._logging._internal import trace_log


def is_tracing() -> bool:
    """Whether artifacts may be kept; without a trace, False from the first artifact of torch on.

    Source: torch._logging._internal.trace_log, whose handler removes itself.
    """
    return bool(trace_log.handlers)


def emit_artifact(
    name: str, encoding: Literal["string", "json"], make_payload: Callable[[], Any]
) -> None:
    """Add the artifact "fxoffload_`name`" to the trace of the graph that is being compiled.

    make_payload: returns text, or for "json" an object that JSON can represent; it is called only
    if the trace is enabled. Source: torch._logging.trace_structured, "artifact" in
    torch._inductor.compile_fx.
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
