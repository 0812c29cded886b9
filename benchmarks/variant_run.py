"""The fresh process of variants.py: compiles each variant, measures its peak, then all in turn."""

from __future__ import annotations

import os
import random
import sys
import tempfile
import weakref
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

import fxoffload
from fxoffload import BudgetError, OffloadConfig
from fxoffload.passes import partition_choice

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import report, run_child
from benchmarks.limited_engine import limit_drives
from benchmarks.measure import record_highest_step
from benchmarks.models import LossOnly, Shape
from benchmarks.trainer import Trainer, compile_variant, make_inputs
from benchmarks.variants import Measured, Variant, VariantSettings

# Tensors with no more elements stay in memory, as in PyTorch's tutorial on saved tensors.
HOOK_ELEMENTS = 1000
# Of a variant's loss from plain's: fused sums are added up in another order.
LOSS_TOLERANCE = 1e-3


def measure(settings: VariantSettings) -> None:
    """Report each variant, then the seconds of every round."""
    # All variants are calls of one function, each with a graph of its own.
    torch.compiler.config.recompile_limit = 16 * len(settings.variants)
    trainers: dict[str, Trainer] = {}
    plain: Measured | None = None
    for variant in [Variant(**record) for record in settings.variants]:
        measured = Measured(variant.label, variant.kind, variant.share)
        if variant.kind == "fxoffload" and isinstance(variant.share, float):
            assert plain is not None, "a share is one of plain's peak, so plain comes first"
            measured.budget_bytes = int(variant.share * plain.peak_bytes)
        try:
            trainer = build_trainer(settings, variant, measured.budget_bytes)
        except BudgetError as error:
            measured.refused = str(error).splitlines()[0]
            report(asdict(measured))
            continue
        measure_trainer(trainer, measured)
        plain = plain or measured
        if abs(measured.loss - plain.loss) > LOSS_TOLERANCE:
            raise RuntimeError(f"{variant.label}: loss {measured.loss}, plain {plain.loss}")
        trainers[variant.label] = trainer
        report(asdict(measured))
    for number in range(settings.rounds):
        seconds: dict[str, float] = {}
        # In another order each time, as one may disturb the next: by what it left to be written.
        for label in random.Random(number).sample(list(trainers), len(trainers)):
            # A training run makes the same step again and again: the first one meets what another
            # variant left in caches and in the heap.
            trainers[label].step()
            _, seconds[label] = trainers[label].step()
            trainers[label].model.zero_grad()  # Its gradients are not part of another's step.
        report({"round": number, "seconds": seconds})


def measure_trainer(trainer: Trainer, measured: Measured) -> None:
    """Fill in what a step of its own tells of a variant, and what was predicted."""
    fxoffload.reset_statistics()
    measured.loss, seconds = trainer.step()
    done = fxoffload.statistics()
    measured.offloaded_bytes = done.offloaded_bytes
    measured.written_bytes, measured.read_bytes = done.written_bytes, done.read_bytes
    measured.exposed_seconds = done.exposed_seconds
    measured.compile_seconds = trainer.first_seconds - seconds
    device = trainer.tokens.device
    measured.peak_bytes = record_highest_step(
        trainer.compute_loss, trainer.model, device
    ).peak_bytes
    passes = trainer.passes
    if measured.kind == "fxoffload":
        if not passes.plans:
            raise RuntimeError(f"{measured.label}: its graphs came from a cache, not from a plan")
        measured.predicted_peak_bytes = passes.peak_bytes
        measured.predicted_seconds = passes.step_seconds
        measured.lower_bound_bytes = passes.lower_bound_bytes
        measured.cut = max(passes.plans, key=lambda plan: plan.saved_bytes).cut


def build_trainer(settings: VariantSettings, variant: Variant, budget_bytes: int | None) -> Trainer:
    """The compiled variant, after its first step."""
    model, tokens = make_inputs(settings.model, Shape(**settings.shape), settings.device)
    options = dict(settings.options)
    hooks: Callable[[], AbstractContextManager[Any]] = nullcontext
    if variant.checkpoints or variant.kind == "checkpoint":
        use_checkpoints(model)
    with ExitStack() as stack:
        if variant.kind == "fxoffload":
            options["memory_budget"] = "min" if variant.share == "min" else budget_bytes
            if not variant.recomputes:
                stack.enter_context(patch.object(partition_choice, "CUTS", ()))
                # The key of AOTAutograd's cache does not know of that.
                stack.enter_context(functorch_config.patch(enable_autograd_cache=False))
        elif variant.kind == "recompute":
            budget = functorch_config.patch(activation_memory_budget=variant.share)
            stack.enter_context(budget)
        elif variant.kind == "hooks":
            (directory, *_) = OffloadConfig(directory=options["directory"]).directories
            hooks = partial(save_to_files, directory)
        compiled = "fxoffload" if variant.kind == "fxoffload" else "plain"
        compile_model = partial(compile_variant, variant=compiled, **options)
        return Trainer(model, tokens, compile_model, hooks=hooks)


def use_checkpoints(model: LossOnly) -> None:
    """Let every layer keep its input alone, and run its forward again in the backward."""
    options = {"use_reentrant": False}
    model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=options)


@contextmanager
def save_to_files(directory: Path) -> Generator[None, None, None]:
    """Within, what a forward saves goes to a file of its own, and comes back when it is asked for.

    Source: PyTorch's tutorial "Hooks for autograd saved tensors".
    """

    def pack(tensor: Tensor) -> Tensor | SavedFile:
        return tensor if tensor.numel() <= HOOK_ELEMENTS else SavedFile(tensor, directory)

    def unpack(packed: Tensor | SavedFile) -> Tensor:
        return packed if isinstance(packed, Tensor) else packed.load()

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class SavedFile:
    """A tensor in a file, which goes when this does."""

    def __init__(self, tensor: Tensor, directory: Path) -> None:
        number, self._path = tempfile.mkstemp(dir=directory, suffix=".pt")
        os.close(number)
        self._finalizer = weakref.finalize(self, os.unlink, self._path)
        torch.save(tensor, self._path)

    def load(self) -> Tensor:
        """The tensor, read anew."""
        return torch.load(self._path)


def work(record: dict[str, Any]) -> None:
    """Do what the parent asks for."""
    settings = VariantSettings(**record)
    torch.set_num_threads(settings.threads)
    with limit_drives(settings.bytes_per_second):
        measure(settings)


if __name__ == "__main__":
    run_child(work)
