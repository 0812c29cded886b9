"""One training run of the small GPT, in the process that train_gpt.py starts for it."""

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

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import report, run_child
from benchmarks.measure import peak_rss_bytes, record_step

Variant = Literal["plain", "fxoffload"]
_NOT_LIBRARY = frozenset({"site-packages", "dist-packages", "test", "tests", "__pycache__"})


@dataclass(frozen=True, slots=True)
class RunSettings:
    """What a run needs to know; `options` are those of fxoffload."""

    variant: Variant
    text: str | None
    layers: int
    width: int
    batch: int
    length: int
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
    """Endless (tokens, targets), the same ones for the same seed."""
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    generator = torch.Generator().manual_seed(settings.seed)
    while True:
        starts = torch.randint(
            len(data) - settings.length, (settings.batch, 1), generator=generator
        )
        window = data[starts + torch.arange(settings.length + 1)].long().to(settings.device)
        yield window[:, :-1], window[:, 1:]


def compile_variant(model: GPT, settings: RunSettings) -> Any:
    """The model as the variant runs it; this is all that differs between the two runs."""
    if settings.variant == "fxoffload":
        return fxoffload.compile(model, **settings.options)
    if settings.options.get("compiler") == "eager":
        return torch.compile(model, backend="aot_eager_decomp_partition")
    return torch.compile(model)


def train(settings: RunSettings) -> None:
    """Train, report each step, and at last the memory curve of one step more."""
    device = torch.device(settings.device)
    if settings.threads is not None:
        torch.set_num_threads(settings.threads)
    torch.manual_seed(settings.seed)
    shape = GPTShape(settings.layers, settings.width, settings.width // 64, settings.length)
    model = GPT(shape).to(device)
    compiled = compile_variant(model, settings)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = sample_batches(load_text(settings.text), settings)
    for step in range(settings.steps):
        tokens, targets = next(batches)
        start = time.perf_counter()
        loss = compiled(tokens, targets)
        loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        seconds = time.perf_counter() - start
        optimizer.step()
        optimizer.zero_grad()
        report({"step": step, "loss": loss.item(), "seconds": seconds})
    statistics = asdict(fxoffload.statistics())
    rss_bytes = peak_rss_bytes()
    tokens, targets = next(batches)
    curve = record_step(lambda: compiled(tokens, targets), device)
    report({"statistics": statistics, "rss_bytes": rss_bytes, "curve": curve.as_record()})


if __name__ == "__main__":
    run_child(lambda settings: train(RunSettings(**settings)))
