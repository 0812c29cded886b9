"""Runs a benchmark from its command line: measures, prints tables, appends the record.

The command line is a frozen dataclass with a field for each flag.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Generic, TypeVar

from rich.console import Console

from benchmarks.fresh_process import ChildFailed, Record
from fxoffload import ConfigError, OffloadError
from fxoffload.sizes import parse_bytes
from fxoffload.tables import format_table

RESULTS = Path(__file__).parent / "results"
Rows = list[list[str]]
Item = TypeVar("Item")
# Shows how far a measurement is.
Show = Callable[[str], object]


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

    output: Path | None = field(
        default=None, metadata={"help": "file to which the JSON line is appended", "type": Path}
    )

    def describe(self, name: str) -> Record:
        """What every record of benchmark `name` has beside what was measured."""
        return {}


Parsed = TypeVar("Parsed", bound=Arguments)


@dataclass(frozen=True, slots=True)
class Table:
    """Rows, the first one as the heading, between lines of text."""

    rows: Rows
    title: str = ""
    caption: str = ""

    def format(self, *, markdown: bool = False) -> str:
        """The table as text for a terminal, or as Markdown."""
        rows = format_markdown(self.rows) if markdown else format_table([*map(tuple, self.rows)])
        return "\n\n".join(part for part in (self.title, rows, self.caption) if part)


@dataclass(frozen=True, slots=True)
class Benchmark(Generic[Parsed]):
    """What a page measures and shows; a call runs it with the arguments of the program.

    name: where the arguments have a `report`, records go to the file of that name in `results`.
    draw: a picture of the last record, where the arguments have a `plot` to draw to. find_misses:
    limits that a record misses, in words; with the flag `check` they make the exit status 1.
    """

    name: str
    doc: str | None
    arguments: type[Parsed]
    measure: Callable[[Parsed, Show], Record]
    tabulate: Callable[[Record], list[Table]]
    draw: Callable[[Record, Path], None] | None = None
    find_misses: Callable[[Record], list[str]] = lambda record: []

    def __call__(self, argv: Sequence[str] | None = None) -> None:
        """Measure, print tables and append the record; or print the tables of all records."""
        parser = build_parser(self.arguments, self.doc)
        arguments = self.arguments(**vars(parser.parse_args(argv)))
        keeps = hasattr(arguments, "report")
        output = arguments.output or (RESULTS / f"{self.name}.jsonl" if keeps else None)
        misses: list[str] = []
        if output is not None and getattr(arguments, "report", False):
            records: list[Record] = list(map(json.loads, output.read_text().splitlines()))
            for record in records:
                tables = [table.format(markdown=True) for table in self.tabulate(record)]
                print(*tables, sep="\n\n", end="\n\n")
        else:
            records = [self._measure(arguments, parser)]
            print(*(table.format() for table in self.tabulate(records[0])), sep="\n\n")
            line = json.dumps(records[0])
            if output is None:
                print(line)
            else:
                with output.open("a") as file:
                    file.write(line + "\n")
            misses = self.find_misses(records[0])
            print("".join(f"{miss}\n" for miss in misses), end="")
        plot: Path | None = getattr(arguments, "plot", None)
        if self.draw is not None and plot is not None:
            self.draw(records[-1], plot)
        if misses and getattr(arguments, "check", False):
            sys.exit(1)

    def _measure(self, arguments: Parsed, parser: argparse.ArgumentParser) -> Record:
        console = Console()
        status = console.status("")

        def show(text: str) -> None:
            status.update(text)
            status.start()

        try:
            return {**arguments.describe(self.name), **self.measure(arguments, show)}
        except OffloadError as error:
            parser.error(str(error))
        except ChildFailed as failure:
            console.print(str(failure), style="red", markup=False, soft_wrap=True)
            sys.exit(1)
        finally:
            status.stop()


def build_parser(kind: type[Any], doc: str | None) -> argparse.ArgumentParser:
    """A flag for each field of the dataclass `kind`, of the type of its default."""
    parser = argparse.ArgumentParser(
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
            keywords |= {"nargs": "+", "type": type(each.default[0])}
        elif isinstance(each.default, int | float):
            keywords["type"] = type(each.default)
        parser.add_argument(f"--{flag}", **{**keywords, **each.metadata})
    return parser


def format_markdown(rows: Rows) -> str:
    """`rows` as a table of Markdown."""
    rule = ["---", *["---:"] * (len(rows[0]) - 1)]
    return "\n".join(f"| {' | '.join(row)} |" for row in (rows[0], rule, *rows[1:]))


def make_rows(items: Iterable[Item], columns: Sequence[tuple[str, Callable[[Item], str]]]) -> Rows:
    """A row for each item below the headings; a column is its heading and a cell's text."""
    headings = [heading for heading, _ in columns]
    return [headings, *([describe(item) for _, describe in columns] for item in items)]


def describe_spread(values: Sequence[float], *, digits: int = 3, range_digits: int = 0) -> str:
    """The median and the range, with as many digits where `range_digits` is 0."""
    middle = statistics.median(values)
    least, most = (f"{end:.{range_digits or digits}f}" for end in (min(values), max(values)))
    return f"{middle:.{digits}f} ({least} to {most})"
