"""Measure the compute time that transfers take on the same cores, by a short probe.

If all cores of a CPU compute, no transfer is free: system calls, interrupts and page faults stop
the threads of a parallel loop for as long as they take. That is the CPU time of transfers alone. A
clock beside compute would show what else they take, but on a virtual machine with two cores it
found anything from 0 to 0.18 ns a byte, and the CPU time mostly 0.02 to 0.03.
"""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Sequence
from typing import NamedTuple

import torch

from fxoffload.config import OffloadConfig
from fxoffload.errors import StoreFull
from fxoffload.runtime.measurement.bandwidth import round_down
from fxoffload.runtime.measurement.choice import choose_engine, open_engine
from fxoffload.runtime.measurement.probe_cache import recall_pair
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.sizes import UNLIMITED_BYTES

ROUNDS = 8
VALUES = 8
VALUE_BYTES = 16 * 2**20
# What the transfers of a round may take each way, with values that are smaller for it.
WINDOW_SECONDS = 0.1
_LEAST_VALUE_BYTES = 2**16
_TIER = "nvme"
# For a loss below the resolution: almost 0, as the probe cache takes no number that is 0.
_LEAST_SECONDS_PER_BYTE = 1e-13


class Contention(NamedTuple):
    """Seconds of compute on all threads lost for each byte written, and for each byte read."""

    write: float
    read: float

    @property
    def mean(self) -> float:
        """The mean loss for a byte written or read."""
        return (self.write + self.read) / 2


def recall_contention(config: OffloadConfig) -> Contention:
    """The Contention of the engine for `config`, by a probe, once on a machine.

    Next to nothing where torch has fewer threads than the process has cores: transfers take those
    that are left. Raises the errors of choose_engine.
    """
    if torch.get_num_threads() < len(os.sched_getaffinity(0)):
        return Contention(_LEAST_SECONDS_PER_BYTE, _LEAST_SECONDS_PER_BYTE)
    choice = choose_engine(config)

    def measure() -> Contention:
        # Must not recall another number: this process holds the lock of the cache file.
        store = OffloadStore(
            {_TIER: open_engine(config, choice)}, max_inflight_bytes=UNLIMITED_BYTES
        )
        try:
            return measure_contention(store, min(choice.bandwidth))
        finally:
            store.close()

    return Contention(*recall_pair(f"{choice.key} CPU time", measure))


def measure_contention(store: OffloadStore, bytes_per_second: float) -> Contention:
    """Measure the CPU time of the process in rounds of writes and then reads.

    The result is the lower quartile of the rounds: other threads of the process, and memory that is
    used for the first time, only add to it. bytes_per_second: of the slower direction. Nothing else
    may use the store. Raises StoreFull if the store has no room.
    """
    nbytes = _find_value_bytes(store, bytes_per_second)
    generator = torch.Generator()  # The program's own generator must not depend on probes.
    values = [torch.rand(nbytes // 4, generator=generator) for _ in range(VALUES)]
    rounds = [_run_round(store, values) for _ in range(ROUNDS)]
    return Contention(
        *(
            _find_typical([seconds / (VALUES * nbytes) for seconds in each])
            for each in zip(*rounds, strict=True)
        )
    )


def _run_round(store: OffloadStore, values: Sequence[torch.Tensor]) -> tuple[float, float]:
    """CPU seconds of writing all values, and of reading them."""
    start = time.process_time()
    tickets = [store.offload(value, "probe", _TIER, False) for value in values]
    for ticket in tickets:
        store.release(ticket, True)
    written = time.process_time()
    for ticket in tickets:
        store.prefetch(ticket)
    for ticket in tickets:
        store.wait(ticket)
    read = time.process_time()
    for ticket in tickets:
        store.free(ticket)
    return written - start, read - written


def _find_value_bytes(store: OffloadStore, bytes_per_second: float) -> int:
    """The size of each value: small enough to end in time, and for the room in the store."""
    nbytes = VALUE_BYTES
    while nbytes > _LEAST_VALUE_BYTES and VALUES * nbytes > bytes_per_second * WINDOW_SECONDS:
        nbytes //= 2
    while True:
        try:
            store.reserve(VALUES * nbytes, _TIER)
        except StoreFull:
            if nbytes <= _LEAST_VALUE_BYTES:
                raise
            nbytes //= 2
        else:
            return nbytes


def _find_typical(samples: list[float]) -> float:
    typical = statistics.quantiles(samples, n=4)[0]
    if typical <= _LEAST_SECONDS_PER_BYTE:
        return _LEAST_SECONDS_PER_BYTE
    return round_down(typical, digits=2)
