"""What benchmarks of a transformer have in common: sizes as arguments, records, tables."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from fxoffload import ConfigError, OffloadConfig
from fxoffload.directories import find_filesystem
from fxoffload.inspection.tables import format_table

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import ChildFailed
from benchmarks.measure import find_cpu_model
from benchmarks.models import BUILDERS

HEADS = 8
RESULTS = Path(__file__).parent / "results"
_UNRECORDED = ("output", "check", "directory", "report", "plot")  # Files of one machine.

Rows = Sequence[Sequence[str]]
Record = Mapping[str, Any]


def make_parser(doc: str | None) -> argparse.ArgumentParser:
    """A parser whose description is the first line of `doc`, and that shows defaults."""
    return argparse.ArgumentParser(
        description=(doc or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )


def add_model_arguments(
    parser: argparse.ArgumentParser,
    *,
    layers: int | None = 12,
    hidden: int = 512,
    batch: int = 8,
    length: int = 512,
) -> None:
    """Which model and how large, where it runs, and what fxoffload needs beside a budget."""
    add = parser.add_argument
    add("--model", choices=list(BUILDERS), default="gpt")
    if layers is not None:
        add("--layers", type=int, default=layers, help="of a T5: half of them encode, half decode")
    add("--hidden", type=int, default=hidden)
    add("--batch", type=int, default=batch)
    add("--length", type=int, default=length)
    add("--threads", type=int, default=2)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--directory", help="where fxoffload spills to; default: see OffloadConfig")
    add("--min-bytes", default="1MiB", help="smaller values stay in memory")
    add("--compiler", choices=["inductor", "eager"], default="inductor")


def add_record_arguments(parser: argparse.ArgumentParser, name: str) -> None:
    """Where records go, and whether they are printed instead of made."""
    add = parser.add_argument
    path = RESULTS / f"{name}.jsonl"
    add("--output", type=Path, default=path, help="file to which the JSON line is appended")
    add("--report", action="store_true", help="print what that file holds, as Markdown")


def check_model_arguments(
    parser: argparse.ArgumentParser, arguments: argparse.Namespace, layers: Sequence[int]
) -> None:
    """End with a message where no such model can be built."""
    if arguments.hidden % HEADS:
        parser.error(f"--hidden {arguments.hidden} is not a multiple of the {HEADS} heads")
    odd = [count for count in layers if count % 2]
    if arguments.model == "t5" and odd:
        parser.error(f"--layers {odd[0]} is odd; a T5 has half of them on each side")


def find_options(arguments: argparse.Namespace) -> dict[str, Any]:
    """The options of fxoffload that the arguments state."""
    names = ("directory", "memory_budget", "min_bytes", "compiler")
    return {name: getattr(arguments, name) for name in names if name in arguments}


def describe_run(name: str, arguments: argparse.Namespace, config: OffloadConfig) -> dict[str, Any]:
    """The arguments of benchmark `name`, and the machine and versions that it ran on."""
    return {
        "benchmark": name,
        **{key: value for key, value in vars(arguments).items() if key not in _UNRECORDED},
        "heads": HEADS,
        "dtype": "float32",
        "dropout": 0.0,
        "fxoffload": version("fxoffload"),
        "torch": torch.__version__,
        "transformers": version("transformers"),
        "cpu": find_cpu_model(),
        "filesystems": [find_filesystem(path) for path in config.directories],
    }


def run_benchmark(
    name: str,
    parser: argparse.ArgumentParser,
    argv: Sequence[str] | None,
    measure: Callable[[argparse.Namespace, Console], dict[str, Any]],
    tabulate: Callable[[Record], Rows],
    *,
    draw: Callable[[Sequence[Record], Path], None] | None = None,
    conclude: Callable[[Record], str] = lambda record: "",
) -> None:
    """Measure, print a table, append the record; or print the tables of the records there are.

    tabulate: rows of a record, the first one as the heading. draw: a picture of records, where the
    arguments have a `plot` to draw to. conclude: a line below the table.
    """
    arguments = parser.parse_args(argv)
    console = Console()
    if arguments.report:
        records = [json.loads(line) for line in arguments.output.read_text().splitlines()]
        for record in records:
            parts = (describe_sizes(record), format_markdown(tabulate(record)), conclude(record))
            print("\n\n".join(part for part in parts if part) + "\n")
    else:
        layers = arguments.layers
        check_model_arguments(
            parser, arguments, layers if isinstance(layers, list) else [int(layers)]
        )
        try:
            config = OffloadConfig(**find_options(arguments))
            measured = measure(arguments, console)
        except ConfigError as error:
            parser.error(str(error))
        except ChildFailed as failure:
            console.print(str(failure), style="red", markup=False, soft_wrap=True)
            sys.exit(1)
        record = {**describe_run(name, arguments, config), **measured}
        records = [record]
        table = format_table([tuple(row) for row in tabulate(record)])
        parts = (describe_sizes(record), table, conclude(record))
        print("\n\n".join(part for part in parts if part))
        with arguments.output.open("a") as file:
            file.write(json.dumps(record) + "\n")
    if draw is not None and arguments.plot is not None:
        draw(records, arguments.plot)


def describe_sizes(record: Record) -> str:
    """Model, sizes and machine in a line."""
    return (
        f"{record['model']}: {record['layers']} layers x {record['hidden']}, batch "
        f"{record['batch']} x {record['length']}, {record['threads']} threads of {record['cpu']}, "
        f"torch {record['torch']}, {record['compiler']}"
    )


def format_markdown(rows: Rows) -> str:
    """`rows` as a table of Markdown."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))
