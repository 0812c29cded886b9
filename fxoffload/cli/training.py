"""The training that the command `train` runs: a small model, some steps, and what they took."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from fxoffload import backend, runtime
from fxoffload.cli.text_windows import sample_windows
from fxoffload.errors import ConfigError
from fxoffload.runtime.program.sampler import HeldSampler

# The first step compiles, and the next ten show how long settled steps take. Without a budget,
# every other one of them moves everything, to show the price of a byte.
SETTLING_STEPS = 11
_MOVED = ("written_bytes", "read_bytes", "forwarded_bytes")


@dataclass(frozen=True, slots=True)
class TrainingRecord:
    """What a training took. losses: of all steps. step_seconds: of the measured ones.

    step_seconds are those of forward and backward. peak_bytes: the most that the last step had on
    the device beyond what was there before it; None where nobody counts that. moved: bytes in a
    measured step, by the names of the store's counters; None without fxoffload.
    """

    description: str
    losses: list[float]
    step_seconds: list[float]
    peak_bytes: int | None
    moved: dict[str, float] | None
    exposed_seconds: float

    def describe(self) -> dict[str, Any]:
        """The record as plain data."""
        return asdict(self)

    def find_spread(self) -> tuple[float, float, float]:
        """The least, the median and the most seconds of a measured step."""
        seconds = self.step_seconds
        return min(seconds), statistics.median(seconds), max(seconds)


@dataclass(frozen=True, slots=True)
class Training:
    """What to train. steps: measured ones. options: of fxoffload; None trains without it."""

    model: str
    layers: int
    hidden: int
    heads: int
    length: int
    batch: int
    steps: int
    seed: int
    device: str
    options: dict[str, Any] | None

    def run(self, text: bytes, show: Callable[[float], object]) -> TrainingRecord:
        """Train on `text`; `show` gets the loss of each step.

        Raises ConfigError without the package transformers, or for sizes that no model has, and
        the errors of fxoffload.compile and of its steps.
        """
        device = torch.device(self.device)
        model = self.build_model().to(device)
        if self.options is None:
            compiled = torch.compile(model)
        else:
            compiled = backend.compile(model, **self.options)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
        windows = sample_windows(text, batch=self.batch, length=self.length, seed=self.seed)
        losses: list[float] = []
        seconds: list[float] = []
        peak_bytes = None
        for number in range(-SETTLING_STEPS, self.steps):
            if number == 0:
                runtime.reset_statistics()
            tokens = next(windows).to(device)
            # Looking takes time from the step: only the last one is looked at.
            if number == self.steps - 1:
                loss, took, peak_bytes = _measure_peak(partial(_step, compiled, tokens), device)
            else:
                loss, took = _step(compiled, tokens)
            optimizer.step()
            optimizer.zero_grad()
            losses.append(loss)
            if 0 <= number < self.steps - 1:
                seconds.append(took)
            show(loss)
        counters = runtime.statistics()
        moved = {name: getattr(counters, name) / self.steps for name in _MOVED}
        return TrainingRecord(
            self._describe(model),
            losses,
            seconds,
            peak_bytes,
            None if self.options is None else moved,
            counters.exposed_seconds / self.steps,
        )

    def build_model(self) -> nn.Module:
        """The model with the weights of the seed."""
        try:
            from fxoffload.cli.byte_models import Shape, build_model, check_shape
        except ModuleNotFoundError as error:
            if error.name != "transformers":
                raise
            raise ConfigError(
                f"model={self.model!r} needs the package transformers; "
                'pip install "fxoffload[models]"'
            ) from None
        shape = Shape(self.layers, self.hidden, self.heads, self.batch, self.length)
        check_shape(self.model, shape)
        torch.manual_seed(self.seed)
        return build_model(self.model, shape)

    def _describe(self, model: nn.Module) -> str:
        count = sum(parameter.numel() for parameter in model.parameters())
        how = "plain torch.compile" if self.options is None else "fxoffload"
        return (
            f"{self.model}: {self.layers} layers x {self.hidden}, {count / 1e6:.1f} million "
            f"parameters, batch {self.batch} x {self.length}, {self.device}, {how}"
        )


def _step(compiled: Callable[[Tensor], Tensor], tokens: Tensor) -> tuple[float, float]:
    """Run a forward and a backward; return the loss, and the seconds."""
    start = time.perf_counter()
    loss = compiled(tokens)
    loss.backward()
    if tokens.is_cuda:
        torch.cuda.synchronize(tokens.device)
    return loss.item(), time.perf_counter() - start


def _measure_peak(
    step: Callable[[], tuple[float, float]], device: torch.device
) -> tuple[float, float, int | None]:
    """What `step` returns, and the most bytes that it had on the device."""
    count = partial(runtime.count_live_bytes, device)
    before_bytes = count()
    sampler = HeldSampler(count)
    try:
        loss, seconds = step()
        highest = sampler.take().highest
    finally:
        sampler.stop()
    if highest is None or before_bytes is None:
        return loss, seconds, None
    return loss, seconds, highest - before_bytes
