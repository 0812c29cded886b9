"""The text of a report has the verdict, its tables and its hints."""

from __future__ import annotations

import re
from dataclasses import replace

from reports import make_data, make_deep_data

from fxoffload.inspection.report_records import Figures, Wear
from fxoffload.inspection.report_text import (
    MAX_ROWS,
    describe_wear,
    list_comparisons,
    write_text,
)


def test_text_has_all_parts_in_order() -> None:
    data = make_data()
    text = write_text(data)
    titles = [data.verdict, "top holders", "\ncalls\n", "largest values", "predicted against"]
    places = [text.index(title) for title in [*titles, "drive: ", "what to change\n- "]]
    assert places == sorted(places)
    assert re.search(r"\n0\.00 +3 +a +layers\.gate +mm +5 x 5 +", text)
    assert "path/model.py:7" in text
    assert "/a/long" not in text


def test_long_tables_are_cut_and_say_so() -> None:
    data = make_deep_data(layers=6)
    assert f"... and {60 - MAX_ROWS} more" in write_text(data)


def test_comparisons() -> None:
    data = replace(make_data(), measured=Figures(2**20, 0.5, 0.4, 0.1))
    heading, peak, step, waits, write, _ = list_comparisons(data)
    assert heading == ("", "predicted", "measured")
    assert (peak[2], step[2], waits[2]) == ("1.0 MiB", "500.0 ms", "100.0 ms")
    assert write == ("nvme write", "0.00 GB/s", "-")
    assert [row[2] for row in list_comparisons(make_data())[1:]] == ["-"] * 5


def test_wear() -> None:
    assert describe_wear(replace(make_data(), wear=None)) == ""
    rated = replace(make_data(), wear=Wear(10**9, 0.5, 6 * 10**14, 2.5))
    assert describe_wear(rated) == (
        "drive: 1 GB written in a step of 500.0 ms; 600 TB of rating last 2.50 years"
    )
