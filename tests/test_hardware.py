"""Hardware: text is parsed to numbers and links, and invalid fields are refused."""

from __future__ import annotations

import dataclasses

import pytest

from fxoffload import ConfigError, Hardware
from fxoffload.cost import DeviceSpeed, make_cost_model
from fxoffload.planner.link import Link

TEXT = Hardware(
    flops_per_second="312TFLOP/s",
    memory_bytes_per_second="2TB/s",
    memory_bytes="80GiB",
    drive_write_bytes_per_second="6.5GB/s",
    drive_read_bytes_per_second="7GB/s",
    host_link_bytes_per_second="25GB/s",
    transfer_latency_seconds=1e-4,
)


def test_text_and_numbers_say_the_same() -> None:
    numbers = Hardware(
        flops_per_second=312e12,
        memory_bytes_per_second=2e12,
        memory_bytes=80 * 2**30,
        drive_write_bytes_per_second=6.5e9,
        drive_read_bytes_per_second=7e9,
        host_link_bytes_per_second=25e9,
        transfer_latency_seconds=1e-4,
    )
    assert numbers == TEXT
    assert hash(numbers) == hash(TEXT)
    assert TEXT.device_bytes == 80 * 2**30


def test_cost_model() -> None:
    cost = make_cost_model(TEXT)
    assert cost.speed == DeviceSpeed(312e12, 2e12)
    assert cost.links == {"nvme": Link(6.5e9, 7e9, 1e-4)}


def test_host_tier_is_as_fast_as_its_link() -> None:
    assert make_cost_model(TEXT, with_host_tier=True).links["host"] == Link(25e9, 25e9, 1e-4)


def test_a_drive_is_no_faster_than_the_way_there() -> None:
    narrow = dataclasses.replace(TEXT, host_link_bytes_per_second="6GB/s")
    assert make_cost_model(narrow).links["nvme"] == Link(6e9, 6e9, 1e-4)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("flops_per_second", "312TB/s"),
        ("flops_per_second", 0),
        ("memory_bytes_per_second", "2TB"),
        ("memory_bytes", "80GiB/s"),
        ("drive_write_bytes_per_second", -1.0),
        ("drive_read_bytes_per_second", "fast"),
        ("host_link_bytes_per_second", float("inf")),
        ("transfer_latency_seconds", -0.1),
    ],
)
def test_what_makes_no_sense_is_refused_by_name(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=f"^{field}="):
        dataclasses.replace(TEXT, **{field: value})
