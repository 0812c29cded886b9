"""Projected life of a drive: known cases, and invalid ratings."""

from __future__ import annotations

import math

import pytest

import fxoffload
from fxoffload.endurance import EnduranceProjection, project_endurance
from fxoffload.errors import ConfigError


def test_a_known_case() -> None:
    # 1 GB a second: 600 TB last 600_000 seconds.
    projection = project_endurance(60 * 10**9, 60.0, "600TBW")
    assert projection == EnduranceProjection(60 * 10**9, 60.0, 600 * 10**12)
    assert projection.days == pytest.approx(600_000 / 86400)
    assert projection.years == pytest.approx(600_000 / 86400 / 365.25)
    assert str(projection) == (
        "60.0 GB written in 60.0 s: a rating of 600 TB lasts 6.9 days (0.02 years) at this rate"
    )


def test_twice_the_bytes_is_half_the_life() -> None:
    one = project_endurance(10**9, 10.0, "1.2PBW")
    assert project_endurance(2 * 10**9, 10.0, 1_200_000_000_000_000).days * 2 == one.days
    assert project_endurance(10**9, 20.0, "1200TBW").days == 2 * one.days


def test_nothing_written_wears_nothing() -> None:
    projection = project_endurance(0, 5.0, "600TBW")
    assert projection.days == projection.years == math.inf
    assert str(projection) == "0.0 GB written in 5.0 s: a rating of 600 TB is not used up"


def test_a_bad_rating_is_named() -> None:
    with pytest.raises(ConfigError, match="rating='600 TBX' is not a write rating") as caught:
        project_endurance(1, 1.0, "600 TBX")
    assert "600TBW" in str(caught.value)


def test_public_names() -> None:
    assert fxoffload.project_endurance is project_endurance
    assert fxoffload.EnduranceProjection is EnduranceProjection
