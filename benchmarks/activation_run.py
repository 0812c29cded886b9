"""What activation_peak.py measures, each in the fresh process that it starts.

alone   one variant: activation peak, peak RSS, compile seconds, the plan
paired  both variants in one process, their steps interleaved
"""

from __future__ import annotations

import sys
import time
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import torch

import fxoffload

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import report, run_child
from benchmarks.measure import peak_rss_bytes, record_highest_step
from benchmarks.models import Shape
from benchmarks.trainer import Trainer, Variant, compile_variant, make_inputs


@dataclass(frozen=True, slots=True)
class RunSettings:
    """`work` is "alone" (of `variant`) or "paired"; `options` are those of fxoffload."""

    work: Literal["alone", "paired"]
    model: str
    shape: dict[str, int]
    steps: int
    threads: int
    device: str
    variant: Variant = "plain"
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def measure_alone(settings: RunSettings) -> None:
    """Report the memory of one variant, and what its compilation took."""
    trainer = make_trainer(settings, settings.variant)
    _, seconds = trainer.step()
    rss_bytes = peak_rss_bytes()
    curve = record_highest_step(trainer.compute_loss, trainer.model, trainer.tokens.device)
    record: dict[str, Any] = {
        "peak_bytes": curve.peak_bytes,
        "gradient_bytes": sum(
            p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad
        ),
        "rss_bytes": rss_bytes,
        "compile_seconds": trainer.first_seconds - seconds,
    }
    if settings.variant == "fxoffload":
        record |= {
            "pass_seconds": trainer.passes.seconds,
            "predicted_peak_bytes": trainer.passes.peak_bytes,
            "plans": [str(plan) for plan in trainer.passes.plans],
            "proof": prove_transfers(trainer),
        }
    report(record)


def measure_paired(settings: RunSettings) -> None:
    """Report the seconds and losses of interleaved steps, and what moved in each."""
    plain = make_trainer(settings, "plain")
    moved = make_trainer(settings, "fxoffload")
    for trainer in (plain, moved):
        trainer.step()
    for _ in range(settings.steps):
        plain_loss, plain_seconds = plain.step()
        fxoffload.reset_statistics()
        moved_loss, moved_seconds = moved.step()
        report(
            {
                "plain_seconds": plain_seconds,
                "fxoffload_seconds": moved_seconds,
                "plain_loss": plain_loss,
                "fxoffload_loss": moved_loss,
                "statistics": asdict(fxoffload.statistics()),
            }
        )


def make_trainer(settings: RunSettings, variant: Variant) -> Trainer:
    """`variant` of the model, compiled; the same weights and tokens at every call."""
    model, tokens = make_inputs(settings.model, Shape(**settings.shape), settings.device)
    return Trainer(model, tokens, partial(compile_variant, variant=variant, **settings.options))


def prove_transfers(trainer: Trainer) -> dict[str, Any]:
    """Statistics of a step whose backward finds nothing in memory: all was written and read.

    Raises RuntimeError where that is not so.
    """
    fxoffload.reset_statistics()
    trainer.step(between=wait_for_writes)
    done = fxoffload.statistics()
    if done.offloaded_bytes == 0:
        raise RuntimeError("the plan moves nothing: nothing hides at this size; try another budget")
    if not done.offloaded_bytes == done.written_bytes == done.read_bytes:
        raise RuntimeError(f"not every byte was written and read: {done}")
    if done.live_bytes or done.write_errors or done.read_errors:
        raise RuntimeError(f"the store is not clean after the step: {done}")
    return asdict(done)


def wait_for_writes() -> None:
    """Return when nothing is being written."""
    while fxoffload.statistics().inflight_bytes:
        time.sleep(0.001)


def work(record: dict[str, Any]) -> None:
    """Do what the parent asks for."""
    settings = RunSettings(**record)
    torch.set_num_threads(settings.threads)
    if settings.work == "alone":
        measure_alone(settings)
    else:
        measure_paired(settings)


if __name__ == "__main__":
    run_child(work)
