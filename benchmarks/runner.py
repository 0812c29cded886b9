"""Runs a benchmark from its command line: measures, prints tables, keeps the record.

The command line is a frozen dataclass with a field for each flag. With `--report` the records that
were kept are printed, by the same tables.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib.metadata import version
from pathlib import Path
from typing import Any, Generic, NoReturn, TypeVar

import numpy as np
import rich.table
import torch
from rich import box
from rich.console import Console

from benchmarks.fresh_process import ChildFailed, Record
from benchmarks.measure import find_cpu_model
from fxoffload import ConfigError, OffloadError
from fxoffload.directories import check_directory
from fxoffload.sizes import MIB, parse_bytes

RESULTS = Path(__file__).parent / "results"
# The folder of records without `--output`, which git ignores.
OUTPUTS = Path(__file__).parent.parent / "build" / "results"
# Fields that hold for one run or one machine only.
_UNRECORDED = ("output", "report", "check", "plot", "directory")
Item = TypeVar("Item")
# Shows how far a measurement is.
Show = Callable[[str], object]
# A heading, and the cell of an item below it.
Column = tuple[str, Callable[[Item], str]]


def option(default: Any, help: str | None = None, **keywords: Any) -> Any:
    """A field of a dataclass of arguments; `keywords` go to `add_argument` of argparse."""
    return field(default=default, metadata={"help": help, **keywords})


def parse_size(text: str) -> int:
    """Bytes of a size such as "1MiB", as a type of argparse."""
    try:
        return parse_bytes("size", text)
    except ConfigError as error:
        raise argparse.ArgumentTypeError(str(error)) from None


@dataclass(frozen=True, slots=True)
class Arguments:
    """What every benchmark takes."""

    output: Path | None = option(  # noqa: RUF009 - it makes a field
        None,
        "file of the records; default: that of the benchmark in build/results, and with --report "
        "the one in benchmarks/results",
        type=Path,
    )
    report: bool = option(False, "measure nothing: print what the file holds, as Markdown")
    check: bool = option(False, "exit with status 1 where a limit is missed")

    def describe(self, name: str) -> Record:
        """The fields of every record of benchmark `name` beside the measurements."""
        return {
            "benchmark": name,
            **{key: value for key, value in asdict(self).items() if key not in _UNRECORDED},
            "fxoffload": version("fxoffload"),
            "torch": torch.__version__,
            "cpu": find_cpu_model(),
        }


Parsed = TypeVar("Parsed", bound=Arguments)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, the first one as the heading, between lines of text."""

    rows: list[list[str]]
    title: str = ""
    caption: str = ""

    def print(self) -> None:
        """Print it as Markdown, with columns that are aligned for a terminal."""
        grid = rich.table.Table(*self.rows[0], box=box.MARKDOWN)
        for column in grid.columns[1:]:
            column.justify = "right"
        for row in self.rows[1:]:
            grid.add_row(*row)
        # Wider than any table, so that each row stays in one line.
        console = Console(width=1000, markup=False, highlight=False)
        console.print(*filter(None, (self.title, grid, self.caption)), sep="\n")


def make_table(items: Iterable[Item], columns: Sequence[Column[Item]], title: str = "") -> Table:
    """A table with a row for each item."""
    rows = ([describe(item) for _, describe in columns] for item in items)
    return Table([[heading for heading, _ in columns], *rows], title)


@dataclass(frozen=True, slots=True)
class Benchmark(Generic[Parsed]):
    """A benchmark; a call runs it with the arguments of the program.

    name: of the file of its records. measure: makes a record. tabulate: makes the tables of a
    record. draw: draws the last record, if the arguments have a path `plot`. find_misses: the
    limits that a record misses, in words; with the flag `check` they make the exit status 1.
    """

    name: str
    doc: str | None
    arguments: type[Parsed]
    measure: Callable[[Parsed, Show], Record]
    tabulate: Callable[[Record], Sequence[Table]]
    draw: Callable[[Record, Path], None] | None = None
    find_misses: Callable[[Record], list[str]] = lambda record: []

    def __call__(self, argv: Sequence[str] | None = None) -> None:
        """Measure and keep the record, or read what was kept; print tables and missed limits."""
        parser = build_parser(self.arguments, self.doc, self.name)
        arguments = self.arguments(**vars(parser.parse_args(argv)))
        folder = RESULTS if arguments.report else OUTPUTS
        output = arguments.output or folder / f"{self.name}.jsonl"
        plot: Path | None = getattr(arguments, "plot", None)
        if arguments.report and not output.is_file():
            parser.error(f"--report: there is no file {output}; measure first, or name --output")
        if plot is not None and not plot.parent.is_dir():
            parser.error(f"--plot {plot}: there is no folder {plot.parent}; name another file")
        if arguments.report:
            records: list[Record] = list(map(json.loads, output.read_text().splitlines()))
        else:
            # What cannot be written is named before the measurement.
            if not _make_room(output):
                parser.error(f"--output {output} cannot be written; name another file")
            records = [self._measure(arguments, parser)]
            with output.open("a") as file:
                file.write(json.dumps(records[0]) + "\n")
        misses: list[str] = []
        for record in records:
            for table in self.tabulate(record):
                table.print()
            found = self.find_misses(record)
            print("".join(f"{miss}\n" for miss in found), end="")
            misses += found
        if self.draw is not None and plot is not None:
            self.draw(records[-1], plot)
        if misses and arguments.check:
            sys.exit(1)

    def _measure(self, arguments: Parsed, parser: argparse.ArgumentParser) -> Record:
        console = Console()
        status = console.status("")

        def show(text: str) -> None:
            if console.is_terminal:
                status.update(text)
                status.start()
            else:
                print(text, file=sys.stderr, flush=True)

        place = getattr(arguments, "directory", None)
        try:
            if place is not None:
                check_directory(Path(place))
            return {**arguments.describe(self.name), **self.measure(arguments, show)}
        except OffloadError as error:
            parser.error(str(error))
        except ChildFailed as failure:
            console.print(str(failure), style="red", markup=False, soft_wrap=True)
            sys.exit(1)
        finally:
            status.stop()


def _make_room(output: Path) -> bool:
    """Make the folder of `output`; whether this can be a file that is written."""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return not output.is_dir() and os.access(output if output.exists() else output.parent, os.W_OK)


class _Parser(argparse.ArgumentParser):
    """Tells what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with status 2."""
        self.exit(2, f"{self.prog}: {' '.join(message.split())} (see --help)\n")


def build_parser(kind: type[Any], doc: str | None, name: str) -> argparse.ArgumentParser:
    """A flag for each field of the dataclass `kind`, of the type of its default."""
    parser = _Parser(
        prog=f"fxoffload bench {name}",
        description=(doc or "").splitlines()[0],
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    for each in fields(kind):
        flag = each.name.replace("_", "-")
        keywords: dict[str, Any] = {"default": each.default, "dest": each.name}
        if isinstance(each.default, bool):
            keywords["action"] = "store_false" if each.default else "store_true"
            flag = f"no-{flag}" if each.default else flag
        elif isinstance(each.default, tuple):
            keywords |= {"nargs": "+", "type": type(each.default[0]) if each.default else str}
        elif isinstance(each.default, int | float):
            keywords["type"] = type(each.default)
        parser.add_argument(f"--{flag}", **{**keywords, **each.metadata})
    return parser


def format_number(value: float | None, digits: int = 3) -> str:
    """With so many digits behind the point; "" for None."""
    return "" if value is None else f"{value:.{digits}f}"


def format_mib(nbytes: float | None) -> str:
    """In MiB."""
    return format_number(None if nbytes is None else nbytes / MIB, digits=1)


def format_ratio(value: float, other: float | None) -> str:
    """`value` over `other`; "" where there is no other."""
    return format_number(value / other if other else None)


def describe_spread(values: Sequence[float], digits: int = 3, *, quartiles: bool = False) -> str:
    """The median and the range, or the outer quartiles; "" where there are no values."""
    if not values:
        return ""
    low, middle, high = find_quartiles(values)
    ends = (low, high) if quartiles else (min(values), max(values))
    return f"{middle:.{digits}f} ({' to '.join(f'{end:.{digits}f}' for end in ends)})"


def find_quartiles(values: Sequence[float]) -> tuple[float, float, float]:
    """The quartiles; with one value, that."""
    low, middle, high = np.quantile(values, (0.25, 0.5, 0.75)).tolist()
    return low, middle, high
