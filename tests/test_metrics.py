"""Means of the steps between two looks."""

from __future__ import annotations

from dataclasses import replace

import pytest

from fxoffload import runtime
from fxoffload.integrations import metrics as metrics_module
from fxoffload.integrations.metrics import StepMetrics
from fxoffload.runtime import StoreStatistics
from fxoffload.schedule import Schedule

SCHEDULE = Schedule((), (), None, 700, 900, 1.0, 0.0, 0, 0)


@pytest.fixture
def done(monkeypatch: pytest.MonkeyPatch) -> StoreStatistics:
    """What the stores have done, to be changed by the test."""
    record = StoreStatistics(offloaded_bytes=1000, exposed_seconds=1.0)
    monkeypatch.setattr(runtime, "statistics", lambda: replace(record))
    monkeypatch.setattr(metrics_module, "schedules", lambda: ())
    return record


def test_means_of_the_steps_in_between(done: StoreStatistics) -> None:
    metrics = StepMetrics()
    done.offloaded_bytes, done.exposed_seconds = 1600, 1.5
    assert metrics.take(2) == {"fxoffload_moved_bytes": 300, "fxoffload_exposed_seconds": 0.25}
    done.offloaded_bytes = 1700
    assert metrics.take(1) == {"fxoffload_moved_bytes": 100, "fxoffload_exposed_seconds": 0}


def test_a_reset_in_between(done: StoreStatistics) -> None:
    metrics = StepMetrics()
    done.offloaded_bytes, done.exposed_seconds = 400, 0.5
    assert metrics.take(1) == {"fxoffload_moved_bytes": 400, "fxoffload_exposed_seconds": 0.5}


def test_the_peak_of_the_latest_schedule(
    done: StoreStatistics, monkeypatch: pytest.MonkeyPatch
) -> None:
    older = replace(SCHEDULE, peak_bytes=1)
    monkeypatch.setattr(metrics_module, "schedules", lambda: (SCHEDULE, older))
    assert StepMetrics().take(1)["fxoffload_predicted_peak_bytes"] == 700
