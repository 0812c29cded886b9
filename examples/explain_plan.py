"""Print what fxoffload would do with a model, without a training step.

python examples/explain_plan.py --memory-budget 20MiB
"""

from __future__ import annotations

import argparse
import sys

import torch
from torch import nn

import fxoffload


def main() -> None:
    """Explain a small MLP: the plan as a table, then the two graphs after the passes."""
    parser = argparse.ArgumentParser(description="Explain what is moved of a toy model.")
    parser.add_argument("--directory", help="a folder on a disk; default: see OffloadConfig")
    parser.add_argument("--memory-budget", default="min", help='bytes, "20MiB" or "min"')
    parser.add_argument("--graphs", action="store_true", help="print the transformed graphs too")
    arguments = parser.parse_args()

    layers = [layer for _ in range(4) for layer in (nn.Linear(512, 512), nn.GELU())]
    model = nn.Sequential(*layers, nn.Linear(512, 1))
    options = {"directory": arguments.directory, "memory_budget": arguments.memory_budget}
    try:
        explanation = fxoffload.explain(model, torch.randn(4096, 512), options=options)
    except fxoffload.OffloadError as error:
        sys.exit(f"{type(error).__name__}: {error}")
    print(explanation)
    if arguments.graphs:
        for graph in explanation.graphs:
            print(graph.forward_after.code, graph.backward_after.code)


if __name__ == "__main__":
    main()
