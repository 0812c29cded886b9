"""A model on the GPU, plain and with fxoffload: paired steps, then the activation peak of each.

The child of gpu_suite.py for models.
"""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fxoffload
from fxoffload import runtime

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.activation_run import prove_transfers
from benchmarks.fresh_process import report, run_child
from benchmarks.measure import record_step
from benchmarks.models import Shape, build_model, make_tokens
from benchmarks.trainer import Trainer, Variant, compile_variant, synchronize

STEPS = 4


@dataclass(frozen=True, slots=True)
class ModelWork:
    """`options` go to fxoffload; `proves` asks for one more step whose every byte must move."""

    device: str
    model: str
    shape: dict[str, int]
    dtype: str
    steps: int
    proves: bool = False
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def measure_model(work: ModelWork) -> None:
    """Report the seconds, losses and statistics of paired steps, and both peaks."""
    shape = Shape(**work.shape)

    def build(variant: Variant) -> Trainer:
        torch.manual_seed(0)
        with torch.device(work.device):  # Random weights of this size take a CPU half a minute.
            model = build_model(work.model, shape).to(getattr(torch, work.dtype))
        compile_model = partial(compile_variant, variant=variant, **work.options)
        return Trainer(model, make_tokens(shape).to(work.device), compile_model)

    plain, moved = build("plain"), build("fxoffload")
    for trainer in (plain, moved):
        trainer.step()
    pairs: list[dict[str, Any]] = []
    for _ in range(work.steps):
        plain_loss, plain_seconds = time_steps(plain)
        fxoffload.reset_statistics()
        moved_loss, moved_seconds = time_steps(moved)
        pairs.append(
            {
                "plain_seconds": plain_seconds,
                "fxoffload_seconds": moved_seconds,
                "plain_loss": plain_loss,
                "fxoffload_loss": moved_loss,
                "statistics": asdict(fxoffload.statistics()),
            }
        )
    peaks = {"plain": find_peak(plain, work), "fxoffload": find_peak(moved, work)}
    report(
        {
            "peak_bytes": peaks,
            "peak_ratio": peaks["fxoffload"] / peaks["plain"],
            "predicted_peak_bytes": moved.passes.peak_bytes,
            "predicted_step_seconds": moved.passes.step_seconds,
            "plans": [str(plan) for plan in moved.passes.plans],
            "speeds": json.loads(runtime.cache_path().read_text()),
            "step_ratio": statistics.median(
                pair["fxoffload_seconds"] / pair["plain_seconds"] for pair in pairs
            ),
            "compile_seconds": {
                "plain": plain.first_seconds,
                "fxoffload": moved.first_seconds,
            },
            "proof": prove_transfers(moved) if work.proves else None,
            "pairs": pairs,
        }
    )


def time_steps(trainer: Trainer) -> tuple[float, float]:
    """Loss of the last of STEPS steps, and seconds of one: the host runs ahead, as in training."""
    synchronize(trainer.tokens)
    start = time.perf_counter()
    losses: list[torch.Tensor] = []
    for _ in range(STEPS):
        trainer.model.zero_grad()
        losses.append(trainer.compute_loss())
        losses[-1].backward()
    synchronize(trainer.tokens)
    return losses[-1].item(), (time.perf_counter() - start) / STEPS


def find_peak(trainer: Trainer, work: ModelWork) -> int:
    """Activation peak of a step in bytes, gradients included."""
    trainer.model.zero_grad()
    if work.device != "cuda":
        return record_step(trainer.compute_loss, trainer.tokens.device).peak_bytes
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    trainer.step()
    return torch.cuda.max_memory_allocated() - before


def work(record: dict[str, Any]) -> None:
    """Do what the parent asks for."""
    measure_model(ModelWork(**record))


if __name__ == "__main__":
    run_child(work)
