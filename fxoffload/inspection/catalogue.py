"""Hardware by name, from `hardware.toml`, and hardware that a user describes in a file."""

from __future__ import annotations

import dataclasses
import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

from fxoffload.errors import ConfigError
from fxoffload.hardware import Hardware
from fxoffload.hints import find_hint
from fxoffload.sizes import parse_byte_rate, parse_flop_rate

FIELDS = tuple(field.name for field in dataclasses.fields(Hardware))
DRIVE_FIELDS = ("drive_write_bytes_per_second", "drive_read_bytes_per_second")
# PCIe, the driver and a worker thread; what fxoffload assumes of a GPU by itself.
LATENCY_SECONDS = 0.002
_OPTIONAL = ("transfer_latency_seconds",)


@dataclass(frozen=True, slots=True)
class NamedHardware:
    """Hardware with what it is, and the source of each of its figures by the name of the field."""

    hardware: Hardware
    description: str
    sources: Mapping[str, str]


def list_devices() -> list[str]:
    """The names of the devices that `find_hardware` knows."""
    return list(_read_catalogue()["device"])


def list_drives() -> list[str]:
    """The names of the drives that `find_hardware` knows."""
    return list(_read_catalogue()["drive"])


def find_hardware(device: str, drive: str, *, drives: int = 1) -> NamedHardware:
    """The hardware of a named device with so many of a named drive, by their sustained speeds.

    Case and blanks of names do not matter. Raises ConfigError for an unknown name.
    """
    if drives < 1:
        raise ConfigError(f"drives={drives}: a step moves its values to a drive; pass at least 1")
    catalogue = _read_catalogue()
    entry = _find_entry("hardware", device, catalogue["device"])
    store = _find_entry("drive", drive, catalogue["drive"])
    shares = catalogue["shares"]
    values: dict[str, Any] = {"transfer_latency_seconds": LATENCY_SECONDS}
    sources: dict[str, str] = {}
    for name, figure in {**entry, **store}.items():
        if name != "description":
            values[name] = _find_sustained(name, figure, shares.get(name, 1.0))
            sources[name] = figure["source"]
    for name in DRIVE_FIELDS:
        values[name] *= drives
    description = f"{entry['description']}; {drives} x {store['description']}"
    return NamedHardware(Hardware(**values), description, sources)


def read_hardware(path: Path) -> NamedHardware:
    """The hardware that a TOML file describes: the fields of Hardware by name.

    Raises ConfigError if the file cannot be read, is no TOML, or lacks a field or has another one.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}; name a file with hardware") from None
    except ValueError as error:  # TOMLDecodeError, or bytes that are no text.
        raise ConfigError(
            f"{path} is no TOML ({error}); write one field of Hardware a line"
        ) from None
    unknown = [name for name in values if name not in FIELDS]
    if unknown:
        hint = find_hint(unknown[0], FIELDS)
        raise ConfigError(f"{path}: unknown field {unknown[0]!r}; {hint}valid: {list(FIELDS)}")
    missing = [name for name in FIELDS if name not in values and name not in _OPTIONAL]
    if missing:
        raise ConfigError(f"{path} lacks {', '.join(missing)}; add them")
    try:
        hardware = Hardware(**values)
    except (ConfigError, TypeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return NamedHardware(hardware, str(path), dict.fromkeys(values, str(path)))


@cache
def _read_catalogue() -> dict[str, Any]:
    return tomllib.loads(
        resources.files("fxoffload.inspection").joinpath("hardware.toml").read_text()
    )


def _find_entry(kind: str, name: str, entries: Mapping[str, Any]) -> Any:
    wanted = _normalise(name)
    for known, entry in entries.items():
        if _normalise(known) == wanted:
            return entry
    raise ConfigError(f"{kind}={name!r} is unknown; {_suggest(name, entries)}")


def _suggest(name: str, names: Collection[str]) -> str:
    return f"{find_hint(name, names)}known names: {list(names)}"


def _normalise(name: str) -> str:
    return "".join(name.split()).upper()


def _find_sustained(name: str, figure: Mapping[str, str], share: float) -> int | float | str:
    """The figure in the unit of its field; a peak rate by the share of it that is sustained."""
    measured = figure.get("measured")
    text = figure["peak"] if measured is None else measured
    if name == "memory_bytes":
        return text
    parse = parse_flop_rate if name == "flops_per_second" else parse_byte_rate
    return parse(name, text) * (share if measured is None else 1.0)
