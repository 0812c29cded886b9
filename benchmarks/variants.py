"""Compares ways to train one model in little memory: each compiled, then stepped in turn.

plain        torch.compile
fxoffload    at a memory budget: a share of plain's activation peak, "min", or none
recompute    torch.compile with torch._functorch.config.activation_memory_budget
checkpoint   torch.compile with each layer under torch.utils.checkpoint
hooks        torch.compile with saved tensors saved to files, one by one, by saved-tensor hooks

All run in one fresh process, whose rounds take two steps of each and time the second: what else
the machine does hits all alike. The prediction is that of the plan, which is made before the first
step.
"""

from __future__ import annotations

import os
import random
import statistics
import tempfile
import weakref
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch._functorch import config as functorch_config

import fxoffload
from benchmarks.fresh_process import KEEP_FREED_MEMORY, Record, run_fresh
from benchmarks.limited_engine import limit_drives
from benchmarks.measure import record_highest_step
from benchmarks.runner import Show
from benchmarks.trainer import Trainer, Workload, compile_variant
from fxoffload import BudgetError, OffloadConfig
from fxoffload.passes import partition_choice
from fxoffload.planner.plan import Cut

Kind = Literal["plain", "fxoffload", "recompute", "checkpoint", "hooks"]
# Tensors with no more elements stay in memory, as in PyTorch's tutorial on saved tensors.
HOOK_ELEMENTS = 1000
# Of a variant's loss from plain's: fused sums are added up in another order.
LOSS_TOLERANCE = 1e-3


@dataclass(frozen=True, slots=True)
class Variant:
    """`share`: see fxoffload and recompute above. recomputes: False plans without recomputation.

    checkpoints: whether the model has each layer under torch.utils.checkpoint. again: nothing else
    than what has been measured before, as another model in other memory: what differs is noise.
    """

    kind: Kind
    share: float | Literal["min"] | None = None
    recomputes: bool = True
    checkpoints: bool = False
    again: bool = False

    @property
    def label(self) -> str:
        """Its name in tables."""
        share = "" if self.share is None else f" {self.share}"
        only = "" if self.recomputes else ", moving only"
        only += ", of checkpoints" if self.checkpoints else ""
        return f"{self.kind}{share}{only}{', again' if self.again else ''}"


PLAIN = Variant("plain")
PLAIN_AGAIN = Variant("plain", again=True)


@dataclass(slots=True)
class Measured:
    """What one variant took. Where `refused` says why there is no such plan, nothing was measured.

    seconds: of its step in each round. predicted_*: by the plan. lower_bound_bytes: that of the
    simulator. cut: of the plan that saves most, see Plan. offloaded_bytes, written_bytes,
    read_bytes, exposed_seconds: of a step.
    """

    label: str
    kind: Kind
    share: float | str | None = None
    refused: str | None = None
    peak_bytes: int = 0
    budget_bytes: int | None = None
    predicted_peak_bytes: int | None = None
    predicted_seconds: float | None = None
    lower_bound_bytes: int | None = None
    cut: Cut = None
    offloaded_bytes: int = 0
    written_bytes: int = 0
    read_bytes: int = 0
    exposed_seconds: float = 0.0
    compile_seconds: float = 0.0
    loss: float = 0.0
    seconds: list[float] = field(default_factory=list[float])

    @property
    def median_seconds(self) -> float:
        """Of a step."""
        return statistics.median(self.seconds)

    def find_ratios(self, other: Measured) -> list[float]:
        """Its seconds over those of `other`, round by round."""
        return [own / its for own, its in zip(self.seconds, other.seconds, strict=True)]


def parse_measured(record: Record) -> list[Measured]:
    """What a record of a benchmark holds under "variants"."""
    return [Measured(**item) for item in record["variants"]]


def run_variants(
    workload: Workload,
    variants: Sequence[Variant],
    rounds: int,
    show: Show,
    *,
    bytes_per_second: float | None = None,
) -> list[Measured]:
    """Measure `variants`, the first of which is plain, from an empty compile cache.

    bytes_per_second: limits the drive in each direction.
    """
    found: dict[str, Measured] = {}
    with tempfile.TemporaryDirectory() as cache:
        variables = {"TORCHINDUCTOR_CACHE_DIR": cache, **KEEP_FREED_MEMORY}
        records = run_fresh(
            variables, measure_variants, workload, list(variants), rounds, bytes_per_second
        )
        for record in records:
            if "round" in record:
                show(f"round {record['round'] + 1} of {rounds}")
                for label, seconds in record["seconds"].items():
                    found[label].seconds.append(seconds)
            else:
                found[record["label"]] = Measured(**record)
                show(f"compiled {len(found)} of {len(variants)}: {record['label']}")
    return list(found.values())


def measure_variants(
    workload: Workload, variants: list[Variant], rounds: int, bytes_per_second: float | None
) -> Iterator[Record]:
    """In a fresh process: each variant, then the seconds of every round."""
    # All variants are calls of one function, each with a graph of its own.
    torch.compiler.config.recompile_limit = 16 * len(variants)
    trainers: dict[str, Trainer] = {}
    plain: Measured | None = None
    with limit_drives(bytes_per_second):
        for variant in variants:
            measured = Measured(variant.label, variant.kind, variant.share)
            if variant.kind == "fxoffload" and isinstance(variant.share, float):
                assert plain is not None, "a share is one of plain's peak, so plain comes first"
                measured.budget_bytes = int(variant.share * plain.peak_bytes)
            try:
                trainer = build_trainer(workload, variant, measured.budget_bytes)
            except BudgetError as error:
                measured.refused = str(error).splitlines()[0]
            else:
                measure_trainer(trainer, measured)
                plain = plain or measured
                if abs(measured.loss - plain.loss) > LOSS_TOLERANCE:
                    raise RuntimeError(f"{variant.label}: loss {measured.loss}, plain {plain.loss}")
                trainers[variant.label] = trainer
            yield asdict(measured)
        for number in range(rounds):
            yield {"round": number, "seconds": time_round(trainers, number)}


def time_round(trainers: dict[str, Trainer], number: int) -> dict[str, float]:
    """Seconds of a step of each, in another order in each round.

    One may disturb the next: by what it left to be written.
    """
    seconds: dict[str, float] = {}
    for label in random.Random(number).sample(list(trainers), len(trainers)):
        # A training run makes the same step again and again: the first one meets what another
        # variant left in caches and in the heap.
        trainers[label].step()
        _, seconds[label] = trainers[label].step()
        trainers[label].model.zero_grad()  # Its gradients are not part of another's step.
    return seconds


def measure_trainer(trainer: Trainer, measured: Measured) -> None:
    """Fill in what a step of its own tells of a variant, and what was predicted."""
    fxoffload.reset_statistics()
    measured.loss, seconds = trainer.step()
    done = fxoffload.statistics()
    measured.offloaded_bytes = done.offloaded_bytes
    measured.written_bytes, measured.read_bytes = done.written_bytes, done.read_bytes
    measured.exposed_seconds = done.exposed_seconds
    measured.compile_seconds = trainer.first_seconds - seconds
    curve = record_highest_step(trainer.compute_loss, trainer.model, trainer.tokens.device)
    measured.peak_bytes = curve.peak_bytes
    passes = trainer.passes
    if measured.kind == "fxoffload":
        if not passes.plans:
            raise RuntimeError(f"{measured.label}: its graphs came from a cache, not from a plan")
        if trainer.schedule is not None:
            measured.predicted_peak_bytes = trainer.schedule.peak_bytes
            measured.predicted_seconds = trainer.schedule.step_seconds
        measured.lower_bound_bytes = passes.lower_bound_bytes
        measured.cut = max(passes.plans, key=lambda plan: plan.saved_bytes).cut


def build_trainer(workload: Workload, variant: Variant, budget_bytes: int | None) -> Trainer:
    """The compiled variant, after its first step."""
    model, tokens = workload.make_inputs()
    options = dict(workload.options)
    hooks: Callable[[], AbstractContextManager[Any]] = nullcontext
    if variant.checkpoints or variant.kind == "checkpoint":
        reentrant = {"use_reentrant": False}
        model.model.gradient_checkpointing_enable(gradient_checkpointing_kwargs=reentrant)
    with ExitStack() as stack:
        if variant.kind == "fxoffload":
            options["memory_budget"] = "min" if variant.share == "min" else budget_bytes
            if not variant.recomputes:
                stack.enter_context(patch.object(partition_choice, "CUTS", ()))
                # The key of AOTAutograd's cache does not know of that.
                stack.enter_context(functorch_config.patch(enable_autograd_cache=False))
        elif variant.kind == "recompute":
            stack.enter_context(functorch_config.patch(activation_memory_budget=variant.share))
        elif variant.kind == "hooks":
            (directory, *_) = OffloadConfig(directory=options["directory"]).directories
            hooks = partial(save_to_files, directory)
        compilation = "fxoffload" if variant.kind == "fxoffload" else "plain"
        compile_model = partial(compile_variant, compilation=compilation, **options)
        return Trainer(model, tokens, compile_model, hooks=hooks)


@contextmanager
def save_to_files(directory: Path) -> Generator[None]:
    """Within, what a forward saves goes to files, and comes back when it is asked for.

    Source: PyTorch's tutorial "Hooks for autograd saved tensors".
    """

    def pack(tensor: Tensor) -> Tensor | SavedFile:
        return tensor if tensor.numel() <= HOOK_ELEMENTS else SavedFile(tensor, directory)

    def unpack(packed: Tensor | SavedFile) -> Tensor:
        return packed if isinstance(packed, Tensor) else torch.load(packed.path)

    with torch.autograd.graph.saved_tensors_hooks(pack, unpack):
        yield


class SavedFile:
    """A tensor in a file, which goes when this does."""

    def __init__(self, tensor: Tensor, directory: Path) -> None:
        number, self.path = tempfile.mkstemp(dir=directory, suffix=".pt")
        os.close(number)
        self._finalizer = weakref.finalize(self, os.unlink, self.path)
        torch.save(tensor, self.path)
