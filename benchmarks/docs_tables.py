"""Writes the tables of the pages that show kept records, from the records.

    python -m benchmarks.docs_tables

A table is written where a comment stands in front of it, such as `<!-- record: depth 1 2 -->`: the
second table of the first record in benchmarks/results/depth.jsonl; without the 2 the first table.
`limits 1+2` has the rows of two records, and `rok 1 2 by programs` the second table that another
benchmark makes of a record. Titles and the text around are written by hand.
"""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.runner import RESULTS, Benchmark

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "planner.md"
# The comment, the rows below it, and an empty line.
MARKED = re.compile(
    r"^(?P<mark><!-- record: (?P<name>\w+) (?P<records>\d+(?:\+\d+)*)(?: (?P<table>\d+))?"
    r"(?: by (?P<by>\w+))? -->\n)\n?(?:\|.*\n)*(?P<end>\n|\Z)",
    re.MULTILINE,
)


def fill_page(text: str) -> str:
    """`text` with each marked table as its record has it."""
    return MARKED.sub(_fill, text)


def _fill(found: re.Match[str]) -> str:
    records = (RESULTS / f"{found['name']}.jsonl").read_text().splitlines()
    module = importlib.import_module(f"benchmarks.{found['by'] or found['name']}")
    benchmark: Benchmark[Any] = module.main
    rows: list[list[str]] = []
    for number in found["records"].split("+"):
        tables = benchmark.tabulate(json.loads(records[int(number) - 1]))
        heading, *others = tables[int(found["table"] or 1) - 1].rows
        rows += others if rows else [heading, *others]
    return f"{found['mark']}\n{write_table(rows)}{found['end']}"


def write_table(table: Sequence[Sequence[str]]) -> str:
    """Rows below a heading as Markdown; columns of numbers are aligned on the right."""
    heading, *rows = table
    numbers = (_are_numbers(list(filter(None, cells))) for cells in zip(*rows, strict=True))
    rule = ["---:" if each else "---" for each in numbers]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heading, rule, *rows))


def _are_numbers(cells: Sequence[str]) -> bool:
    """Whether most of them are."""
    return 2 * sum(re.match(r"[-+]?\d", cell) is not None for cell in cells) > len(cells)


def main() -> None:
    """Rewrite the pages, and tell which ones have changed."""
    for page in PAGES:
        text = page.read_text()
        filled = fill_page(text)
        page.write_text(filled)
        print(f"{page.relative_to(ROOT)}: {'rewritten' if filled != text else 'as the records'}")


if __name__ == "__main__":
    main()
