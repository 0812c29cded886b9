"""A minimal training script: one changed line, and the bytes that fxoffload moved.

python examples/train_mlp.py
"""

from __future__ import annotations

import argparse

import torch
from torch import nn

import fxoffload


def main() -> None:
    """Train a few steps on random data and print what the store did."""
    parser = argparse.ArgumentParser(description="Train an MLP with its activations on disk.")
    parser.add_argument("--directory", help="a folder on a disk; default: see OffloadConfig")
    parser.add_argument("--compiler", choices=["inductor", "eager"], default="inductor")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()

    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Linear(256, 1024), nn.Tanh(), nn.Linear(1024, 1024), nn.Tanh(), nn.Linear(1024, 1)
    )
    options = {
        "directory": arguments.directory,
        "memory_budget": "min",
        "compiler": arguments.compiler,
    }
    compiled = torch.compile(model, backend="fxoffload", options=options)  # The changed line.

    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x = torch.randn(2048, 256)
    y = x[:, :1].sin()
    for step in range(arguments.steps):
        loss = (compiled(x) - y).square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        print(f"step {step}  loss {loss.item():.6f}")

    done = fxoffload.statistics()
    print(f"moved {done.offloaded_bytes} bytes out by {done.ioengine}:", end=" ")
    print(f"{done.written_bytes} written, {done.cancelled_bytes} not needed on disk any more;")
    print(f"{done.read_bytes} read back, {done.forwarded_bytes} found in memory still")


if __name__ == "__main__":
    main()
