"""What activation_peak.py measures, each in the fresh process that it starts.

alone   one variant: activation peak, peak RSS, compile seconds, the plan
paired  both variants in one process, their steps interleaved
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor

import fxoffload
from fxoffload import passes
from fxoffload.passes import PassOptions
from fxoffload.plan import Plan

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import report, run_child
from benchmarks.measure import peak_rss_bytes, record_step
from benchmarks.models import LossOnly, Shape, build_model, make_tokens

Variant = Literal["plain", "fxoffload"]


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


@dataclass(slots=True)
class PassRecord:
    """What the graph passes did while a model was compiled."""

    plans: list[Plan] = field(default_factory=list[Plan])
    seconds: float = 0.0

    def transform_graph(self, graph: Any, options: PassOptions, **kwargs: Any) -> Plan:
        """In place of passes.transform_graph: the same, timed, its plan kept."""
        start = time.perf_counter()
        plan = _transform_graph(graph, options, **kwargs)
        self.seconds += time.perf_counter() - start
        self.plans.append(plan)
        return plan


_transform_graph = passes.transform_graph


class Trainer:
    """One variant of a model, compiled; `step` is a forward and a backward."""

    def __init__(self, model: LossOnly, tokens: Tensor, variant: Variant, settings: RunSettings):
        self.model = model
        self.tokens = tokens
        self.passes = PassRecord()
        start = time.perf_counter()
        self.compiled = compile_variant(model, variant, settings.options)
        with patch.object(passes, "transform_graph", self.passes.transform_graph):
            self.step()
        self.first_seconds = time.perf_counter() - start

    def compute_loss(self) -> Tensor:
        """The forward."""
        return self.compiled(self.tokens)

    def step(self, between: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Loss and seconds of one step; `between` runs between forward and backward."""
        self.model.zero_grad()
        synchronize(self.tokens)
        start = time.perf_counter()
        loss = self.compute_loss()
        between()
        loss.backward()
        synchronize(self.tokens)
        return loss.item(), time.perf_counter() - start


def compile_variant(model: LossOnly, variant: Variant, options: dict[str, Any]) -> Any:
    """The compiled model; this is all that differs between the variants."""
    if variant == "fxoffload":
        return fxoffload.compile(model, **options)
    if options.get("compiler") == "eager":
        return torch.compile(model, backend="aot_eager_decomp_partition")
    return torch.compile(model)


def measure_alone(settings: RunSettings) -> None:
    """Report the memory of one variant, and what its compilation took."""
    trainer = Trainer(*make_inputs(settings), settings.variant, settings)
    _, seconds = trainer.step()
    rss_bytes = peak_rss_bytes()
    trainer.model.zero_grad()
    curve = record_step(trainer.compute_loss, trainer.tokens.device)
    record: dict[str, Any] = {
        "peak_bytes": curve.peak_bytes,
        "unseen_free_bytes": curve.unseen_free_bytes,
        "gradient_bytes": sum(
            p.numel() * p.element_size() for p in trainer.model.parameters() if p.requires_grad
        ),
        "rss_bytes": rss_bytes,
        "compile_seconds": trainer.first_seconds - seconds,
    }
    if settings.variant == "fxoffload":
        plans = trainer.passes.plans
        record |= {
            "pass_seconds": trainer.passes.seconds,
            "predicted_peak_bytes": max((plan.peak_bytes for plan in plans), default=0),
            "plans": [str(plan) for plan in plans],
            "proof": prove_transfers(trainer),
        }
    report(record)


def measure_paired(settings: RunSettings) -> None:
    """Report the seconds and losses of interleaved steps, and what moved in each."""
    plain = Trainer(*make_inputs(settings), "plain", settings)
    moved = Trainer(*make_inputs(settings), "fxoffload", settings)
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


def make_inputs(settings: RunSettings) -> tuple[LossOnly, Tensor]:
    """The model and its tokens, the same ones at every call."""
    torch.manual_seed(0)
    shape = Shape(**settings.shape)
    model = build_model(settings.model, shape).to(settings.device)
    return model, make_tokens(shape).to(settings.device)


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


def synchronize(tensor: Tensor) -> None:
    """Wait for the device of `tensor`."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)


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
