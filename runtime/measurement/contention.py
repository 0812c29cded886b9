"""Measure the compute time that transfers take on the same cores, by a short probe.

If all cores of a CPU compute, no transfer is free: system calls, interrupts, page faults and, in a
virtual machine, the emulation of the drive stop the threads of a parallel loop.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch

from fxoffload.config import OffloadConfig
from fxoffload.errors import StoreFull
from fxoffload.runtime.measurement.bandwidth import round_down
from fxoffload.runtime.measurement.choice import choose_engine, open_engine
from fxoffload.runtime.measurement.probe_cache import recall_pair
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket
from fxoffload.sizes import UNLIMITED_BYTES

ROUNDS = 8
VALUES = 8
VALUE_BYTES = 16 * 2**20
# The length of a measured interval of compute; the transfers beside it must end before it does.
WINDOW_SECONDS = 0.1
_MATRIX_SIZE = 512
_TRIALS = 16
_LEAST_VALUE_BYTES = 2**16
_TIER = "nvme"
# The result for a loss below the noise: almost 0, as the probe cache takes no number that is 0.
_LEAST_SECONDS_PER_BYTE = 1e-13

_Compute = Callable[[Callable[[int], object] | None], float]


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

    It holds for the present number of torch's threads. Raises the errors of choose_engine.
    """
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

    key = f"{choice.key} contention, {torch.get_num_threads()} threads torch {torch.__version__}"
    return Contention(*recall_pair(key, measure))


def measure_contention(store: OffloadStore, bytes_per_second: float) -> Contention:
    """Measure rounds in which compute runs alone, beside writes, alone, and beside reads.

    The result is the lower quartile of the losses, as other load on the machine only adds to them.
    bytes_per_second: of the slower direction. Nothing else may use the store. Raises StoreFull if
    the store has no room.
    """
    nbytes = _find_value_bytes(store, bytes_per_second)
    generator = torch.Generator()  # The program's own generator must not depend on probes.
    values = [torch.rand(nbytes // 4, generator=generator) for _ in range(VALUES)]
    compute = _make_compute()
    rounds = [_run_round(store, values, compute) for _ in range(ROUNDS)]
    return Contention(
        *(
            _find_typical([seconds / (VALUES * nbytes) for seconds in each])
            for each in zip(*rounds, strict=True)
        )
    )


def _run_round(
    store: OffloadStore, values: Sequence[torch.Tensor], compute: _Compute
) -> tuple[float, float]:
    """Seconds of compute lost beside writes of all values, and beside their reads."""
    tickets: list[Ticket] = []
    before = compute(None)
    writing = compute(
        lambda index: tickets.append(store.offload(values[index], "probe", _TIER, False))
    )
    for ticket in tickets:
        store.release(ticket, True)
    between = compute(None)
    reading = compute(lambda index: store.prefetch(tickets[index]))
    for ticket in tickets:
        store.wait(ticket)
    after = compute(None)
    for ticket in tickets:
        store.free(ticket)
    return writing - (before + between) / 2, reading - (between + after) / 2


def _find_value_bytes(store: OffloadStore, bytes_per_second: float) -> int:
    """The size of each value: small enough to end in time, and for the room in the store."""
    nbytes = VALUE_BYTES
    while nbytes > _LEAST_VALUE_BYTES and VALUES * nbytes > bytes_per_second * WINDOW_SECONDS / 2:
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


def _make_compute() -> _Compute:
    """A function compute(move) that computes for about WINDOW_SECONDS and returns its seconds.

    It calls move(0), move(1), ... move(VALUES - 1), spread over the first half of that time.
    """
    left = torch.ones(_MATRIX_SIZE, _MATRIX_SIZE)
    product = torch.empty_like(left)

    def multiply(count: int) -> None:
        for _ in range(count):
            torch.mm(left, left, out=product)

    multiply(1)
    start = time.perf_counter()
    multiply(_TRIALS)
    seconds = (time.perf_counter() - start) / _TRIALS
    count = max(1, round(WINDOW_SECONDS / (2 * VALUES) / seconds))

    def compute(move: Callable[[int], object] | None) -> float:
        start = time.perf_counter()
        for index in range(VALUES):
            if move is not None:
                move(index)
            multiply(count)
        multiply(VALUES * count)
        return time.perf_counter() - start

    return compute


def _find_typical(samples: list[float]) -> float:
    typical = statistics.quantiles(samples, n=4)[0]
    if typical <= _LEAST_SECONDS_PER_BYTE:
        return _LEAST_SECONDS_PER_BYTE
    return round_down(typical, digits=2)
