"""Compiles one variant of a model, steps it, and records what the graph passes did meanwhile."""

from __future__ import annotations

import copy
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any, Literal
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch._dynamo import lookup_backend

import fxoffload
from benchmarks.fresh_process import Record
from benchmarks.microbatches import Microbatches
from fxoffload import backend, passes
from fxoffload.cli.byte_models import LossOnly, Shape, build_model, make_tokens
from fxoffload.cli.training import SETTLING_STEPS
from fxoffload.passes import Transformed, partition_choice
from fxoffload.planner.plan import Plan
from fxoffload.planner.residences import find_lower_bound
from fxoffload.planner.step import Step
from fxoffload.schedule import Schedule
from fxoffload.step_begin import begin_with_forwards

Compilation = Literal["plain", "fxoffload"]
# How a model is compiled: as a whole, by layer, or with a graph break after every third layer.
Program = Literal["whole", "blocks", "breaks"]


@dataclass(frozen=True, slots=True)
class Workload:
    """A model in training; `options` are those of fxoffload. threads: None leaves them to torch.

    base: a model whose parameters and buffers all models of the workload share; None: each has its
    own. update: what a step runs behind its backward.
    """

    model: str
    shape: Shape
    device: str
    options: dict[str, Any]
    threads: int | None = None
    dtype: str = "float32"
    base: LossOnly | None = None
    update: Callable[[], object] | None = None

    def make_inputs(self) -> tuple[LossOnly, Tensor]:
        """The model and its tokens, the same ones at every call."""
        if self.threads is not None:
            torch.set_num_threads(self.threads)
        torch.manual_seed(0)
        if self.base is not None:
            shared = (*self.base.parameters(), *self.base.buffers())
            model = copy.deepcopy(self.base, {id(tensor): tensor for tensor in shared})
        else:
            with torch.device(self.device):  # Large random weights take a CPU half a minute.
                model = build_model(self.model, self.shape).to(getattr(torch, self.dtype))
        return model, make_tokens(self.shape).to(self.device)

    def share_parameters(self) -> Workload:
        """The same with one set of parameters for all models."""
        base, _ = self.make_inputs()
        return replace(self, base=base)

    def add_optimizer(self) -> Workload:
        """The same with one set of parameters for all models, and with an optimizer's update.

        It computes and stores what AdamW does, at a rate of 0, so that all models have the same
        loss. Its states are made here: made behind a step, they would split what the step freed.
        """
        base, _ = self.make_inputs()
        optimizer = torch.optim.AdamW(base.parameters(), lr=0.0, weight_decay=0.0, fused=True)
        for parameter in base.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        return replace(self, base=base, update=optimizer.step)

    def make_trainer(self, compilation: Compilation) -> Trainer:
        """The model, compiled with the options."""
        compile_model = partial(compile_variant, compilation=compilation, **self.options)
        return Trainer(*self.make_inputs(), compile_model)


@dataclass(slots=True)
class PassRecord:
    """The results and the seconds of the graph passes while a model was compiled.

    plans: one for each graph. steps: all that were planned, those of other partitions included.
    """

    plans: list[Plan] = field(default_factory=list[Plan])
    steps: list[Step] = field(default_factory=list[Step])
    seconds: float = 0.0

    @property
    def lower_bound_bytes(self) -> int:
        """The lowest peak of plans that only move values; valid for one partition per graph."""
        return max(map(find_lower_bound, self.steps), default=0)

    @contextmanager
    def recording(self) -> Generator[None]:
        """A context in which the passes are timed, and their plans and steps recorded."""
        transform, build = passes.transform_graph, partition_choice.build_step

        def transform_graph(*args: Any, **kwargs: Any) -> Transformed:
            start = time.perf_counter()
            found = transform(*args, **kwargs)
            self.seconds += time.perf_counter() - start
            self.plans.append(found.plan)
            return found

        def build_step(*args: Any, **kwargs: Any) -> Step:
            self.steps.append(build(*args, **kwargs))
            return self.steps[-1]

        with (
            patch.object(passes, "transform_graph", transform_graph),
            patch.object(partition_choice, "build_step", build_step),
        ):
            yield


class Trainer:
    """One variant of a model, compiled; `step` is a forward, a backward and the update, if any.

    compile_model: makes the variant of it. hooks: a context in which every forward runs.
    microbatches: parts of the batch, in the order of Microbatches if there are several. update:
    what a step runs behind its backward.
    With fxoffload, steps are made until its schedule is settled.
    """

    def __init__(
        self,
        model: LossOnly,
        tokens: Tensor,
        compile_model: Callable[[LossOnly], Any],
        *,
        hooks: Callable[[], AbstractContextManager[Any]] = nullcontext,
        microbatches: int = 1,
        update: Callable[[], object] | None = None,
    ) -> None:
        self.model, self.tokens, self._hooks = model, tokens, hooks
        self._microbatches, self._update = microbatches, update
        self.passes = PassRecord()
        start, core_start = time.perf_counter(), time.process_time()
        self.compiled = compile_model(model)
        with self.passes.recording():
            self.step()
            self.first_seconds = time.perf_counter() - start
            self.first_core_seconds = time.process_time() - core_start
            for _ in range(SETTLING_STEPS if self.passes.plans else 1):
                self.step()
        latest = fxoffload.schedules()[:1] if self.passes.plans else ()
        self._programs = [each.program for each in latest]

    @property
    def schedule(self) -> Schedule | None:
        """The schedule of the steps; None if no value may move."""
        found = (each for each in fxoffload.schedules() if each.program in self._programs)
        return next(found, None)

    def compute_loss(self) -> Tensor | Microbatches:
        """The forward."""
        if self._microbatches > 1:
            return Microbatches(self._forward, self.tokens.chunk(self._microbatches))
        return self._forward(self.tokens)

    def _forward(self, tokens: Tensor) -> Tensor:
        with self._hooks():
            return self.compiled(tokens)

    def step(self, between: Callable[[], None] = lambda: None) -> tuple[float, float]:
        """Loss and seconds of one step; `between` runs between forward and backward."""
        self.model.zero_grad()
        synchronize(self.tokens)
        start = time.perf_counter()
        loss = self.compute_loss()
        between()
        loss.backward()
        if self._update is not None:
            self._update()
        synchronize(self.tokens)
        return loss.item(), time.perf_counter() - start


def compile_variant(
    model: LossOnly, *, compilation: Compilation, program: Program = "whole", **options: Any
) -> Any:
    """The compiled model; this is all that differs between the variants."""
    # Each variant gets its own callable: for an equal backend, Dynamo reuses a graph that it has
    # compiled for another model of the same class under another configuration.
    if compilation == "fxoffload":
        compiler = partial(backend.backend, options=options)
        begin_with_forwards(model)
    else:
        eager = options.get("compiler") == "eager"
        compiler = partial(lookup_backend("aot_eager_decomp_partition" if eager else "inductor"))
    if program == "whole":
        return torch.compile(model, backend=compiler)
    layers = list_layers(model)
    if program == "blocks":
        for layer in layers:
            layer.compile(backend=compiler)
        return model
    for layer in layers[2:-1:3]:
        layer.register_forward_hook(_break_graph)
    return torch.compile(model, backend=compiler)


def list_layers(model: nn.Module) -> list[nn.Module]:
    """The layers of all stacks: what is in lists of modules that are in no other such list."""
    lists = {name: each for name, each in model.named_modules() if isinstance(each, nn.ModuleList)}
    inner = {name for name in lists if any(name.startswith(f"{outer}.") for outer in lists)}
    return [layer for name, each in lists.items() if name not in inner for layer in each]


def _break_graph(*_: Any) -> None:
    torch._dynamo.graph_break()


def pair_steps(plain: Trainer, moved: Trainer, pairs: int) -> Iterator[Record]:
    """Losses and seconds of alternating steps, and the statistics of the moving ones."""
    plain.step()
    moved.step()
    for _ in range(pairs):
        record: Record = {}
        for name, trainer in (("plain", plain), ("fxoffload", moved)):
            fxoffload.reset_statistics()
            record[f"{name}_loss"], record[f"{name}_seconds"] = trainer.step()
        yield {**record, "statistics": asdict(fxoffload.statistics())}


def prove_transfers(trainer: Trainer) -> Record:
    """Statistics of a step that writes and reads every byte, as its backward waits for the writes.

    Raises RuntimeError if a byte was not written or not read.
    """
    fxoffload.reset_statistics()
    trainer.step(between=wait_for_writes)
    done = fxoffload.statistics()
    if done.offloaded_bytes == 0:
        raise RuntimeError("the plan moves nothing: nothing hides at this size; try another budget")
    if not done.offloaded_bytes == done.written_bytes == done.read_bytes:
        raise RuntimeError(f"not every byte was written and read: {done}")
    if done.live_bytes or done.write_errors or done.read_errors:
        raise RuntimeError(f"the store is not clean after the step: {done}")
    return asdict(done)


def wait_for_writes() -> None:
    """Wait until no bytes are in flight."""
    while fxoffload.statistics().inflight_bytes:
        time.sleep(0.001)


def synchronize(tensor: Tensor) -> None:
    """Wait for the device of `tensor`."""
    if tensor.is_cuda:
        torch.cuda.synchronize(tensor.device)
