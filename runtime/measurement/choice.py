"""Choose, probe and open the engine of the disk tier."""

from __future__ import annotations

import logging
import os
import platform
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from fxoffload.config import OffloadConfig
from fxoffload.directories import check_directory
from fxoffload.errors import ConfigError
from fxoffload.runtime.engines.gds_engine import GdsEngine, find_gds_obstacle
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.kvikio_engine import KvikioEngine, find_obstacle
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.posix import PosixEngine
from fxoffload.runtime.engines.spill_file import SpillFile
from fxoffload.runtime.measurement.bandwidth import ROUNDS, Bandwidth, measure_bandwidth
from fxoffload.runtime.measurement.probe_cache import recall_pair

log = logging.getLogger(__name__)

EngineKind = Literal["posix", "kvikio", "gds", "memory"]

_MEMORY_PROBE_BYTES = 2**28
# "auto" chooses kvikio only if it is faster by this factor, which exceeds the noise of a probe.
_ADVANTAGE = 1.1
_DISTRIBUTIONS = ("fxoffload", "kvikio-cu13", "kvikio-cu12")


@dataclass(frozen=True, slots=True)
class EngineChoice:
    """The chosen engine.

    kind: the engine. reason: why it was chosen. key: the key under which its measurements are kept.
    bandwidths: for each directory. bandwidth: of all directories together.
    """

    kind: EngineKind
    reason: str
    key: str
    bandwidths: tuple[Bandwidth, ...]
    bandwidth: Bandwidth

    def __str__(self) -> str:
        return f"{self.kind}: {self.reason}"


def choose_engine(config: OffloadConfig) -> EngineChoice:
    """Choose the engine for `config`, by a short probe of each directory, once on a machine.

    Raises ConfigError for `ioengine="kvikio"` or `"gds"` if this process cannot use it, and
    StoreFull or OSError if a directory cannot be probed.
    """
    if config.ioengine == "memory":
        bandwidth, reason = probe_memory(), 'ioengine="memory" was asked for'
        return EngineChoice("memory", reason, _make_key("memory", "host"), (bandwidth,), bandwidth)
    directories = config.directories
    if config.ioengine == "posix":
        return _choose("posix", 'ioengine="posix" was asked for', directories)
    obstacle = find_gds_obstacle() if config.ioengine == "gds" else find_obstacle()
    if config.ioengine != "auto":
        asked = f'ioengine="{config.ioengine}"'
        if obstacle is not None:
            raise ConfigError(
                f'{asked}: {obstacle.fact}; {obstacle.remedy}, or pass "posix" or "auto"'
            )
        return _choose(config.ioengine, f"{asked} was asked for", directories)
    if obstacle is not None:
        return _choose("posix", f"kvikio cannot be used: {obstacle.fact}", directories)
    choices = [_choose(kind, "", directories) for kind in ("posix", "kvikio")]
    posix, kvikio = (choice.bandwidth.round_trip for choice in choices)
    reason = f"bytes per second there and back: kvikio {kvikio:.3g}, posix {posix:.3g}"
    return _choose("kvikio" if kvikio > _ADVANTAGE * posix else "posix", reason, directories)


def open_engine(config: OffloadConfig, choice: EngineChoice | None = None) -> IOEngine:
    """Open the engine of the disk tier for `config`.

    choice: from choose_engine, which is called without it. Raises ConfigError for a directory that
    cannot hold a spill file, or an engine that cannot be used here.
    """
    if config.ioengine == "memory":
        return MemoryEngine(config.host_bytes)
    for directory in config.directories:
        check_directory(directory)
    choice = choice or choose_engine(config)
    speeds = [bandwidth.round_trip for bandwidth in choice.bandwidths]
    engine = _open_striped(choice.kind, config.directories, speeds)
    log.info("ioengine %s; %s", engine.name, choice.reason)
    return engine


def probe_memory() -> Bandwidth:
    """The bandwidth of the host tier, by a short probe, once on a machine."""

    def measure() -> Bandwidth:
        engine = MemoryEngine(_MEMORY_PROBE_BYTES)
        try:
            return measure_bandwidth(engine)
        finally:
            engine.close()

    return Bandwidth(*recall_pair(_make_key("memory", "host"), measure))


def _choose(kind: EngineKind, reason: str, directories: Sequence[Path]) -> EngineChoice:
    probes = [_probe_directory(kind, directory) for directory in directories]
    # Directories on the same file system share its bandwidth, so each file system counts once.
    systems = dict(probes)
    total = Bandwidth(
        sum(each.write for each in systems.values()), sum(each.read for each in systems.values())
    )
    key = " ".join(_make_key(kind, system) for system in systems)
    return EngineChoice(kind, reason, key, tuple(bandwidth for _, bandwidth in probes), total)


def _probe_directory(kind: EngineKind, directory: Path) -> tuple[str, Bandwidth]:
    """The file system of `directory`, and the bandwidth of the engine there."""

    def measure() -> Bandwidth:
        with warnings.catch_warnings():
            # The user gets the same warning when the engine is opened.
            warnings.simplefilter("ignore", RuntimeWarning)
            engine = _open_striped(kind, (directory,))
        try:
            return measure_bandwidth(engine)
        finally:
            engine.close()

    system = f"{os.stat(directory).st_dev:x}-{os.statvfs(directory).f_fsid:x}"
    return system, Bandwidth(*recall_pair(_make_key(kind, system), measure))


def _make_key(kind: EngineKind, place: str) -> str:
    versions: list[str] = []
    for name in _DISTRIBUTIONS:
        try:
            versions.append(f"{name} {metadata.version(name)}")
        except metadata.PackageNotFoundError:
            continue
    # The name of the machine: several machines may share the cache in a home directory.
    return " ".join([platform.node(), place, kind, f"{ROUNDS} rounds", *versions])


def _open_striped(
    kind: EngineKind, directories: Sequence[Path], speeds: Sequence[float] = ()
) -> IOEngine:
    files: list[SpillFile] = []
    try:
        for directory in directories:
            files.append(SpillFile(directory))  # noqa: PERF401 - the opened ones must be closed
        engines = {"posix": PosixEngine, "kvikio": KvikioEngine, "gds": GdsEngine}
        return engines[kind](files, bytes_per_second=speeds)
    except BaseException as error:
        for file in files:
            file.close()
        if kind == "gds" and isinstance(error, OSError):
            places = " or ".join(map(str, directories))
            raise ConfigError(
                f'ioengine="gds": cuFile cannot use a file in {places} ({error.strerror}); name a '
                "directory on a file system that GPUDirect Storage supports (ext4 or XFS on NVMe), "
                'or pass "posix" or "auto"'
            ) from error
        raise
