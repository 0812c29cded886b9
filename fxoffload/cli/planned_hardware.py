"""The hardware of a plan: named, described by a file, or this machine."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import torch

from fxoffload import runtime
from fxoffload.config import OffloadConfig
from fxoffload.hardware import Hardware
from fxoffload.inspection.catalogue import (
    DRIVE_FIELDS,
    LATENCY_SECONDS,
    NamedHardware,
    find_hardware,
    read_hardware,
)
from fxoffload.sizes import parse_bytes


def choose_hardware(name: str, drive: str, drives: int, memory: str | None) -> NamedHardware:
    """The hardware called `name`, or in the file of this name; memory: instead of the device's.

    Raises ConfigError for an unknown name, and for a file that describes no hardware.
    """
    if os.sep in name or name.endswith(".toml"):
        found = read_hardware(Path(name))
    else:
        found = find_hardware(name, drive, drives=drives)
    return replace_memory(found, memory)


def measure_hardware(
    config: OffloadConfig, dtype: torch.dtype, memory: str | None
) -> NamedHardware:
    """This machine by its probes, each of which runs once on a machine.

    On a CPU there is no link to the host, so that only the drive limits transfers, and what they
    take from the cores is not part of it. Raises the errors of choose_engine.
    """
    device = find_device()
    speed = runtime.recall_speed(device, dtype)
    drive = runtime.choose_engine(config).bandwidth
    if device.type == "cuda":
        link = min(runtime.recall_exchange(device))
    else:
        link = speed.memory_bytes_per_second
    hardware = Hardware(
        flops_per_second=speed.flops_per_second,
        memory_bytes_per_second=speed.memory_bytes_per_second,
        memory_bytes=runtime.find_device_bytes(device),
        drive_write_bytes_per_second=drive.write,
        drive_read_bytes_per_second=drive.read,
        host_link_bytes_per_second=link,
        transfer_latency_seconds=LATENCY_SECONDS,
    )
    key = runtime.describe_device(device)
    sources: dict[str, str] = dict.fromkeys(
        ("flops_per_second", *DRIVE_FIELDS), str(runtime.cache_path())
    )
    return replace_memory(NamedHardware(hardware, f"this machine ({key})", sources), memory)


def find_device() -> torch.device:
    """The device that a model of this machine trains on: its GPU, or else its CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def replace_memory(found: NamedHardware, memory: str | None) -> NamedHardware:
    """`found` with so many bytes of device memory; unchanged for None."""
    if memory is None:
        return found
    hardware = dataclasses.replace(found.hardware, memory_bytes=parse_bytes("memory", memory))
    return dataclasses.replace(found, hardware=hardware)
