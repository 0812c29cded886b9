"""The command that predicts a training step of a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.progress import Progress, TaskID

from fxoffload.cli.model_source import DTYPES, Source, check_forward, load_model
from fxoffload.cli.output import MISSED, BudgetOption, JsonOption, print_json, show_progress
from fxoffload.cli.plan_tables import (
    describe_batches,
    describe_forecast,
    describe_schedule,
    format_budgets,
    format_forecast,
)
from fxoffload.cli.planned_hardware import choose_hardware, find_device, measure_hardware
from fxoffload.config import OffloadConfig
from fxoffload.directories import check_directory
from fxoffload.errors import BudgetError, ConfigError, OffloadError
from fxoffload.hardware import Hardware
from fxoffload.inspection.explain import explain
from fxoffload.inspection.what_if import largest_batch, simulate

SHARES = (1.0, 0.7, 0.5, 0.35)
STATES_NOTE = (
    "parameters, buffers and the activation peak (gradients included) count; the states of an "
    "optimizer do not: subtract them from --memory"
)


@dataclass(frozen=True, slots=True)
class Request:
    """What to plan. hardware: None for this machine. batch: of the planned step."""

    source: Source
    hardware: Hardware | None
    batch: int
    options: dict[str, Any]


def plan(
    model: Annotated[
        str,
        typer.Argument(
            help="module:callable, a model type of transformers (gpt2, bert, llama, t5), a "
            "directory with config.json, or a name of its hub."
        ),
    ],
    batch: Annotated[int, typer.Option(min=1, help="Samples of a step.")] = 1,
    sequence: Annotated[int, typer.Option(min=1, help="Tokens of a sample.")] = 512,
    dtype: Annotated[str, typer.Option(help="Of parameters and activations.")] = "float32",
    budget: BudgetOption = None,
    hardware: Annotated[
        str | None,
        typer.Option(
            help="A100, H100, H200, B200, 'RTX 4090', 'RTX 5090', or a TOML file with the fields "
            "of fxoffload.Hardware; this machine without it."
        ),
    ] = None,
    drive: Annotated[str, typer.Option(help="Gen4 or Gen5; for named hardware.")] = "Gen4",
    drives: Annotated[int, typer.Option(min=1, help="How many of them, striped.")] = 1,
    memory: Annotated[str | None, typer.Option(help="Device memory for --largest.")] = None,
    largest: Annotated[bool, typer.Option(help="Find the largest batch that fits.")] = False,
    what_if: Annotated[bool, typer.Option(help="Try other budgets.")] = False,
    directory: Annotated[
        list[Path] | None, typer.Option(help="Spill directories of this machine.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Predict peak and time of a training step; exit code 1 if it does not fit."""
    options: dict[str, Any] = {"memory_budget": budget}
    options |= {"directory": [str(path) for path in directory]} if directory else {}
    config = OffloadConfig.from_options(options)
    _check_directories(config, hardware)  # Before a model is built.
    named = choose_hardware(hardware, drive, drives, memory) if hardware else None
    device = "meta" if named else str(find_device())
    with show_progress() as progress:
        task = progress.add_task(f"build {model}", total=None)
        source = load_model(model, sequence=sequence, dtype=dtype, device=device)
        check_batch(source, model, changes=largest or batch != 1)
        request = Request(source, named.hardware if named else None, batch, options)
        if named is None and (largest or what_if or memory):
            progress.update(task, description="measure this machine")
            named = measure_hardware(config, DTYPES[dtype], memory)
        data, text = _predict_checked(request, model, progress, task)
        if named is not None:
            data["hardware"] = named.description
            text = f"{named.description}\n{text}"
        if named is not None and what_if:
            rows = try_budgets(request, named.hardware, progress, task)
            data["what_if"] = rows
            text += f"\n\nother budgets\n{format_budgets(rows)}"
        if named is not None and largest:
            batches = find_largest_batch(request, named.hardware, progress, task)
            data["largest_batch"], found = batches
            text += f"\n\nlargest batch\n{found}\n{STATES_NOTE}"
    data |= {"model": source.description, "batch": batch, "sequence": sequence, "dtype": dtype}
    print_json(data) if as_json else typer.echo(f"{source.description}\n{text}")
    if not data.get("fits", True):
        raise typer.Exit(MISSED)


def _check_directories(config: OffloadConfig, hardware: str | None) -> None:
    """Those of this machine; other hardware has none."""
    for path in () if hardware else config.directories:
        check_directory(path)


def _predict_checked(
    request: Request, model: str, progress: Progress, task: TaskID
) -> tuple[dict[str, Any], str]:
    """As predict; a model whose own forward fails is a wrong argument."""
    try:
        return predict(request, progress, task)
    except OffloadError:
        raise
    except Exception:
        check_forward(request.source, model, request.batch)
        raise


def check_batch(source: Source, model: str, *, changes: bool) -> None:
    """Raise ConfigError if another batch is asked for than the only one that `source` has."""
    if source.fixed_batch and changes:
        raise ConfigError(
            f"model={model!r} returned tensors, whose batch is fixed; return (module, "
            "make_inputs) for --batch and --largest"
        )


def predict(request: Request, progress: Progress, task: TaskID) -> tuple[dict[str, Any], str]:
    """The step as data and as text: simulated on named hardware, else explained for this machine.

    Raises BudgetError if no plan fits.
    """
    progress.update(task, description="trace and plan")
    inputs = request.source.make_inputs(request.batch)
    if request.hardware is None:
        explanation = explain(request.source.model, *inputs, options=request.options)
        if explanation.schedule is None:
            return {"graphs": []}, str(explanation)
        described = describe_schedule(explanation.schedule)
        return {**described, "ioengine": explanation.ioengine}, str(explanation)
    forecast = simulate_step(request, inputs, request.hardware, request.options["memory_budget"])
    return describe_forecast(forecast), format_forecast(forecast)


def simulate_step(
    request: Request, inputs: Sequence[Any], hardware: Hardware, budget: int | str | None
) -> Any:
    """The forecast of a step of the requested model under `budget`."""
    return simulate(request.source.model, *inputs, hardware=hardware, memory_budget=budget)


def try_budgets(
    request: Request, hardware: Hardware, progress: Progress, task: TaskID
) -> list[dict[str, Any]]:
    """The step under budgets that are shares of its peak with nothing moved."""
    progress.update(task, description="other budgets", total=len(SHARES) + 1)
    inputs = request.source.make_inputs(request.batch)
    unlimited = simulate_step(request, inputs, hardware, hardware.device_bytes * 2**10)
    unmoved = unlimited.peak_bytes
    rows: list[dict[str, Any]] = []
    for share in SHARES:
        progress.advance(task)
        budget = int(share * unmoved)
        row: dict[str, Any] = {"share": share, "budget_bytes": budget, "error": ""}
        try:
            row |= describe_forecast(simulate_step(request, inputs, hardware, budget))
            row.pop("graphs")
        except BudgetError as error:
            row |= {"error": str(error), "lowest_peak_bytes": error.lowest_peak_bytes}
        rows.append(row)
    return rows


def find_largest_batch(
    request: Request, hardware: Hardware, progress: Progress, task: TaskID
) -> tuple[dict[str, Any], str]:
    """The largest batch that fits the device, as data and as text; raises BudgetError for none."""

    def make_inputs(batch: int) -> Sequence[Any]:
        progress.update(task, description=f"try a batch of {batch}", total=None)
        return request.source.make_inputs(batch)

    found = largest_batch(
        request.source.model,
        make_inputs,
        hardware=hardware,
        memory_budget=None,
    )
    return describe_batches(found), str(found)
