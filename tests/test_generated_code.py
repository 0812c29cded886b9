"""The code that Inductor generates keeps the planned order of the four ops and the compute."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import fx
from zoo import TanhLayers

import fxoffload
from fxoffload.ops import OPS

LAYERS = 6
WIDTH = 1024


def read_planned(graph: fx.Graph) -> list[str]:
    """The order of ops and matrix products in a transformed graph."""
    events: list[str] = []
    for node in graph.nodes:
        if node.target in OPS:
            events.append(node.target._schema.name.split("::")[1])
        elif node.target in (torch.ops.aten.mm.default, torch.ops.aten.addmm.default):
            events.append("mm")
    return events


def read_generated(code: str) -> list[str]:
    """The order of ops and matrix products in the `call` function that Inductor wrote."""
    calls = re.findall(
        r"torch\.ops\.fxoffload\.(\w+)\.default\.direct\(|extern_kernels\.(?:add)?(mm)\(|(?:_linear_pointwise)()",
        code,
    )
    return [op or "mm" for op, _, _ in calls]


@pytest.mark.slow
def test_order_in_generated_code(spill_directory: Path) -> None:
    from torch._inductor.utils import run_fw_bw_and_get_code

    torch._dynamo.reset()
    torch.manual_seed(0)
    # Each product of matrices is an extern kernel, whose call can be found in the code.
    model = TanhLayers(LAYERS, WIDTH)
    x = torch.randn(1024, WIDTH)
    options = {"directory": spill_directory, "memory_budget": "min", "min_bytes": 1}
    (graph,) = fxoffload.explain(model, x, options=options).graphs
    torch._dynamo.reset()
    compiled = fxoffload.compile(model, **options)
    _, (forward, backward) = run_fw_bw_and_get_code(lambda: compiled(x))
    for module, code in ((graph.forward_after, forward), (graph.backward_after, backward)):
        planned = read_planned(module.graph)
        assert planned.count("mm") >= LAYERS
        assert read_generated(code) == planned
    assert read_generated(forward).count("offload") >= LAYERS - 1
    assert read_generated(backward).count("prefetch") == read_generated(backward).count("wait")
    assert read_generated(forward).count("release") == read_generated(forward).count("offload")
