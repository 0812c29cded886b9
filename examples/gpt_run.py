"""Train the small GPT in a process that train_gpt.py starts."""

from __future__ import annotations

import sys
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from gpt import GPT, GPTShape
from torch import Tensor

import fxoffload
from fxoffload.cli.text_windows import sample_windows
from fxoffload.sizes import parse_share

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import Record
from benchmarks.measure import MemoryCurve, record_step

_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})
PLAIN, OURS, LARGER = "plain", "fxoffload", "larger"


@dataclass(frozen=True, slots=True)
class RunSettings:
    """The settings of a run.

    text: the file to train on, see load_text. settling_steps: steps before the measured `steps`; in
    them each variant compiles, and fxoffload measures and plans. memory_budget: of fxoffload, with
    a share ("50%") of the peak of plain. options: of fxoffload, beside that.
    """

    text: str | None
    layers: int
    width: int
    batch: int
    length: int
    settling_steps: int
    steps: int
    seed: int
    device: str
    memory_budget: str | None
    threads: int | None = None
    options: dict[str, Any] = field(default_factory=dict[str, Any])

    @property
    def batches(self) -> dict[str, int]:
        """Sequences in a batch, by variant."""
        return {PLAIN: self.batch, OURS: self.batch, LARGER: 2 * self.batch}


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


def sample_batches(
    text: bytes, settings: RunSettings, batch: int
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield pairs (tokens, targets) without end, the same ones for the same seed."""
    windows = sample_windows(text, batch=batch, length=settings.length + 1, seed=settings.seed)
    for window in windows:
        on_device = window.to(settings.device)
        yield on_device[:, :-1], on_device[:, 1:]


class Run:
    """A model in training, with its optimizer and its batches.

    options: of fxoffload; None trains with plain torch.compile. Runs of equal batches differ in
    nothing else.
    """

    def __init__(
        self, text: bytes, settings: RunSettings, variant: str, options: dict[str, Any] | None
    ) -> None:
        self._device = torch.device(settings.device)
        self._batches = sample_batches(text, settings, settings.batches[variant])
        self._first = next(self._batches)
        torch.manual_seed(settings.seed)
        shape = GPTShape(settings.layers, settings.width, settings.width // 64, settings.length)
        model = GPT(shape).to(self._device)
        self._moves = options is not None
        if options is not None:
            self._compiled: Any = fxoffload.compile(model, **options)
        elif settings.options.get("compiler") == "eager":
            self._compiled = torch.compile(model, backend="aot_eager_decomp_partition")
        else:
            self._compiled = torch.compile(model)
        self._optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)

    def step(self) -> Record:
        """Train one step; the loss, the seconds of forward and backward, and what moved."""
        tokens, targets = next(self._batches)
        fxoffload.reset_statistics()
        start = time.perf_counter()
        loss = self._compiled(tokens, targets)
        loss.backward()
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds = time.perf_counter() - start
        moved = asdict(fxoffload.statistics()) if self._moves else {}
        self._optimizer.step()
        self._optimizer.zero_grad()
        return {"loss": loss.item(), "seconds": seconds, "moved": moved}

    def record_memory(self) -> MemoryCurve:
        """Run forward and backward on the first batch, without a step of the optimizer."""
        curve = record_step(lambda: self._compiled(*self._first), self._device)
        self._optimizer.zero_grad()
        return curve


def train(settings: RunSettings) -> Iterator[Record]:
    """Train plain, fxoffload, and fxoffload at twice the batch in the memory that plain takes.

    In turn: a record of each step with one for each variant, then the memory curve of one step
    more. A variant whose budget cannot be met ends with a record of the reason.
    """
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    text = load_text(settings.text)
    plain = Run(text, settings, PLAIN, None)
    plain.record_memory()  # Compiles.
    plain_bytes = max(plain.record_memory().peak_bytes for _ in range(2))
    budget = find_budget(settings.memory_budget, plain_bytes)
    runs = {PLAIN: plain}
    for variant, memory_budget in ((OURS, budget), (LARGER, plain_bytes)):
        options = {**settings.options, "memory_budget": memory_budget}
        runs[variant] = Run(text, settings, variant, options)
    for step in range(-settings.settling_steps, settings.steps):
        found: Record = {}
        # The order alternates, as one variant may disturb the one that follows.
        for variant in list(runs) if step % 2 else list(reversed(runs)):
            try:
                found[variant] = runs[variant].step()
            except fxoffload.BudgetError as error:
                del runs[variant]
                yield {"refused": variant, "reason": str(error)}
        yield {"step": step, "variants": found}
    yield {"curves": {variant: asdict(run.record_memory()) for variant, run in runs.items()}}


def find_budget(memory_budget: str | None, plain_bytes: int) -> int | str | None:
    """The option memory_budget of fxoffload, in bytes where it is a share of `plain_bytes`.

    Raises ConfigError if it is neither a share nor a size nor "min".
    """
    if memory_budget is None or memory_budget == "min":
        return memory_budget
    budget = parse_share("memory_budget", memory_budget)
    return int(budget * plain_bytes) if isinstance(budget, float) else budget
