"""Train the small GPT in a process that train_gpt.py starts."""

from __future__ import annotations

import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from gpt import GPT, GPTShape
from torch import Tensor

import fxoffload
from fxoffload.cli.text_windows import sample_windows

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import Record
from benchmarks.measure import MemoryCurve, peak_rss_bytes, record_step

Variant = Literal["plain", "fxoffload"]
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of the runs of one process.

    variants: trained in turn, each with its own model. text: the file to train on, see load_text.
    settling_steps: steps before the measured `steps`; in them each variant compiles, and fxoffload
    measures and plans once more. options: of fxoffload.
    """

    variants: tuple[Variant, ...]
    text: str | None
    layers: int
    width: int
    batch: int
    length: int
    settling_steps: int
    steps: int
    seed: int
    device: str
    threads: int | None = None
    options: dict[str, Any] = field(default_factory=dict[str, Any])


def load_text(path: str | None) -> bytes:
    """The bytes of the file `path`, or of all modules of Python's standard library."""
    if path is not None:
        return Path(path).read_bytes()
    library = Path(sysconfig.get_paths()["stdlib"])
    modules = (
        module
        for module in sorted(library.rglob("*.py"))
        if _NOT_LIBRARY.isdisjoint(module.relative_to(library).parts)
    )
    return b"\n".join(module.read_bytes() for module in modules)


def sample_batches(text: bytes, settings: RunSettings) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs (tokens, targets) without end, the same ones for the same seed."""
    windows = sample_windows(
        text, batch=settings.batch, length=settings.length + 1, seed=settings.seed
    )
    for window in windows:
        on_device = window.to(settings.device)
        yield on_device[:, :-1], on_device[:, 1:]


class Run:
    """A variant with its model and its optimizer."""

    def __init__(self, variant: Variant, settings: RunSettings) -> None:
        self._device = torch.device(settings.device)
        torch.manual_seed(settings.seed)
        shape = GPTShape(settings.layers, settings.width, settings.width // 64, settings.length)
        model = GPT(shape).to(self._device)
        self._compiled = compile_variant(model, variant, settings)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(self, tokens: Tensor, targets: Tensor) -> tuple[float, float]:
        """Train one step; return the loss, and the seconds of forward and backward."""
        start = time.perf_counter()
        loss = self._compiled(tokens, targets)
        loss.backward()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - start
        self._optimizer.step()
        self._optimizer.zero_grad()
        return loss.item(), seconds

    def record_memory(self, tokens: Tensor, targets: Tensor) -> MemoryCurve:
        """Run one forward and backward, and return the memory curve."""
        curve = record_step(lambda: self._compiled(tokens, targets), self._device)
        self._optimizer.zero_grad()
        return curve


def compile_variant(model: GPT, variant: Variant, settings: RunSettings) -> Any:
    """Compile the model for the variant; the variants differ only in this."""
    if variant == "fxoffload":
        return fxoffload.compile(model, **settings.options)
    if settings.options.get("compiler") == "eager":
        return torch.compile(model, backend="aot_eager_decomp_partition")
    return torch.compile(model)


def train(settings: RunSettings) -> Iterator[Record]:
    """Train all variants in turn: a record of each step, then the memory curve of one step more."""
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    runs = {variant: Run(variant, settings) for variant in settings.variants}
    batches = sample_batches(load_text(settings.text), settings)
    for step in range(-settings.settling_steps, settings.steps):
        if step == 0:
            fxoffload.reset_statistics()
        batch = next(batches)
        # The order alternates, as one variant may disturb the one that follows.
        order = list(runs) if step % 2 else list(reversed(runs))
        found = {variant: runs[variant].step(*batch) for variant in order}
        losses, seconds = (
            {variant: numbers[index] for variant, numbers in found.items()} for index in range(2)
        )
        yield {"step": step, "losses": losses, "seconds": seconds}
    statistics = asdict(fxoffload.statistics())
    rss_bytes = peak_rss_bytes()
    batch = next(batches)
    curves = {variant: asdict(run.record_memory(*batch)) for variant, run in runs.items()}
    yield {"statistics": statistics, "rss_bytes": rss_bytes, "curves": curves}
