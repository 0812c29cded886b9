"""Compares ways to train one model in little memory: each compiled, then stepped in turn.

plain          torch.compile
fxoffload      at a memory budget: a share of plain's activation peak, "min", or none
recompute      torch.compile with torch._functorch.config.activation_memory_budget
checkpoint     torch.compile with each layer under torch.utils.checkpoint
hooks          torch.compile with saved tensors saved to files, one by one, by saved-tensor hooks
save_on_cpu    torch.compile with torch.autograd.graph.save_on_cpu; on a CPU this only copies
beside         plain, while another process moves the bytes of the fxoffload of the same share
trl            torch.compile with TRL's OffloadActivations, see peers.py
torch_offload  torch.compile with torch's pass for activation offloading, see peers.py

All variants run in one process. Each round takes steps of each variant in turn, so that other load
on the machine affects all variants alike.
"""

from __future__ import annotations

import gc
import random
import re
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import asdict, dataclass, replace
from functools import partial
from math import inf
from typing import Any
from unittest.mock import patch

import torch
from torch._functorch import config as functorch_config

import fxoffload
from benchmarks.drive_load import DriveLoad, LoadedTrainer
from benchmarks.fresh_process import KEEP_FREED_MEMORY, Parameters, Record, run_fresh
from benchmarks.limited_engine import limit_drives
from benchmarks.measure import record_highest_step
from benchmarks.peers import PeerMissing, make_trl_hooks, offload_by_torch, save_to_files
from benchmarks.runner import Show
from benchmarks.trainer import Program, Trainer, Workload, compile_variant
from benchmarks.variant_tables import Kind, Measured, Share
from fxoffload import BudgetError, OffloadConfig
from fxoffload.passes import partition_choice

# The largest difference from plain's loss, by type: fused code adds in another order.
LOSS_TOLERANCES = {"float32": 1e-3, "bfloat16": 0.05}
# Of the time that is left, the part in which variants may be begun; their steps need the rest.
BEGINNING_SHARE = 0.65


@dataclass(frozen=True, slots=True)
class Variant:
    """One way to train the model.

    share: see fxoffload and recompute above. recomputes: whether the plan may recompute.
    checkpoints: whether each layer is under torch.utils.checkpoint. program: how the model is
    compiled. microbatches: of a step, see microbatches.py. options: of fxoffload, which override
    those of the workload. note: tells it from a variant that is otherwise the same.
    """

    kind: Kind
    share: Share = None
    recomputes: bool = True
    checkpoints: bool = False
    program: Program = "whole"
    microbatches: int = 1
    options: tuple[tuple[str, Any], ...] = ()
    note: str = ""

    @property
    def label(self) -> str:
        """Its name in tables."""
        share = "" if self.share is None else f" {self.share}"
        only = "" if self.recomputes else ", moving only"
        only += ", of checkpoints" if self.checkpoints else ""
        return f"{self.kind}{share}{only}{self.note and f', {self.note}'}"


PLAIN = Variant("plain")
# The same in other memory: what differs is noise.
PLAIN_AGAIN = Variant("plain", note="again")


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
    workload: Workload,
    variants: list[Variant],
    rounds: int,
    bytes_per_second: float | None,
    *,
    until: float = inf,
    goes_on: bool = False,
    finish: Callable[[Mapping[str, Trainer | LoadedTrainer]], Iterator[Record]] | None = None,
) -> Iterator[Record]:
    """In a fresh process: each variant, then the seconds of a step of each in every round.

    until: when the time is over, of time.monotonic(); variants that it does not allow are refused.
    goes_on: a variant that fails, other than the first, gives a record of its error, and is left
    out. finish: yields more records, of the trainers by label.
    """
    # All variants, and their layers, are calls of one function, each with a graph of its own.
    torch.compiler.config.recompile_limit = 16 * len(variants) * workload.shape.layers
    trainers: dict[str, Trainer | LoadedTrainer] = {}
    found: list[Measured] = []
    deadline = find_deadline(until)
    with limit_drives(bytes_per_second):
        for variant in variants:
            if time.monotonic() > deadline:
                yield asdict(refuse(variant, "no time left"))
                continue
            try:
                measured, trainer = measure_next(workload, variant, found, trainers)
            except Exception as error:
                if not (goes_on and found):
                    raise
                yield describe_failure(variant, error)
                continue
            found.append(measured)
            if trainer is not None:
                trainers[measured.label] = trainer
            yield asdict(measured)
        # On a GPU no step is slower for what ran before it.
        warms = workload.device != "cuda"
        yield from time_rounds(trainers, rounds, warms=warms, until=until)
        if finish is not None:
            yield from finish(trainers)


def measure_next(
    workload: Workload,
    variant: Variant,
    found: Sequence[Measured],
    trainers: Mapping[str, Trainer | LoadedTrainer],
) -> tuple[Measured, Trainer | LoadedTrainer | None]:
    """A variant behind those `found`, the first of which is plain; see measure_variant."""
    if not found:
        return measure_variant(workload, variant, None)
    plain = found[0]
    if variant.kind == "beside":
        label = replace(variant, kind="fxoffload").label
        (like,) = (each for each in found if each.label == label)
        return load_plain(trainers[plain.label], workload, variant, plain, like)
    measured, trainer = measure_variant(workload, variant, plain.peak_bytes)
    if trainer is not None:
        check_loss(measured, plain.loss, workload.dtype)
    return measured, trainer


def find_deadline(until: float) -> float:
    """The time from which on no variant is begun, where the time is over at `until`."""
    start = time.monotonic()
    return start + BEGINNING_SHARE * (until - start)


def refuse(variant: Variant, why: str) -> Measured:
    """What is known of a variant that was not measured."""
    return Measured(variant.label, variant.kind, variant.share, refused=why)


def describe_failure(variant: Variant, error: Exception) -> Record:
    """The record of a variant that failed; its traceback is printed, its memory given back."""
    traceback.print_exception(error)
    error.__traceback__ = None  # Its frames hold the model.
    gc.collect()
    return {"error": f"{variant.label}: {type(error).__name__}: {error}"}


def measure_variant(
    workload: Workload, variant: Variant, plain_bytes: int | None
) -> tuple[Measured, Trainer | None]:
    """A variant, compiled: its memory, and what steps it; None where it does not fit or cannot run.

    plain_bytes: plain's peak, of which a budget is a share.
    """
    measured = Measured(variant.label, variant.kind, variant.share)
    if variant.kind == "fxoffload" and isinstance(variant.share, float):
        assert plain_bytes is not None, "a share is one of plain's peak, so plain comes first"
        measured.budget_bytes = int(variant.share * plain_bytes)
    try:
        trainer = build_trainer(workload, variant, measured.budget_bytes)
        measure_trainer(trainer, variant, measured)
    except (BudgetError, PeerMissing) as error:
        measured.refused = drop_folders(str(error).splitlines()[0])
        return measured, None
    except torch.OutOfMemoryError as error:
        measured.refused = f"does not fit: {str(error).splitlines()[0]}"
        return measured, None
    return measured, trainer


def drop_folders(text: str) -> str:
    """`text` with files named without their folders, which are those of one machine."""
    return re.sub(r"(?<!\S)/\S*/", "", text)


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


def check_loss(measured: Measured, loss: float, dtype: str) -> None:
    """Raise RuntimeError if it has another loss than `loss`. dtype: of the parameters."""
    if abs(measured.loss - loss) > LOSS_TOLERANCES[dtype]:
        raise RuntimeError(f"{measured.label}: loss {measured.loss}, expected {loss}")


def time_rounds(
    trainers: Mapping[str, Trainer | LoadedTrainer],
    rounds: int,
    *,
    warms: bool = True,
    until: float = inf,
    within: Callable[[str], AbstractContextManager[object]] = lambda label: nullcontext(),
) -> Iterator[Record]:
    """The seconds of a step of each, in every round.

    warms: a step goes before the timed one, as that would find the caches and the heap as another
    variant has left them; a training run repeats the same step. until: no round but the first
    begins then. within: a context of its label in which it steps.
    """
    for number in range(rounds):
        if number and time.monotonic() > until:
            return
        seconds: dict[str, float] = {}
        # Another order in each round: pending writes of one variant may slow the next one.
        for label in random.Random(number).sample(list(trainers), len(trainers)):
            with within(label):
                if warms:
                    trainers[label].step()
                _, seconds[label] = trainers[label].step()
            trainers[label].model.zero_grad()  # Its gradients are not part of another's step.
        yield {"round": number, "seconds": seconds}


def measure_trainer(trainer: Trainer, variant: Variant, measured: Measured) -> None:
    """Fill in the measurements of single steps of a variant, and its predictions."""
    device = trainer.tokens.device
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
    options = {**workload.options, **dict(variant.options)}
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
            hooks = partial(torch.autograd.graph.save_on_cpu, pin_memory=tokens.is_cuda)
        elif variant.kind == "hooks":
            (directory, *_) = OffloadConfig(directory=options["directory"]).directories
            hooks = partial(save_to_files, directory)
        elif variant.kind == "trl":
            hooks = make_trl_hooks(model)
        elif variant.kind == "torch_offload":
            stack.enter_context(offload_by_torch())
        compile_model = partial(
            compile_variant,
            compilation="fxoffload" if variant.kind == "fxoffload" else "plain",
            program=variant.program,
            **options,
        )
        microbatches, update = variant.microbatches, workload.update
        return Trainer(
            model, tokens, compile_model, hooks=hooks, microbatches=microbatches, update=update
        )
