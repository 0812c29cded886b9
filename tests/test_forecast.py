"""Forecasts: sums, fractions and words of plans that are written by hand."""

from __future__ import annotations

from typing import Any

import pytest
from steps import make_value
from toys import make_hardware

from fxoffload.inspection.forecast import (
    BatchForecast,
    Forecast,
    LargestBatch,
    find_written_bytes,
)
from fxoffload.planner.plan import Keep, Offload, Plan, Tier
from fxoffload.sizes import MIB

HARDWARE = make_hardware(flops=1.0, memory=1.0, transfers=1.0, memory_bytes="10MiB")


def make_plan(*tiers: Tier | None, peak_mib: int = 4, **fields: Any) -> Plan:
    """Values of 1, 2, 4, ... MiB that go to those tiers; None stays."""
    values = tuple(make_value(f"v{i}", nbytes=2**i * MIB) for i in range(len(tiers)))
    decisions = tuple(Keep("small") if tier is None else Offload(tier) for tier in tiers)
    return Plan(values, decisions, peak_mib * MIB, unmoved_peak_bytes=8 * MIB, **fields)


def make_forecast(*plans: Plan, resident_bytes: int = 0) -> Forecast:
    return Forecast(plans, resident_bytes, HARDWARE)


def test_what_goes_to_host_memory_is_not_written_to_drives() -> None:
    plan = make_plan("nvme", "host", None, "nvme")
    assert find_written_bytes(plan) == (1 + 8) * MIB
    assert make_forecast(plan, plan).written_bytes == 2 * (1 + 8) * MIB


def test_seconds_of_graphs_add_up_and_peaks_do_not() -> None:
    first = make_plan(step_seconds=2.0, exposed_seconds=0.5)
    found = make_forecast(first, make_plan(peak_mib=7, step_seconds=1.0, exposed_seconds=0.25))
    assert (found.step_seconds, found.exposed_seconds, found.peak_bytes) == (3.0, 0.75, 7 * MIB)
    nothing = make_forecast()
    assert (nothing.step_seconds, nothing.peak_bytes, nothing.keeps_all) == (0, 0, True)


@pytest.mark.parametrize(("resident_bytes", "fits"), [(6 * MIB, True), (6 * MIB + 1, False)])
def test_parameters_and_peak_must_fit_together(resident_bytes: int, fits: bool) -> None:
    found = make_forecast(make_plan(), resident_bytes=resident_bytes)
    assert found.fits is fits
    said = "fits" if fits else "does not fit"
    assert str(found).splitlines()[-1] == f"{said} into 10.0 MiB of device memory"


@pytest.mark.parametrize(
    ("plan", "keeps_all"),
    [
        (make_plan(None), True),
        (make_plan("host"), False),
        (make_plan(None, cut=0.0), False),  # Everything is recomputed.
    ],
)
def test_keeps_all_is_neither_moved_nor_recomputed(plan: Plan, keeps_all: bool) -> None:
    assert make_forecast(make_plan(None), plan).keeps_all is keeps_all


def test_words_of_a_forecast() -> None:
    plan = make_plan("nvme", step_seconds=1.5, exposed_seconds=0.25)
    lines = str(make_forecast(plan, make_plan(peak_mib=6), resident_bytes=3 * MIB)).splitlines()
    assert [line.split() for line in lines[2:4]] == [
        ["0", "1.5", "0.25", "4.0", "8.0", "1.0"],
        ["1", "0", "0", "6.0", "8.0", "0.0"],
    ]
    assert lines[4] == (
        "step 1.5 s, 0.25 s of it exposed; peak 6.0 MiB beside 3.0 MiB of parameters and buffers; "
        "1.0 MiB written"
    )


def make_batch(batch: int, microbatches: int = 1, stages: int = 1) -> BatchForecast:
    """A step takes two seconds."""
    return BatchForecast(batch, microbatches, stages, make_forecast(make_plan(step_seconds=2.0)))


def test_a_pipeline_waits_at_both_ends() -> None:
    case = make_batch(8, microbatches=6, stages=3)
    assert case.bubble_fraction == 2 / 8
    assert case.samples_per_second == 8 / 2.0 * (1 - 2 / 8)
    assert make_batch(8).bubble_fraction == 0.0


def test_words_of_the_largest_batch() -> None:
    found = LargestBatch(5 * MIB, make_batch(4), make_batch(10), make_batch(10))
    assert found.throughput_ratio == 2.5
    lines = str(found).splitlines()
    assert lines[2].split() == ["nothing", "moved", "4", "1", "2", "4.0", "0.0", "0.000", "2"]
    assert lines[3].split()[:2] == ["moved", "10"]
    assert lines[-1] == "activation peak of 5.0 MiB; throughput changes by a factor of 2.500"


def test_where_nothing_fits_unmoved_there_is_no_ratio() -> None:
    found = LargestBatch(5 * MIB, None, make_batch(1), make_batch(1))
    assert found.throughput_ratio is None
    assert str(found).splitlines()[2].endswith("none fits")
    assert str(found).endswith("activation peak of 5.0 MiB")
