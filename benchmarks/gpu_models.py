"""The models that are measured on a GPU, or predicted for one, and the ways to train them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from benchmarks.trainer import Program, Workload
from benchmarks.variants import PLAIN, PLAIN_AGAIN, Variant
from fxoffload.cli.byte_models import Shape

# 16,384 tokens each. Three layers of these widths are near the depth at which SSDTrain measured.
# The Llama has layers of Llama 3 8B, and tokens that are bytes.
WIDE = Shape(layers=3, hidden=8192, heads=64, batch=16, length=1024)
SHAPES = {
    "gpt": WIDE,
    "bert": WIDE,
    "t5": WIDE,
    "llama": Shape(layers=4, hidden=4096, heads=32, batch=2, length=8192),
}
TINY = Shape(layers=2, hidden=32, heads=2, batch=2, length=16)
PROGRAMS: dict[str, Program] = {"llama": "blocks"}
# Saved tensors are packed when a compiled graph has returned: with the whole model in one graph,
# that is too late to lower the peak.
BLOCKS: dict[str, Any] = {"program": "blocks", "note": "in blocks"}
TRL = Variant("trl", **BLOCKS)
# By priority: without time for all of them, the last ones are not measured.
POINTS = (
    PLAIN,
    PLAIN_AGAIN,
    Variant("fxoffload"),
    Variant("fxoffload", 0.6),
    Variant("checkpoint"),
    TRL,
    Variant("recompute", 0.5),
)
MORE_POINTS = (
    Variant("fxoffload", "min"),
    Variant("fxoffload", 0.7),
    Variant("torch_offload", **BLOCKS),
    Variant("save_on_cpu", **BLOCKS),
    Variant("fxoffload", 0.55),
    Variant("recompute", 0.2),
    Variant("fxoffload", 0.8),
    Variant("recompute", 0.8),
)
CAPS = [1.0, 0.7, 0.5, 0.35]
METHODS = (
    PLAIN,
    Variant("checkpoint"),
    Variant("fxoffload", 0.35),
    Variant("fxoffload", 0.5),
    Variant("fxoffload", 1.0),
    TRL,
    Variant("fxoffload", 0.7),
    Variant("recompute", 0.5),
)
NVME_BUDGET = 0.9


@dataclass(frozen=True, slots=True)
class GpuWork:
    """Where to measure: a device, a directory to spill to, and a folder for pictures.

    tiny: sizes that only show that it works.
    """

    device: str
    tiny: bool
    directory: str | None
    folder: Path

    @property
    def on_cuda(self) -> bool:
        """Whether there is a GPU."""
        return self.device == "cuda"

    def make_workload(self, model: str) -> Workload:
        """A model in training, whose activations go to host memory."""
        options: dict[str, Any] = {"ioengine": "memory", "host_budget": "48GiB"}
        shape = SHAPES[model]
        if self.tiny:
            options |= {"compiler": "eager", "min_bytes": 1, "host_budget": "1GiB"}
            shape = TINY
        dtype = "float32" if self.tiny else "bfloat16"
        return Workload(model, shape, self.device, options, dtype=dtype)

    def list_methods(self) -> list[Variant]:
        """The ways to train under caps, by priority."""
        return [replace(each, program="blocks", note="") for each in METHODS]

    @property
    def batches(self) -> list[int]:
        """Those to try under caps."""
        return [2, 1] if self.tiny else [16, 8, 4, 1]

    def list_nvme_variants(self) -> list[Variant]:
        """The plain variant, and one whose activations go to the drive."""
        options = (("ioengine", "auto"), ("host_budget", 0), ("directory", self.directory))
        return [PLAIN, Variant("fxoffload", NVME_BUDGET, options=options, note="on NVMe")]


def list_variants(model: str) -> list[Variant]:
    """The ways to train a model, by priority."""
    variants = POINTS + MORE_POINTS if model == "gpt" else POINTS
    if (program := PROGRAMS.get(model)) is None:
        return list(variants)
    return [
        replace(each, program=program, note="" if each.program == program else each.note)
        for each in variants
    ]
