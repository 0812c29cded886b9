"""Compares ways to train one model in little memory: each compiled, then stepped in turn.

plain        torch.compile
fxoffload    at a memory budget: a share of plain's activation peak, "min", or none
recompute    torch.compile with torch._functorch.config.activation_memory_budget
checkpoint   torch.compile with each layer under torch.utils.checkpoint
hooks        torch.compile with saved tensors saved to files, one by one, by saved-tensor hooks
save_on_cpu  torch.compile with torch.autograd.graph.save_on_cpu; on a CPU this only copies
beside       plain, while another process moves the bytes of the fxoffload of the same share

All variants run in one fresh process. Each round takes two steps of each variant and times the
second one, so that other load on the machine affects all variants alike.
"""

from __future__ import annotations

import os
import random
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

import fxoffload
from benchmarks.drive_load import DriveLoad, LoadedTrainer
from benchmarks.fresh_process import KEEP_FREED_MEMORY, Parameters, Record, run_fresh
from benchmarks.limited_engine import limit_drives
from benchmarks.measure import record_highest_step, record_step
from benchmarks.runner import Show
from benchmarks.trainer import Program, Trainer, Workload, compile_variant
from benchmarks.variant_tables import Kind, Measured, Share
from fxoffload import BudgetError, OffloadConfig
from fxoffload.passes import partition_choice

# Tensors with no more elements stay in memory, as in PyTorch's tutorial on saved tensors.
HOOK_ELEMENTS = 1000
# The largest difference from plain's loss: fused code adds in another order.
LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to train the model.

    share: see fxoffload and recompute above. recomputes: whether the plan may recompute.
    checkpoints: whether each layer is under torch.utils.checkpoint. again: the same variant once
    more, in other memory, to measure the noise. program: how the model is compiled.
    learning_steps: steps before the measured ones. microbatches: of a step, see microbatches.py.
    """

    kind: Kind
    share: Share = None
    recomputes: bool = True
    checkpoints: bool = False
    again: bool = False
    program: Program = "whole"
    learning_steps: int = 0
    microbatches: int = 1

    @property
    def label(self) -> str:
        """Its name in tables."""
        share = "" if self.share is None else f" {self.share}"
        only = "" if self.recomputes else ", moving only"
        only += ", of checkpoints" if self.checkpoints else ""
        return f"{self.kind}{share}{only}{', again' if self.again else ''}"


PLAIN = Variant("plain")
PLAIN_AGAIN = Variant("plain", again=True)


def run_variants(
    workload: Workload,
    variants: Sequence[Variant],
    rounds: int,
    show: Show,
    *,
    bytes_per_second: float | None = None,
) -> list[Record]:
    """Measured records of `variants`, the first of which is plain, from an empty compile cache.

    bytes_per_second: limits the drive in each direction.
    """
    arguments = workload, list(variants), rounds, bytes_per_second
    return collect_records(show, measure_variants, *arguments)


def collect_records(
    show: Show,
    work: Callable[Parameters, Iterator[Record]],
    *args: Parameters.args,
    **kwargs: Parameters.kwargs,
) -> list[Record]:
    """The records that `work` yields in a fresh process, each with its seconds of the rounds."""
    found: dict[str, Record] = {}
    with tempfile.TemporaryDirectory() as cache:
        variables = {"TORCHINDUCTOR_CACHE_DIR": cache, **KEEP_FREED_MEMORY}
        for record in run_fresh(variables, work, *args, **kwargs):
            if "round" in record:
                show(f"round {record['round'] + 1}")
                for label, seconds in record["seconds"].items():
                    found[label]["seconds"].append(seconds)
            else:
                found[record["label"]] = record
                show(f"compiled {len(found)}: {record['label']}")
    return list(found.values())


def measure_variants(
    workload: Workload, variants: list[Variant], rounds: int, bytes_per_second: float | None
) -> Iterator[Record]:
    """In a fresh process: each variant, then the seconds of a step of each in every round."""
    # All variants, and their layers, are calls of one function, each with a graph of its own.
    torch.compiler.config.recompile_limit = 16 * len(variants) * workload.shape.layers
    trainers: dict[str, Trainer | LoadedTrainer] = {}
    found: dict[str, Measured] = {}
    plain: Measured | None = None
    with limit_drives(bytes_per_second):
        for variant in variants:
            if variant.kind == "beside":
                assert plain is not None, "what runs beside the load comes first"
                like = found[replace(variant, kind="fxoffload").label]
                measured, trainer = load_plain(
                    trainers[plain.label], workload, variant, plain, like
                )
            else:
                plain_bytes = None if plain is None else plain.peak_bytes
                measured, trainer = measure_variant(workload, variant, plain_bytes)
            found[measured.label] = measured
            if trainer is not None:
                plain = plain or measured
                check_loss(measured, plain.loss)
                trainers[measured.label] = trainer
            yield asdict(measured)
        yield from time_rounds(trainers, rounds)


def measure_variant(
    workload: Workload, variant: Variant, plain_bytes: int | None
) -> tuple[Measured, Trainer | None]:
    """A variant, compiled: its memory, and what steps it; None where no plan fits.

    plain_bytes: plain's peak, of which a budget is a share.
    """
    measured = Measured(variant.label, variant.kind, variant.share)
    if variant.kind == "fxoffload" and isinstance(variant.share, float):
        assert plain_bytes is not None, "a share is one of plain's peak, so plain comes first"
        measured.budget_bytes = int(variant.share * plain_bytes)
    try:
        trainer = build_trainer(workload, variant, measured.budget_bytes)
        measure_trainer(trainer, variant, measured)
    except BudgetError as error:
        measured.refused = str(error).splitlines()[0]
        return measured, None
    return measured, trainer


def load_plain(
    trainer: Trainer | LoadedTrainer,
    workload: Workload,
    variant: Variant,
    plain: Measured,
    like: Measured,
) -> tuple[Measured, LoadedTrainer]:
    """The plain variant of `trainer` beside a load of the bytes that `like` moves each way."""
    assert isinstance(trainer, Trainer), "one load at a time"
    _, seconds = trainer.step()
    trainer.model.zero_grad()
    (directory, *_) = OffloadConfig(directory=workload.options["directory"]).directories
    load = DriveLoad(directory, like.offloaded_bytes)
    measured = replace(plain, label=variant.label, kind="beside", share=variant.share, seconds=[])
    measured.offloaded_bytes = like.offloaded_bytes
    return measured, LoadedTrainer(trainer, load, seconds)


def check_loss(measured: Measured, loss: float) -> None:
    """Raise RuntimeError if it has another loss than `loss`."""
    if abs(measured.loss - loss) > LOSS_TOLERANCE:
        raise RuntimeError(f"{measured.label}: loss {measured.loss}, expected {loss}")


def time_rounds(trainers: Mapping[str, Trainer | LoadedTrainer], rounds: int) -> Iterator[Record]:
    """The seconds of a step of each, in every round."""
    for number in range(rounds):
        seconds: dict[str, float] = {}
        # Another order in each round: pending writes of one variant may slow the next one.
        for label in random.Random(number).sample(list(trainers), len(trainers)):
            # The first step finds the caches and the heap as another variant has left them; a
            # training run repeats the same step. So the second step is timed.
            trainers[label].step()
            _, seconds[label] = trainers[label].step()
            trainers[label].model.zero_grad()  # Its gradients are not part of another's step.
        yield {"round": number, "seconds": seconds}


def measure_trainer(trainer: Trainer, variant: Variant, measured: Measured) -> None:
    """Fill in the measurements of single steps of a variant, and its predictions."""
    device = trainer.tokens.device
    for _ in range(variant.learning_steps):
        peak_bytes = record_step(trainer.compute_loss, device).peak_bytes
        measured.second_peak_bytes = measured.second_peak_bytes or peak_bytes
        trainer.model.zero_grad()
    fxoffload.reset_statistics()
    measured.loss, seconds = trainer.step()
    done = fxoffload.statistics()
    for name in ("offloaded_bytes", "written_bytes", "read_bytes", "exposed_seconds"):
        setattr(measured, name, getattr(done, name))
    measured.compile_seconds = trainer.first_seconds - seconds
    measured.peak_bytes = record_highest_step(
        trainer.compute_loss, trainer.model, device
    ).peak_bytes
    if variant.kind == "fxoffload":
        passes, schedule = trainer.passes, trainer.schedule
        if not passes.plans:
            raise RuntimeError(f"{variant.label}: its graphs came from a cache, not from a plan")
        if schedule is not None:
            measured.predicted_peak_bytes = schedule.peak_bytes
            measured.predicted_seconds = schedule.step_seconds
        measured.lower_bound_bytes = passes.lower_bound_bytes
        measured.cut = max(passes.plans, key=lambda plan: plan.saved_bytes).cut


def build_trainer(workload: Workload, variant: Variant, budget_bytes: int | None) -> Trainer:
    """The compiled variant, after its first steps."""
    model, tokens = workload.make_inputs()
    options = dict(workload.options)
    hooks: Callable[[], AbstractContextManager[Any]] = nullcontext
    if variant.checkpoints or variant.kind == "checkpoint":
        inner: Any = model.model
        inner.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    with ExitStack() as stack:
        if variant.kind == "fxoffload":
            options["memory_budget"] = "min" if variant.share == "min" else budget_bytes
            if not variant.recomputes:
                stack.enter_context(patch.object(partition_choice, "CUTS", ()))
                # This patch is not part of the key of AOTAutograd's cache.
                stack.enter_context(functorch_config.patch(enable_autograd_cache=False))
        elif variant.kind == "recompute":
            stack.enter_context(functorch_config.patch(activation_memory_budget=variant.share))
        elif variant.kind == "save_on_cpu":
            hooks = torch.autograd.graph.save_on_cpu
        elif variant.kind == "hooks":
            (directory, *_) = OffloadConfig(directory=options["directory"]).directories
            hooks = partial(save_to_files, directory)
        compile_model = partial(
            compile_variant,
            compilation="fxoffload" if variant.kind == "fxoffload" else "plain",
            program=variant.program,
            **options,
        )
        microbatches = variant.microbatches
        return Trainer(model, tokens, compile_model, hooks=hooks, microbatches=microbatches)


@contextmanager
def save_to_files(directory: Path) -> Generator[None]:
    """A context in which saved tensors are written to files, and read when the backward needs them.

    Source: PyTorch's tutorial "Hooks for autograd saved tensors".
    """

    def pack(tensor: Tensor) -> Tensor | SavedFile:
        return tensor if tensor.numel() <= HOOK_ELEMENTS else SavedFile(tensor, directory)

    def unpack(packed: Tensor | SavedFile) -> Tensor:
        return packed if isinstance(packed, Tensor) else torch.load(packed.path)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class SavedFile:
    """A tensor in a file, which is deleted together with this object."""

    def __init__(self, tensor: Tensor, directory: Path) -> None:
        number, self.path = tempfile.mkstemp(dir=directory, suffix=".pt")
        os.close(number)
        self._finalizer = weakref.finalize(self, os.unlink, self.path)
        torch.save(tensor, self.path)
