"""The command that trains a small model on a text of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import typer

from fxoffload.cli.output import BudgetOption, JsonOption, print_json, show_progress
from fxoffload.cli.planned_hardware import find_device
from fxoffload.cli.software_checks import check_compiler, find_compiler
from fxoffload.cli.training import SETTLING_STEPS, Training, TrainingRecord
from fxoffload.config import OffloadConfig
from fxoffload.errors import ConfigError, ReportError
from fxoffload.inspection.report import report
from fxoffload.sizes import format_bytes

HEAD_WIDTH = 64
ModelName = Literal["gpt", "bert", "t5", "llama"]


def train(
    text: Annotated[Path, typer.Argument(help="The file to train on; its bytes are the tokens.")],
    model: Annotated[ModelName, typer.Option(help="An architecture of transformers.")] = "gpt",
    layers: Annotated[int, typer.Option(min=1, help="Of a T5 half of them encode.")] = 4,
    hidden: Annotated[int, typer.Option(min=1, help="Width; a head takes 64 of it.")] = 256,
    length: Annotated[int, typer.Option(min=2, help="Bytes of text in a sequence.")] = 512,
    batch: Annotated[int, typer.Option(min=1, help="Sequences in a step.")] = 8,
    steps: Annotated[
        int, typer.Option(min=2, help=f"Measured steps, behind {SETTLING_STEPS} that settle.")
    ] = 20,
    memory_budget: BudgetOption = None,
    min_bytes: Annotated[str, typer.Option(help="Smaller values stay in memory.")] = "1MiB",
    directory: Annotated[list[Path] | None, typer.Option(help="Spill directories.")] = None,
    device: Annotated[str | None, typer.Option(help="cpu, or cuda; default: a GPU if any.")] = None,
    seed: Annotated[int, typer.Option(help="Of weights and batches.")] = 0,
    plain: Annotated[
        bool, typer.Option("--plain", help="Train without fxoffload, to compare with it.")
    ] = False,
    save: Annotated[
        Path | None, typer.Option("--report", help="Save the report, for `fxoffload report`.")
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Train a small model on a text; print loss, peak, moved bytes and seconds of a step.

    Two runs with the same options, one of them with --plain, see the same batches.
    """
    options: dict[str, Any] = {"memory_budget": memory_budget, "min_bytes": min_bytes}
    if directory:
        options["directory"] = [str(path) for path in directory]
    config = OffloadConfig.from_options(options)
    if plain and save is not None:
        raise ConfigError("--plain makes no report; leave out --plain or --report")
    training = Training(
        model=model,
        layers=layers,
        hidden=hidden,
        heads=max(1, hidden // HEAD_WIDTH),
        length=length,
        batch=batch,
        steps=steps,
        seed=seed,
        device=str(choose_device(device)),
        options=None if plain else options,
    )
    content = read_text(text, length)
    if save is not None:
        save_report(save, "", mode="a")  # What cannot be written is named before the training.
    if plain or config.compiler == "inductor":
        require_compiler()
    found = run_training(training, content)
    made = None if plain else report()
    if save is not None and made is not None:
        save_report(save, made.to_json())
    verdict = "" if made is None else made.verdict
    if as_json:
        print_json(found.describe() | {"verdict": verdict})
    else:
        typer.echo("\n".join(filter(None, (format_training(found), verdict))))


def run_training(training: Training, text: bytes) -> TrainingRecord:
    """Train, with a bar that shows the loss."""
    with show_progress() as progress:
        task = progress.add_task("compile", total=SETTLING_STEPS + training.steps)

        def show(loss: float) -> None:
            progress.update(task, advance=1, description=f"loss {loss:.4f}")

        return training.run(text, show)


def choose_device(name: str | None) -> torch.device:
    """The device called `name`, else the one of this machine; ConfigError if it is not there."""
    if name is None:
        return find_device()
    try:
        device = torch.device(name)
    except RuntimeError:
        raise ConfigError(f"device={name!r} is unknown; name cpu or cuda") from None
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise ConfigError(
            f"device={name!r}: torch finds {torch.cuda.device_count()} GPU(s); name cpu, or see "
            "fxoffload doctor"
        )
    if device.type not in ("cpu", "cuda"):
        raise ConfigError(f"device={name!r} is not supported; name cpu or cuda")
    return device


def require_compiler() -> None:
    """Raise ConfigError without the C++ compiler that Inductor needs, also beside a GPU."""
    found = check_compiler(find_compiler())
    if found.state == "problem":
        raise ConfigError(f"{found.subject}: {found.fact}; {found.remedy}")


def read_text(path: Path, length: int) -> bytes:
    """The bytes of the file; ConfigError where it cannot be read, or is shorter than `length`."""
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); name a text file") from error
    if len(content) < length:
        raise ConfigError(
            f"{path} has {len(content)} bytes, and a sequence takes {length}; name a longer file, "
            "or pass a smaller --length"
        )
    return content


def save_report(path: Path, text: str, mode: Literal["w", "a"] = "w") -> None:
    """Write `text`, or append it; ReportError where that fails."""
    try:
        with path.open(mode, encoding="utf-8") as file:
            file.write(text)
    except OSError as error:
        raise ReportError(f"{path}: {error.strerror}; name another file") from error


def format_training(found: TrainingRecord) -> str:
    """The record as text, a line for each fact."""
    low, middle, high = found.find_spread()
    peak = "not measured" if found.peak_bytes is None else format_bytes(found.peak_bytes)
    rows = [
        ("trained", found.description),
        ("loss", f"{found.losses[0]:.4f} -> {found.losses[-1]:.4f} in {len(found.losses)} steps"),
        ("step", f"{middle:.3f} s (median; {low:.3f} to {high:.3f})"),
        ("activation peak", f"{peak}, gradients included"),
    ]
    if found.moved is not None:
        moved = {name: format_bytes(round(each)) for name, each in found.moved.items()}
        rows += [
            (
                "moved in a step",
                f"{moved['written_bytes']} written, {moved['read_bytes']} read, "
                f"{moved['forwarded_bytes']} returned from memory",
            ),
            ("waits in a step", f"{found.exposed_seconds:.3f} s"),
        ]
    return "\n".join(f"{name:16} {text}" for name, text in rows)
