"""Ways to train one model in little memory, compared: each compiled, then stepped in turn.

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

import argparse
import statistics
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from rich.console import Console

from fxoffload.planner.plan import Cut

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.command_line import HEADS, find_options
from benchmarks.fresh_process import KEEP_FREED_MEMORY, run_fresh
from benchmarks.models import Shape

Kind = Literal["plain", "fxoffload", "recompute", "checkpoint", "hooks"]


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


@dataclass(frozen=True, slots=True)
class VariantSettings:
    """What the process is told; bytes_per_second limits the drive in each direction."""

    model: str
    shape: dict[str, int]
    variants: list[dict[str, Any]]
    rounds: int
    threads: int
    device: str
    options: dict[str, Any]
    bytes_per_second: float | None = None


def run_measured(
    arguments: argparse.Namespace, variants: Sequence[Variant], console: Console
) -> list[Measured]:
    """Measure `variants` as run_variants does, planned by what nodes took in a process before it.

    See the option `replan`. What was measured at another time stays aside: machines change speed.
    """
    with tempfile.TemporaryDirectory() as home:
        first = [PLAIN, Variant("fxoffload")]
        run_variants(arguments, first, console, rounds=0, home=home)
        return run_variants(arguments, variants, console, rounds=arguments.rounds, home=home)


def run_variants(
    arguments: argparse.Namespace,
    variants: Sequence[Variant],
    console: Console,
    *,
    rounds: int,
    layers: int | None = None,
    bytes_per_second: float | None = None,
    home: str | None = None,
) -> list[Measured]:
    """Measure `variants`, the first of which is plain, from an empty compile cache.

    layers: in place of those of the arguments. home: where fxoffload keeps what it has measured.
    """
    shape = Shape(
        layers or arguments.layers, arguments.hidden, HEADS, arguments.batch, arguments.length
    )
    settings = VariantSettings(
        model=arguments.model,
        shape=asdict(shape),
        variants=[asdict(variant) for variant in variants],
        rounds=rounds,
        threads=arguments.threads,
        device=arguments.device,
        options=find_options(arguments),
        bytes_per_second=bytes_per_second,
    )
    found: dict[str, Measured] = {}
    script = Path(__file__).with_name("variant_run.py")
    with tempfile.TemporaryDirectory() as cache, console.status("") as status:
        variables = {"TORCHINDUCTOR_CACHE_DIR": cache, **KEEP_FREED_MEMORY}
        if home is not None:
            variables["XDG_CACHE_HOME"] = home
        for record in run_fresh(script, asdict(settings), environment=variables):
            if "round" in record:
                status.update(f"round {record['round'] + 1} of {rounds}")
                for label, seconds in record["seconds"].items():
                    found[label].seconds.append(seconds)
            else:
                found[record["label"]] = Measured(**record)
                status.update(f"compiled {len(found)} of {len(variants)}: {record['label']}")
    return list(found.values())


def parse_measured(record: dict[str, Any]) -> list[Measured]:
    """What a record of a benchmark holds under "variants"."""
    return [Measured(**item) for item in record["variants"]]
