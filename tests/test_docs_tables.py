"""Tables of the pages are those of the kept records."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent.parent))

from benchmarks.docs_tables import MARKED, PAGES, fill_page, write_table


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_pages_have_what_the_records_have(page: Path) -> None:
    text = page.read_text()
    assert fill_page(text) == text, "run python -m benchmarks.docs_tables"


def test_a_wrong_figure_is_replaced() -> None:
    (page,) = [page for page in PAGES if page.name == "planner.md"]
    text = page.read_text()
    found = list(MARKED.finditer(text))
    assert len(found) > 20
    table = found[-2][0]
    wrong = re.sub(r"\d\.\d{3}", "7.777", table)
    assert wrong != table
    assert fill_page(f"before\n\n{wrong}after\n") == f"before\n\n{table}after\n"


def test_a_new_mark_gets_its_table() -> None:
    mark = "<!-- record: depth 1 2 -->"
    filled = fill_page(f"text\n\n{mark}\n\nmore text\n")
    assert filled.startswith(f"text\n\n{mark}\n\n| variant | peak MiB |")
    assert filled.endswith(" |\n\nmore text\n")
    assert fill_page(filled) == filled


def test_records_in_one_table() -> None:
    both, first, second = (
        fill_page(f"<!-- record: compile_time {numbers} -->\n\n").splitlines()[2:]
        for numbers in ("1+2", "1", "2")
    )
    assert both == first + second[2:]


def test_columns_of_numbers_are_on_the_right() -> None:
    rows = [["a", "b", "c"], ["x", "1.0 (0.9 to 1.1)", "-3"], ["2", "", "+0.1%"]]
    assert write_table(rows).splitlines()[1] == "| --- | ---: | ---: |"
