"""The page of a report: complete, self-contained, and readable in a browser, wide or narrow."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
from browser import probe_page
from reports import make_data, make_deep_data

from fxoffload.inspection.report_page import write_page
from fxoffload.inspection.report_records import Figures, ReportData

LARGEST_PAGE_BYTES = 5 * 10**6


def make_full_data() -> ReportData:
    """With everything that a page can show: measured points, waits, values that move and stay."""
    data = make_data()
    memory = tuple(replace(point, measured_bytes=point.nbytes) for point in data.memory)
    return replace(
        data, source="run", steps=20, memory=memory, measured=Figures(330, 90.0, 80.0, 10.0)
    )


def test_sections_stand_in_the_order_of_a_readers_questions() -> None:
    page = write_page(make_full_data())
    titles = re.findall(r"<h2>([^<]+)</h2>", page)
    assert titles == [
        "Memory of the step", "Top holders at the peak", "Compute and transfers", "Values",
        "Predicted and measured", "Drive wear", "What to change",
    ]  # fmt: skip
    assert re.search(r"<h1>Peak 0.00 of 0.00 MiB .* slower, .*</h1>", page)


def test_a_page_needs_nothing_else() -> None:
    page = write_page(make_full_data())
    assert not re.search(r"https?://|src=|@import|url\(", page)
    assert re.findall(r'href="([^"]*)"', page) == ["data:,"]
    assert "$" not in re.sub(r"\$\{\w+(\.\w+)?\}", "", page), "all of the template is filled in"


def test_a_row_for_each_value() -> None:
    data = make_deep_data(layers=6)
    page = write_page(data)
    table = page[page.index("<table id=values") :]
    table = table[: table.index("</table>")]
    assert table.count("<tr>") == 1 + len(data.values) == 61
    assert table.count("<td>value_with_a_name_3</td>") == 6


def test_what_a_program_calls_its_things_is_escaped() -> None:
    data = make_full_data()
    rows = tuple(
        replace(row, name="<script>alert(1)</script>", source='"><b>') for row in data.values
    )
    page = write_page(replace(data, values=rows, hints=("<i> `a<b`",)))
    assert page.count("<script>") == 1
    assert "<b>" not in page
    assert "<i>" not in page
    assert "<li>&lt;i&gt; <code>a&lt;b</code></li>" in page


def test_a_program_of_48_layers_makes_a_small_page() -> None:
    data = make_deep_data(layers=48)
    assert len(data.values) == 480
    assert len(write_page(data).encode()) < LARGEST_PAGE_BYTES


@pytest.mark.parametrize("width", [1280, 390])
def test_nothing_overflows_overlaps_or_fails(width: int, tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(write_page(make_full_data()))
    found = probe_page(page, tmp_path, width=width)
    assert found["errors"] == []
    assert found["console"] == []
    assert width - 20 <= found["frameWidth"] <= width, "but for a scroll bar"
    assert found["pageWidth"] <= found["frameWidth"]
    assert found["overlaps"] == []
    assert found["cells"] == []


def test_values_are_sorted_and_filtered(tmp_path: Path) -> None:
    data = make_full_data()
    page = tmp_path / "report.html"
    page.write_text(write_page(data))
    found = probe_page(page, tmp_path, width=1280)
    times = [None if text == "" else float(text) for text in found["up"]]
    kept = sum(row.decision == "keep" for row in data.values)
    assert 0 < kept < len(data.values)
    assert times[:kept] == [None] * kept
    assert times[kept:] == sorted(times[kept:])
    assert found["down"] == found["up"][::-1]
    assert found["none"] == 0
    assert found["decisions"] == ["keep"] * kept
    assert found["shown"] == f"{kept} of {len(data.values)} values"


def test_a_dark_browser_has_a_dark_page(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    page.write_text(write_page(make_full_data()))

    def find_brightness(colour: str) -> float:
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 3

    light = probe_page(page, tmp_path, width=1280)
    dark = probe_page(page, tmp_path, width=1280, dark=True)
    assert find_brightness(light["background"]) > 200 > 60 > find_brightness(light["ink"])
    assert find_brightness(dark["background"]) < 60 < 200 < find_brightness(dark["ink"])


def test_a_deep_program_on_a_phone(tmp_path: Path) -> None:
    """All of its rows, bars and handlers work."""
    page = tmp_path / "report.html"
    page.write_text(write_page(make_deep_data(layers=48)))
    found = probe_page(page, tmp_path, width=390)
    assert found["pageWidth"] <= found["frameWidth"]
    assert found["overlaps"] == []
    assert found["shown"] == "0 of 480 values"
