"""One variant of a model, compiled and stepped, and what the graph passes did meanwhile."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor
from torch._dynamo import lookup_backend

from fxoffload import backend, passes, runtime
from fxoffload.passes import PassOptions, partition_choice
from fxoffload.planner.plan import Plan
from fxoffload.planner.simulation import Step, find_lower_bound
from fxoffload.runtime.measurement.recorder import RUNS, SKIPPED_RUNS

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.models import LossOnly, Shape, build_model, make_tokens

Variant = Literal["plain", "fxoffload"]
MEASURED_STEPS = RUNS + SKIPPED_RUNS


@dataclass(slots=True)
class PassRecord:
    """What the graph passes did while a model was compiled.

    plans: of each graph; steps: every one that was planned for, other partitions included.
    """

    plans: list[Plan] = field(default_factory=list[Plan])
    steps: list[Step] = field(default_factory=list[Step])
    seconds: float = 0.0

    @property
    def peak_bytes(self) -> int:
        """The predicted activation peak."""
        return max((plan.peak_bytes for plan in self.plans), default=0)

    @property
    def step_seconds(self) -> float:
        """The predicted seconds of a step."""
        return sum(plan.step_seconds for plan in self.plans)

    @property
    def lower_bound_bytes(self) -> int:
        """What no plan that only moves gets below; of models that were partitioned once."""
        return max(map(find_lower_bound, self.steps), default=0)

    def transform_graph(self, graph: Any, options: PassOptions, **kwargs: Any) -> Plan:
        """In place of passes.transform_graph: the same, timed, its plan and steps kept."""
        start = time.perf_counter()
        with patch.object(partition_choice, "build_step", self._build_step):
            plan = _transform_graph(graph, options, **kwargs)
        self.seconds += time.perf_counter() - start
        self.plans.append(plan)
        return plan

    def _build_step(self, *args: Any, **kwargs: Any) -> Step:
        self.steps.append(passes.build_step(*args, **kwargs))
        return self.steps[-1]


_transform_graph = passes.transform_graph


class Trainer:
    """One variant of a model, compiled; `step` is a forward and a backward.

    compile_model: makes the variant of it. hooks: a context in which every forward runs.
    Steps are made until nothing will be compiled any more, see the option `replan`.
    """

    def __init__(
        self,
        model: LossOnly,
        tokens: Tensor,
        compile_model: Callable[[LossOnly], Any],
        *,
        hooks: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.model = model
        self.tokens = tokens
        self.passes = PassRecord()
        self._hooks = hooks
        others = set(runtime.find_recorders())

        def is_measured() -> bool:
            return not runtime.find_recorders().keys() <= others

        start, core_start = time.perf_counter(), time.process_time()
        self.compiled = compile_model(model)
        with patch.object(passes, "transform_graph", self.passes.transform_graph):
            self.step()
            self.first_seconds = time.perf_counter() - start
            self.first_core_seconds = time.process_time() - core_start
            first = len(self.passes.plans)
            for _ in range(MEASURED_STEPS if is_measured() else 0):
                self.step()
            # Each model here is one graph: where it was planned anew, that plan is the one.
            del self.passes.plans[: first if len(self.passes.plans) > first else 0]
        if is_measured():
            raise RuntimeError(f"a graph is still being measured after {MEASURED_STEPS} steps")

    def compute_loss(self) -> Tensor:
        """The forward."""
        with self._hooks():
            return self.compiled(self.tokens)

    def step(self, between: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Loss and seconds of one step; `between` runs between forward and backward."""
        self.model.zero_grad()
        synchronize(self.tokens)
        start = time.perf_counter()
        loss = self.compute_loss()
        between()
        loss.backward()
        synchronize(self.tokens)
        return loss.item(), time.perf_counter() - start


def compile_variant(model: LossOnly, *, variant: Variant, **options: Any) -> Any:
    """The compiled model; this is all that differs between the variants."""
    # A callable of its own: under the same backend Dynamo takes the graph that it compiled for
    # another model of that class, whatever the configuration was then.
    if variant == "fxoffload":
        return torch.compile(model, backend=partial(backend.backend, options=options))
    eager = options.get("compiler") == "eager"
    found = lookup_backend("aot_eager_decomp_partition" if eager else "inductor")
    return torch.compile(model, backend=partial(found))


def make_inputs(name: str, shape: Shape, device: str) -> tuple[LossOnly, Tensor]:
    """The model called `name` and its tokens, the same ones at every call."""
    torch.manual_seed(0)
    model = build_model(name, shape).to(device)
    return model, make_tokens(shape).to(device)


def synchronize(tensor: Tensor) -> None:
    """Wait for the device of `tensor`."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
