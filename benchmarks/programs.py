"""Measures steps that are made of many graphs: is one budget kept for all of them, at what price?

    python -m benchmarks.programs --program blocks --budgets none 0.7 0.35

blocks: each layer is compiled by itself. breaks: the model is compiled as one, with a graph break
behind every third layer. Plain Inductor and fxoffload at each budget run in one fresh process, in
turn.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import nn

import fxoffload
from benchmarks.fresh_process import KEEP_FREED_MEMORY, Record, run_fresh
from benchmarks.measure import MIB, record_highest_step, record_step
from benchmarks.model_arguments import LAYERS, KeptArguments, show_rows
from benchmarks.models import LossOnly
from benchmarks.runner import Benchmark, Rows, Show, describe_spread, option
from benchmarks.trainer import Trainer, Workload

PROGRAMS = ("blocks", "breaks")
WORDS = {"none": None, "min": "min"}  # Budgets that are no share of a peak.
LEARNING_STEPS = 6  # Then a schedule has been made that knows the price of a byte.


@dataclass(frozen=True, slots=True)
class ProgramArguments(KeptArguments):
    """The command line."""

    layers: int = LAYERS(12)
    program: str = option("blocks", choices=PROGRAMS)
    budgets: Sequence[str] = option(
        ("none", "0.7", "0.5", "0.35", "min"), "shares of plain's peak, none or min"
    )
    rounds: int = option(5)


def compile_program(model: LossOnly, program: str, **compilation: Any) -> Any:
    """`model` as a program of many graphs."""
    layers = find_layers(model)
    if program == "blocks":
        for layer in layers:
            layer.compile(**compilation)
        return model
    for layer in layers[2:-1:3]:
        layer.register_forward_hook(_break_graph)
    return torch.compile(model, **compilation)


def find_layers(model: LossOnly) -> Sequence[nn.Module]:
    """The list of equal layers of a model."""
    lists = [module for module in model.modules() if isinstance(module, nn.ModuleList)]
    return list(max(lists, key=len))


def _break_graph(module: nn.Module, args: Any, result: Any) -> None:
    torch._dynamo.graph_break()


def measure_programs(
    workload: Workload, program: str, budgets: list[str], rounds: int
) -> Iterator[Record]:
    """In a fresh process: a record of each variant, then one of each round."""
    torch.compiler.config.recompile_limit = 16 * (1 + len(budgets)) * workload.shape.layers
    trainers: dict[str, Trainer] = {}
    peak_bytes = 0
    for budget in (None, *budgets):
        label = "plain" if budget is None else f"fxoffload {budget}"
        compilation: dict[str, Any] = {"backend": "inductor"}
        budget_bytes = None
        if budget is not None:
            if budget not in WORDS:
                budget_bytes = int(float(budget) * peak_bytes)
            options = {**workload.options, "memory_budget": WORDS.get(budget, budget_bytes)}
            compilation = {"backend": "fxoffload", "options": options}
        compile_model: Callable[[LossOnly], Any] = partial(
            compile_program, program=program, **compilation
        )
        first: list[int] = []
        model, tokens = workload.make_inputs()
        trainer = Trainer(model, tokens, compile_model)
        for _ in range(LEARNING_STEPS):
            curve = record_step(trainer.compute_loss, tokens.device)
            first.append(curve.peak_bytes)
            model.zero_grad()
        fxoffload.reset_statistics()
        trainer.step()
        done = fxoffload.statistics()
        highest = record_highest_step(trainer.compute_loss, model, tokens.device).peak_bytes
        peak_bytes = peak_bytes or highest
        predicted = fxoffload.schedules() if budget is not None else ()
        trainers[label] = trainer
        yield {
            "label": label,
            "budget_bytes": budget_bytes,
            "second_peak_bytes": first[0],
            "peak_bytes": highest,
            "predicted_peak_bytes": predicted[0].peak_bytes if predicted else None,
            "offloaded_bytes": done.offloaded_bytes,
            "exposed_seconds": done.exposed_seconds,
        }
    for number in range(rounds):
        seconds: dict[str, float] = {}
        for label in random.Random(number).sample(list(trainers), len(trainers)):
            trainers[label].step()
            _, seconds[label] = trainers[label].step()
            trainers[label].model.zero_grad()
        yield {"round": number, "seconds": seconds}


def measure(arguments: ProgramArguments, show: Show) -> Record:
    """The variants, then the seconds of their steps, in turn."""
    found: dict[str, Record] = {}
    for record in run_fresh(
        KEEP_FREED_MEMORY,
        measure_programs,
        arguments.make_workload(arguments.layers),
        arguments.program,
        list(arguments.budgets),
        arguments.rounds,
    ):
        if "round" in record:
            show(f"round {record['round'] + 1} of {arguments.rounds}")
            for label, seconds in record["seconds"].items():
                found[label].setdefault("seconds", []).append(seconds)
        else:
            show(record["label"])
            found[record["label"]] = record
    return {"variants": list(found.values())}


def tabulate(record: Record) -> Rows:
    """A row for each variant."""
    rows = [["", "budget MiB", "peak MiB", "predicted", "of plain", "step / plain (range)"]]
    rows[0] += ["moved MiB", "exposed s"]
    plain = record["variants"][0]
    for each in record["variants"]:
        pairs = zip(each["seconds"], plain["seconds"], strict=True)
        rows.append(
            [
                each["label"],
                *("" if size is None else f"{size / MIB:.1f}" for size in _find_sizes(each)),
                f"{each['peak_bytes'] / plain['peak_bytes']:.3f}",
                describe_spread([own / its for own, its in pairs]),
                f"{each['offloaded_bytes'] / MIB:.1f}",
                f"{each['exposed_seconds']:.2f}",
            ]
        )
    return rows


def _find_sizes(variant: Record) -> list[int | None]:
    return [variant[name] for name in ("budget_bytes", "peak_bytes", "predicted_peak_bytes")]


main = Benchmark("programs", __doc__, ProgramArguments, measure, show_rows(tabulate))

if __name__ == "__main__":
    main()
