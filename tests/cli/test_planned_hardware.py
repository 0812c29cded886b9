"""The hardware of a plan: a name, a file, or this machine."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from fxoffload import ConfigError, OffloadConfig
from fxoffload.cli.planned_hardware import choose_hardware, find_device, measure_hardware


def test_a_name_and_a_file(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    rates = ["memory_bytes_per_second", "drive_write_bytes_per_second"]
    rates += ["drive_read_bytes_per_second", "host_link_bytes_per_second", "flops_per_second"]
    path.write_text('memory_bytes = "24GiB"\n' + "".join(f"{rate} = 1e9\n" for rate in rates))
    assert choose_hardware(str(path), "Gen4", 1, None).hardware.device_bytes == 24 * 2**30
    named = choose_hardware("H100", "Gen5", 2, "40GiB").hardware
    assert named.device_bytes == 40 * 2**30
    assert named.drive_write_bytes_per_second == 20e9


def test_wrong_memory() -> None:
    with pytest.raises(ConfigError, match="memory='much'"):
        choose_hardware("H100", "Gen5", 1, "much")


def test_this_machine(spill_directory: Path) -> None:
    config = OffloadConfig(directory=str(spill_directory), ioengine="posix")
    found = measure_hardware(config, torch.float32, None)
    assert found.description.startswith("this machine")
    assert float(found.hardware.flops_per_second) > 1e8
    assert float(found.hardware.drive_write_bytes_per_second) > 0
    if find_device().type == "cpu":
        assert found.hardware.host_link_bytes_per_second == found.hardware.memory_bytes_per_second
