"""The text of a report has the verdict, its tables and its hints."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest
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
    titles = [data.verdict, "top holders", "\ncalls\n", "\ntiers", "largest values"]
    titles.append("predicted against")
    places = [text.index(title) for title in [*titles, "drive: ", "what to change\n- "]]
    assert places == sorted(places)
    assert re.search(r"\n0\.00 +3 +a +layers\.gate +mm +5 x 5 +", text)
    assert "path/model.py:7" in text
    assert "/a/long" not in text


def read_row(text: str, title: str) -> dict[str, str]:
    """The first row of the table below `title`, by heading; cells have two spaces between them."""
    lines = text[text.index(f"\n{title}") :].splitlines()[2:]
    heading, row = (re.split(" {2,}", lines[index]) for index in (0, 2))
    return dict(zip(heading, row, strict=True))


def test_calls_and_the_peak_have_their_times() -> None:
    data = make_data()
    text = write_text(data)
    assert f"top holders at the peak, {1e3 * data.peak_seconds:.1f} ms after the step" in text
    row, call = read_row(text, "calls"), data.calls[0]
    assert call.backward_start is not None
    assert float(row["forward at ms"]) == pytest.approx(1e3 * call.forward_start)
    assert float(row["backward at ms"]) == pytest.approx(1e3 * call.backward_start, abs=0.01)


def test_tiers_have_their_idle_times() -> None:
    data = make_data()
    idle = [end - start for start, end in data.find_idle("nvme")]
    row = read_row(write_text(data), "tiers")
    assert (row["tier"], row["written MiB"]) == ("nvme", "0.00")
    assert 0 < float(row["idle ms"]) == pytest.approx(1e3 * sum(idle), abs=0.01)
    assert row["of step"] == f"{sum(idle) / data.predicted.step_seconds:.0%}"
    assert row["longest idle ms"].startswith(f"{1e3 * max(idle):.2f} from ")
    unmoved = make_data(memory_budget=10_000)
    assert "tiers" not in write_text(unmoved)


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
