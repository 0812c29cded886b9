"""Finds the batches at which ways to train one model fit caps of memory.

On a CPU they fit by their measured peaks. On a GPU torch's allocator is held to the cap, in which
steps run, or do not.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from math import inf

import torch

from benchmarks.fresh_process import Record
from benchmarks.trainer import Trainer, Workload
from benchmarks.variant_tables import Measured
from benchmarks.variants import (
    Variant,
    check_loss,
    describe_failure,
    find_deadline,
    measure_variant,
    refuse,
    time_rounds,
)

FITS = 1.01  # Of a cap: peaks differ by Python's own objects.
FITTING_BATCHES = 2  # Under the tightest cap of a method.
FITTING_STEPS = 2  # The second one finds what the first has left.


def measure_methods(
    workload: Workload,
    methods: list[Variant],
    batches: list[int],
    caps: list[float],
    rounds: int,
    *,
    until: float = inf,
    goes_on: bool = False,
) -> Iterator[Record]:
    """In a fresh process: each method at batches that may fit, then the rounds of those that do.

    The first method is plain, whose first batch is that of `workload`. until, goes_on: see
    measure_variants.
    """
    compiled = len(methods) * len(batches)
    torch.compiler.config.recompile_limit = 16 * compiled * workload.shape.layers
    workload = workload.add_optimizer()
    search = Search(workload, caps, find_deadline(until))
    for method in methods:
        # A larger batch of plain fits no cap.
        tried = {workload.shape.batch, *batches} if method.kind == "plain" else set(batches)
        widest = workload.shape.batch if method.kind == "plain" else max(batches)
        fitting = 0
        for batch in sorted((each for each in tried if each <= widest), reverse=True):
            try:
                measured = search.measure(method, batch)
            except Exception as error:
                if not (goes_on and search.plain):
                    raise
                yield describe_failure(replace(method, note=f"batch {batch}"), error)
                continue
            yield asdict(measured)
            fitting += measured.least_cap == min(search.list_caps(method))
            if fitting == FITTING_BATCHES:
                break
    yield from time_rounds(search.trainers, rounds, until=until, within=search.limit)


class Search:
    """What was found of methods at batches. deadline: nothing is measured behind it.

    plain: the first that was measured. trainers: of those that fit a cap, by label.
    """

    def __init__(self, workload: Workload, caps: Sequence[float], deadline: float) -> None:
        self.workload, self._caps, self._deadline = workload, caps, deadline
        self.plain: Measured | None = None
        self.trainers: dict[str, Trainer] = {}
        self._limits: dict[str, float] = {}
        self._losses: dict[int, float] = {}

    def list_caps(self, method: Variant) -> Sequence[float]:
        """The caps that a method is for."""
        if method.kind == "fxoffload" and isinstance(method.share, float):
            return [method.share]
        return self._caps

    def measure(self, method: Variant, batch: int) -> Measured:
        """A method at a batch; its trainer is kept if it fits a cap."""
        variant = replace(method, note=f"batch {batch}")
        if time.monotonic() > self._deadline:
            return refuse(variant, "no time left")
        sized = replace(self.workload, shape=replace(self.workload.shape, batch=batch))
        plain_bytes = None if self.plain is None else self.plain.peak_bytes
        measured, trainer = measure_variant(sized, variant, plain_bytes)
        measured.label, measured.batch = variant.label, batch
        if trainer is None:
            return measured
        check_loss(measured, self._losses.setdefault(batch, measured.loss), sized.dtype)
        if self.plain is None:
            measured.need_bytes = self._find_need(measured, trainer)
            self.plain = measured
        for cap in sorted(self.list_caps(method)):
            cap_bytes = FITS * cap * self.plain.need_bytes
            if self._fits(measured, trainer, cap_bytes):
                measured.least_cap = cap
                self.trainers[measured.label] = trainer
                self._limits[measured.label] = cap_bytes
                break
        return measured

    @contextmanager
    def limit(self, label: str) -> Generator[None]:
        """A context for steps of a trainer, in the least cap that it fits."""
        with limit_memory(torch.device(self.workload.device), self._limits[label]):
            yield

    def _find_need(self, measured: Measured, trainer: Trainer) -> int:
        """What a step takes: on a GPU from the driver, which may be more than the peak."""
        if self.workload.device != "cuda":
            return measured.peak_bytes
        with limit_memory(trainer.tokens.device, inf):
            before = torch.cuda.memory_reserved()
            torch.cuda.reset_peak_memory_stats()
            trainer.step()
            need_bytes = torch.cuda.max_memory_reserved() - before
            trainer.model.zero_grad()
        return need_bytes

    def _fits(self, measured: Measured, trainer: Trainer, cap_bytes: float) -> bool:
        """Whether it stays within a cap; on a GPU, whether it steps where there is no more."""
        if self.workload.device != "cuda":
            return measured.peak_bytes <= cap_bytes
        try:
            with limit_memory(torch.device("cuda"), cap_bytes):
                for _ in range(FITTING_STEPS):
                    trainer.step()
        except torch.OutOfMemoryError:
            return False
        finally:
            trainer.model.zero_grad()
        return True


@contextmanager
def limit_memory(device: torch.device, nbytes: float) -> Generator[None]:
    """A context in which torch may take no more of a GPU than so much beside what is live there.

    torch raises OutOfMemoryError instead. On a CPU there is no limit.
    """
    if device.type != "cuda":
        yield
        return
    gc.collect()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    total_bytes = torch.cuda.get_device_properties(device).total_memory
    share = (torch.cuda.memory_reserved() + nbytes) / total_bytes
    torch.cuda.set_per_process_memory_fraction(min(1.0, share))
    try:
        yield
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
