"""Named hardware: every name, what a peak counts as, and files that users write."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path

import pytest

from fxoffload import ConfigError
from fxoffload.inspection.catalogue import (
    FIELDS,
    find_hardware,
    list_devices,
    list_drives,
    read_hardware,
)

TEXT = """
flops_per_second = "150TFLOP/s"
memory_bytes_per_second = "1.2TB/s"
memory_bytes = "24GiB"
drive_write_bytes_per_second = "6GB/s"
drive_read_bytes_per_second = 6.5e9
host_link_bytes_per_second = "25GB/s"
"""


def test_names() -> None:
    assert list_devices() == ["A100", "H100", "H200", "B200", "RTX 4090", "RTX 5090"]
    assert list_drives() == ["Gen4", "Gen5"]


@pytest.mark.parametrize("drive", list_drives())
@pytest.mark.parametrize("device", list_devices())
def test_each_figure_has_a_source(device: str, drive: str) -> None:
    found = find_hardware(device, drive)
    assert set(found.sources) == set(FIELDS) - {"transfer_latency_seconds"}
    root = Path(__file__).parent.parent
    for source in found.sources.values():
        assert source.startswith("https://") or (root / source).is_file()
    assert 1e13 < float(found.hardware.flops_per_second) < 1e16
    assert 1e11 < float(found.hardware.memory_bytes_per_second) < 1e13
    assert 2e10 < found.hardware.device_bytes < 2e11
    assert found.hardware.drive_write_bytes_per_second <= found.hardware.drive_read_bytes_per_second


def test_a_peak_counts_by_its_share_and_what_was_measured_in_full() -> None:
    shares = tomllib.loads(
        resources.files("fxoffload.inspection").joinpath("hardware.toml").read_text()
    )["shares"]
    a100 = find_hardware("A100", "Gen4").hardware
    assert a100.flops_per_second == pytest.approx(312e12 * shares["flops_per_second"])
    assert a100.host_link_bytes_per_second == pytest.approx(32e9 * 0.84)
    assert a100.device_bytes == 80 * 10**9
    assert find_hardware("H100", "Gen4").hardware.flops_per_second == 780e12


def test_several_drives_are_striped() -> None:
    hardware = find_hardware("H100", "gen5", drives=4).hardware
    assert hardware.drive_write_bytes_per_second == 40e9
    assert hardware.drive_read_bytes_per_second == 56e9
    with pytest.raises(ConfigError, match="drives=0"):
        find_hardware("H100", "Gen5", drives=0)


def test_case_and_blanks_of_names_do_not_matter() -> None:
    assert find_hardware("rtx4090", "GEN4") == find_hardware("RTX 4090", "Gen4")


@pytest.mark.parametrize(("device", "drive"), [("H10", "Gen4"), ("H100", "Gen9")])
def test_unknown_names(device: str, drive: str) -> None:
    with pytest.raises(ConfigError, match=r"unknown; did you mean .* known names"):
        find_hardware(device, drive)


def test_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(TEXT)
    found = read_hardware(path)
    assert found.hardware.device_bytes == 24 * 2**30
    assert found.hardware.drive_read_bytes_per_second == 6.5e9


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (TEXT + "speed = 1\n", "unknown field 'speed'"),
        (TEXT.replace("memory_bytes = ", "# "), "lacks memory_bytes"),
        (TEXT.replace("150TFLOP/s", "fast"), "flops_per_second='fast'"),
        (TEXT.replace('"24GiB"', "[1]"), "memory_bytes="),
        ("not toml", "no TOML"),
    ],
)
def test_bad_files(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "bad.toml"
    path.write_text(text)
    with pytest.raises(ConfigError, match=message) as error:
        read_hardware(path)
    assert str(path) in str(error.value)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_hardware(tmp_path / "missing.toml")
