"""Forecasts four layers of Llama 3 on named hardware: what hides, what fits, how drives wear.

A device has four layers of the model, as in a stage of a pipeline, and four drives. Its memory has
the weights, and the gradients while the backward runs; states of the optimizer are not counted. The
batch is the largest that fits with nothing moved. What hides is planned without a budget for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from benchmarks.fresh_process import Record
from benchmarks.published_models import Configure, build, configure_llama
from benchmarks.runner import Column, Show
from fxoffload import Hardware, project_endurance, simulate
from fxoffload.inspection.catalogue import find_hardware
from fxoffload.inspection.forecast import Forecast
from fxoffload.sizes import UNLIMITED_BYTES

# Widths of the model, of its MLP, and heads. Source: Llama 3, arXiv 2407.21783, table 3.
LLAMAS = {"8B": (4096, 14336, 32), "70B": (8192, 28672, 64), "405B": (16384, 53248, 128)}
DEVICES = ("H100", "H200", "B200")
DRIVES = ("Gen4", "Gen5")
DRIVE_COUNT = 4
LAYERS = 4
LENGTH = 8192
BATCHES = (1, 2, 4, 16, 64)
# A data-centre drive of 7.68 TB for one write of all of it a day, such as the Samsung PM9D3a:
# https://www.syspartsdirect.com/en/product-detail/Samsung-MZWL67T6HBLC-PM9D3a-7.68TB-Enterprise-SSD-1170.html
RATING_BYTES = 14_016 * 10**12


@dataclass(frozen=True, slots=True)
class Sizes:
    """Bytes of the weights, and of the peaks with nothing moved of batches of BATCHES."""

    resident_bytes: int
    peaks: tuple[int, ...]

    def find_peak(self, batch: int) -> float:
        """With nothing moved; between those that are known, in proportion."""
        return float(np.interp(batch, BATCHES, self.peaks))

    def find_batch(self, hardware: Hardware, freed_bytes: float = 0.0) -> int:
        """The largest batch that fits if so much of each sample's bytes is not there."""
        free = hardware.device_bytes - self.resident_bytes
        batches = range(1, BATCHES[-1] + 1)
        return max((b for b in batches if self.find_peak(b) - b * freed_bytes <= free), default=0)


def forecast_all(show: Show) -> list[Record]:
    """A row for each Llama on each device with each kind of drives."""
    rows: list[Record] = []
    for name, sizes in LLAMAS.items():
        configure = configure_llama(*sizes)
        measured = find_sizes(configure)
        for device in DEVICES:
            for drive in DRIVES:
                show(f"Llama {name} on {device}, {drive}")
                hardware = find_hardware(device, drive, drives=DRIVE_COUNT).hardware
                row = {"model": name, "device": device, "drive": drive}
                rows.append({**row, **forecast(configure, measured, hardware)})
    return rows


def predict(
    configure: Configure, batch: int, hardware: Hardware, budget_bytes: int | None = None
) -> Forecast:
    """A step of so many samples."""
    model, tokens = build(configure(LAYERS), batch, LENGTH)
    return simulate(model, tokens, hardware=hardware, memory_budget=budget_bytes)


def find_sizes(configure: Configure) -> Sizes:
    """What a step takes with nothing moved, which is the same on all hardware."""
    hardware = find_hardware(DEVICES[0], DRIVES[0]).hardware
    found = [predict(configure, batch, hardware, UNLIMITED_BYTES) for batch in BATCHES]
    return Sizes(found[0].resident_bytes, tuple(each.peak_bytes for each in found))


def forecast(configure: Configure, sizes: Sizes, hardware: Hardware) -> Record:
    """The largest batch that fits, what hides of its step, and the batch that fits into the rest.

    What hides counts as in proportion to the batch.
    """
    if (batch := sizes.find_batch(hardware)) == 0:
        return {"batch": 0}
    moved = predict(configure, batch, hardware)
    peak_bytes = predict(configure, batch, hardware, UNLIMITED_BYTES).peak_bytes
    freed_bytes = peak_bytes - moved.peak_bytes
    wear = project_endurance(moved.written_bytes, moved.step_seconds, DRIVE_COUNT * RATING_BYTES)
    return {
        "batch": batch,
        "peak_bytes": peak_bytes,
        "moved_peak_bytes": moved.peak_bytes,
        "share": moved.peak_bytes / peak_bytes,
        "exposed": moved.exposed_seconds / moved.step_seconds,
        "written_bytes": moved.written_bytes,
        "larger_batch": sizes.find_batch(hardware, freed_bytes / batch),
        "years": wear.years,
    }


def _show(key: str, digits: int = 1, unit: float = 1.0) -> Callable[[Record], str]:
    """The number of a row; nothing where not even one sample fits."""
    return lambda row: f"{row[key] / unit:.{digits}f}" if row["batch"] else ""


COLUMNS: Sequence[Column[Record]] = (
    ("Llama 3", lambda row: row["model"]),
    ("device, four drives", lambda row: f"{row['device']}, {row['drive']}"),
    ("batch that fits", lambda row: str(row["batch"] or "none")),
    ("peak GiB", _show("peak_bytes", unit=2**30)),
    ("where what hides moves", _show("moved_peak_bytes", unit=2**30)),
    ("of it", _show("share", 2)),
    ("waiting", _show("exposed", 3)),
    ("written GiB", _show("written_bytes", unit=2**30)),
    ("batch that then fits", _show("larger_batch", 0)),
    ("years of drives", _show("years", 2)),
)
