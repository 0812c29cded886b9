"""Holds the arguments that the benchmarks of a transformer share, and describes their runs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import Any

import torch

from benchmarks.fresh_process import Record
from benchmarks.runner import Arguments, option
from benchmarks.trainer import Workload
from fxoffload import OffloadConfig
from fxoffload.cli.byte_models import BUILDERS, Shape, check_shape
from fxoffload.cli.train import choose_device
from fxoffload.directories import find_filesystem

HEADS = 8

# Fields that some of them have.
LAYERS: Callable[[int], Any] = partial(option, help="of a T5: half of them encode, half decode")
BUDGET_HELP = '"8GiB", "min", or nothing: what hides behind compute'


@dataclass(frozen=True, slots=True)
class ModelArguments(Arguments):
    """Which model and how large, where it runs, and what fxoffload needs beside a budget."""

    model: str = option("gpt", choices=list(BUILDERS))
    hidden: int = option(512)
    batch: int = option(8)
    length: int = option(512)
    threads: int = option(2)
    device: str = option("cuda" if torch.cuda.is_available() else "cpu")
    directory: str | None = option(None, "where fxoffload spills to; default: see OffloadConfig")
    min_bytes: str = option("1MiB", "smaller values stay in memory")
    compiler: str = option("inductor", choices=["inductor", "eager"])

    def make_workload(self, layers: int) -> Workload:
        """The model in training; raises ConfigError for invalid sizes or options."""
        shape = Shape(layers, self.hidden, HEADS, self.batch, self.length)
        check_shape(self.model, shape)
        names = ("directory", "memory_budget", "min_bytes", "compiler")
        options = {name: getattr(self, name) for name in names if hasattr(self, name)}
        OffloadConfig(**options)
        choose_device(self.device)
        return Workload(self.model, shape, self.device, options, self.threads)

    def describe(self, name: str) -> Record:
        """The fields of every record, and those of every model."""
        directories = OffloadConfig(directory=self.directory).directories
        return {
            **Arguments.describe(self, name),
            "heads": HEADS,
            "dtype": "float32",
            "dropout": 0.0,
            "transformers": version("transformers"),
            "filesystems": [find_filesystem(path) for path in directories],
        }


def describe_sizes(record: Record) -> str:
    """Model, sizes and machine in a line."""
    return (
        f"{record['model']}: {record['layers']} layers x {record['hidden']}, batch "
        f"{record['batch']} x {record['length']}, {record['threads']} threads of {record['cpu']}, "
        f"torch {record['torch']}, {record['compiler']}"
    )
