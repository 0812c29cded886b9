"""The sentences of a report follow its numbers."""

from __future__ import annotations

from dataclasses import replace

import pytest
from reports import FAST, make_data

from fxoffload.inspection.report_records import Figures, Holder, LinkRow, ReportData, Wear
from fxoffload.inspection.report_words import find_hints, find_uses, write_verdict
from fxoffload.planner.link import Link
from fxoffload.sizes import MIB


def make_known(**fields: object) -> ReportData:
    """598 of 600 MiB; the step takes 10 s, 0.04 s of it exposed, and the drive 3.1 s."""
    base: dict[str, object] = {
        "budget_bytes": 600 * MIB,
        "unmoved_peak_bytes": 1874 * MIB,
        "moved_bytes": 4,
        "predicted": Figures(598 * MIB, 10.0, 9.96, 0.04),
        "links": (
            LinkRow("nvme", "write", 2 * 10**9, 1e9, 2.0),
            LinkRow("nvme", "read", 10**9, 1e9, 1.1),
            LinkRow("host", "write", 0, 1e9, 0.0),
        ),
        "spans": (),
        "holders": (),
        "values": (),
        "wear": None,
    }
    return replace(make_data(), **{**base, **fields})


def test_verdict() -> None:
    assert write_verdict(make_known()) == (
        "peak 598 of 600 MiB (1874 with nothing moved), 0.4 % slower, as the compute waits for "
        "transfers for 40.0 ms of the step; the drive is used at 31 %, as predicted"
    )
    hidden = make_known(measured=Figures(590 * MIB, 10.0, 10.0, 0.0), budget_bytes=None)
    assert write_verdict(hidden) == (
        "peak 590 MiB (1874 with nothing moved), no slower, nothing waits; the drive "
        "is used at 31 %"
    )
    assert "; nothing is moved" in write_verdict(make_known(links=()))


def test_uses_are_shares_of_the_step() -> None:
    assert find_uses(make_known()) == pytest.approx({"nvme": 0.31})
    slow = make_known(links=(LinkRow("host", "write", 1, 1e9, 20.0),))
    assert find_uses(slow) == {"host": 1.0}


def test_a_run_that_was_not_measured() -> None:
    (hint,) = find_hints(make_known(source="run"))
    assert hint.startswith("No step that follows this schedule has been measured yet")
    assert find_hints(make_known()) == ()


def test_a_peak_above_the_budget() -> None:
    over = Figures(700 * MIB, 10.0, 10.0, 0.0)
    (hint,) = find_hints(make_known(source="run", measured=over))
    assert "exceeds the budget by 100 MiB" in hint
    close = Figures(610 * MIB, 10.0, 10.0, 0.0)
    assert find_hints(make_known(source="run", measured=close)) == ()


def test_a_slow_link_is_named_with_what_it_would_need() -> None:
    data = make_data(link=Link(5.0, 5.0, 0.0))
    hints = [hint for hint in find_hints(data) if "of the drive take" in hint]
    assert hints
    assert "Use a faster drive or several" in hints[0]


def test_values_that_wait_are_named_where_links_are_fast_enough() -> None:
    data = make_data()
    (hint,) = [hint for hint in find_hints(data) if "What waits longest" in hint]
    worst = max(data.values, key=lambda value: value.exposed_seconds)
    assert f"longest: {worst.name} of call {worst.call} (" in hint
    assert not any("longest" in hint for hint in find_hints(make_data(link=FAST)))


def test_room_that_a_budget_leaves() -> None:
    half = Figures(300 * MIB, 10.0, 10.0, 0.0)
    (hint,) = find_hints(make_known(predicted=half))
    assert hint == (
        "300 MiB of the budget are left: a larger batch or sequence fits, about 2.00 times as "
        "large."
    )
    # A sampler may have missed the peak.
    assert find_hints(make_known(source="run", measured=half)) == ()
    (hint,) = find_hints(make_known(moved_bytes=0))
    assert hint.startswith("Nothing has to move")


def test_values_that_may_not_move() -> None:
    row = replace(make_data().values[0], decision="keep", reason="smaller than min_bytes")
    held = (Holder(row.name, row.call, "0", "", "", "", 90 * MIB),)
    row = replace(row, exposed_seconds=0.0)
    hints = find_hints(make_known(values=(row,), holders=held))
    assert hints == ("90 MiB of the peak may not move: smaller than min_bytes. Lower `min_bytes`.",)
    little = (replace(held[0], nbytes=9 * MIB),)
    assert find_hints(make_known(values=(row,), holders=little)) == ()


def test_wear() -> None:
    (hint,) = find_hints(make_known(wear=Wear(10**9, 1.0)))
    assert hint.startswith("Each step writes 1 GB to the drive: state its rating")
    (hint,) = find_hints(make_known(wear=Wear(10**9, 1.0, 10**12, 0.5)))
    assert "lasts 0.50 years" in hint
    assert find_hints(make_known(wear=Wear(10**9, 1.0, 10**15, 5.0))) == ()
