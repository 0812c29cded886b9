"""The open stores of this process, by the key that the ops carry."""

from __future__ import annotations

import atexit
import os
import threading
import time
import warnings
from collections.abc import Callable
from typing import Any

import torch

from fxoffload.config import OffloadConfig
from fxoffload.endurance import EnduranceProjection
from fxoffload.errors import StoreError
from fxoffload.runtime.engines.checksum import CheckedEngine, find_digest
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.memory_limit import find_available_memory
from fxoffload.runtime.engines.metered import MeteredEngine
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.runtime.store.counters import StoreStatistics, add_statistics, find_past
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.sizes import format_bytes

_lock = threading.Lock()  # Guards changes of _stores; nothing else is called under it.
_stores: dict[str, OffloadStore] = {}
_past = [StoreStatistics()]  # The sum of closed stores that were replaced by a new one.
# By key of a store: the rating of its drives (None if not given), and when counting began.
_wear: dict[str, tuple[int | None, float]] = {}


def register_store(
    config: OffloadConfig,
    *,
    host_bytes: int | None = None,
    keeps_graph: Callable[[], bool] = lambda: True,
    is_shared: Callable[[torch.Tensor], bool] = lambda _: False,
    make_counter: Callable[[torch.Tensor], torch.Tensor | None] = lambda _: None,
) -> str:
    """Open the store of `config`, or find the open one; returns the key that the ops carry.

    host_bytes: the size of a host tier, if `config` names none and the store has none yet; a store
    that is opened again has that of the one before. keeps_graph, is_shared, make_counter: see
    OffloadStore.
    """
    key = config.store_key
    rating = config.endurance_bytes
    store = _stores.get(key)
    if store is not None and not store.closed:
        if rating is not None:
            _wear[key] = rating, _wear[key][1]
        if host_bytes is not None:
            store.add_host_tier(host_bytes)
        return key
    opened = _open_store(
        config, keeps_graph=keeps_graph, is_shared=is_shared, make_counter=make_counter
    )
    if host_bytes is None and store is not None and "host" in store.engines:
        host_bytes = store.host_bytes
    if host_bytes is not None:
        opened.add_host_tier(host_bytes)
    past = find_past(store.statistics()) if store is not None else None
    with _lock:
        if past is not None and _stores.get(key) is store:
            _past[0] = add_statistics([_past[0], past])
        store = _stores.get(key)
        used = store is None or store.closed
        if used:
            # Before _stores: a thread that finds the store there looks up its rating.
            _wear[key] = rating, time.perf_counter()
            _stores[key] = opened
    if not used:  # Another thread was first.
        opened.close()
    return key


def find_store(key: str) -> OffloadStore:
    """The store that register_store opened under `key`."""
    store = _stores.get(key)
    if store is None:
        raise StoreError(
            f"store {key!r} is not open in this process; compile the model here, or call "
            "register_store with the same options"
        )
    return store


def statistics() -> StoreStatistics:
    """The counters of all stores of this process, the closed ones too, added up."""
    return add_statistics([*_past, *(store.statistics() for store in list(_stores.values()))])


def reset_statistics() -> None:
    """Set the sums of all stores to zero."""
    _past[0] = StoreStatistics()
    now = time.perf_counter()
    for key, store in list(_stores.items()):
        store.reset_statistics()
        if key in _wear:
            _wear[key] = _wear[key][0], now


def drive_lifetimes() -> tuple[EnduranceProjection, ...]:
    """For each store with the option `endurance`, how long its drives last at the present rate.

    The rate is that of the writes since the store was opened, or since the last reset_statistics.
    """
    now = time.perf_counter()
    return tuple(
        EnduranceProjection(find_store(key).statistics().nvme_written_bytes, now - start, rating)
        for key, (rating, start) in list(_wear.items())
        if rating is not None
    )


def close_stores() -> None:
    """Close every store; registering the same options again opens a new one."""
    for store in list(_stores.values()):
        store.close()


def _open_store(config: OffloadConfig, **questions: Any) -> OffloadStore:
    if config.checksum:
        find_digest()  # Raises before anything is opened.
    if config.host_bytes is not None:
        _warn_of_short_memory(config.host_bytes)
    engine = open_engine(config)
    nvme: IOEngine = CheckedEngine(engine) if config.checksum else engine
    if not isinstance(nvme, MemoryEngine):
        nvme = MeteredEngine(nvme)
    engines: dict[str, IOEngine] = {"nvme": nvme}
    if config.host_bytes is not None and config.ioengine != "memory":
        engines["host"] = MemoryEngine(config.host_bytes)
    return OffloadStore(engines, max_inflight_bytes=config.inflight_bytes, **questions)


def _warn_of_short_memory(host_bytes: int) -> None:
    available_bytes = find_available_memory()
    if host_bytes > available_bytes:
        warnings.warn(
            f"host_budget allows {format_bytes(host_bytes)} of host memory, of which "
            f"{format_bytes(available_bytes)} are available to this process now: when they are "
            "used up, the system swaps, or kills the process; lower host_budget",
            RuntimeWarning,
            stacklevel=2,
        )


def _pause_reads() -> None:
    for store in list(_stores.values()):
        store.pause_reads()


def _resume_reads() -> None:
    for store in list(_stores.values()):
        store.resume_reads()


def _forget_stores() -> None:
    # A forked child has the stores but not their threads: no transfer would end.
    global _lock
    _lock = threading.Lock()  # Another thread may have held it.
    for store in _stores.values():
        store.abandon()
    _past[0] = StoreStatistics()
    _wear.clear()
    _stores.clear()


atexit.register(close_stores)
os.register_at_fork(
    before=_pause_reads, after_in_parent=_resume_reads, after_in_child=_forget_stores
)
