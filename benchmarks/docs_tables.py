"""Writes the tables of the pages that show kept records, from the records.

    python -m benchmarks.docs_tables

A table is written where a comment stands in front of it, such as `<!-- record: depth 1 2 -->`: the
second table of the first record in benchmarks/results/depth.jsonl (the number of the table is left
out where there is one). `by planner_truth` at its end names another benchmark that makes the table.
Its title and the text around it are written by hand.
"""

from __future__ import annotations

import importlib
import json
import re
from pathlib import Path

from benchmarks.runner import RESULTS, Benchmark, Table

ROOT = Path(__file__).parent.parent
PAGES = ROOT / "README.md", ROOT / "docs" / "benchmarks.md", ROOT / "docs" / "planner.md"
# The comment, the rows below it, and an empty line.
MARKED = re.compile(
    r"^(?P<mark><!-- record: (?P<name>\w+) (?P<record>\d+)(?: (?P<table>\d+))?"
    r"(?: by (?P<by>\w+))? -->\n)\n?(?:\|.*\n)*(?P<end>\n|\Z)",
    re.MULTILINE,
)


def fill_page(text: str) -> str:
    """`text` with each marked table as its record has it."""
    return MARKED.sub(_fill, text)


def _fill(found: re.Match[str]) -> str:
    records = (RESULTS / f"{found['name']}.jsonl").read_text().splitlines()
    module = importlib.import_module(f"benchmarks.{found['by'] or found['name']}")
    benchmark: Benchmark = module.main
    tables = benchmark.tabulate(json.loads(records[int(found["record"]) - 1]))
    table = write_table(tables[int(found["table"] or 1) - 1])
    return f"{found['mark']}\n{table}{found['end']}"


def write_table(table: Table) -> str:
    """Its rows as Markdown; columns of numbers are aligned on the right."""
    heading, *rows = table.rows
    numbers = (
        all(re.match(r"[-+\d]|$", cell) for cell in cells) for cells in zip(*rows, strict=True)
    )
    rule = ["---:" if each else "---" for each in numbers]
    return "".join(f"| {' | '.join(row)} |\n" for row in (heading, rule, *rows))


def main() -> None:
    """Rewrite the pages, and tell which ones have changed."""
    for page in PAGES:
        text = page.read_text()
        filled = fill_page(text)
        page.write_text(filled)
        print(f"{page.relative_to(ROOT)}: {'rewritten' if filled != text else 'as the records'}")


if __name__ == "__main__":
    main()
