"""The real kernels of the four ops; stores, tickets, programs (the only module-level state).

A ticket tensor holds an id that is never used twice. Its memory is a numpy array with a finalizer,
so the ticket is freed exactly when the tensor's storage dies: after the backward, after the last
backward under retain_graph, or when a forward is abandoned. A clone of the tensor has the id but
does not keep the ticket alive.
"""

from __future__ import annotations

import atexit
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from fxoffload.config import OffloadConfig
from fxoffload.endurance import EnduranceProjection
from fxoffload.errors import StoreError
from fxoffload.ops import LIBRARY
from fxoffload.runtime.devices.buffers import copy_values, same_layout
from fxoffload.runtime.engines.checksum import CheckedEngine, find_digest
from fxoffload.runtime.engines.ioengine import IOEngine
from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.metered import MeteredEngine
from fxoffload.runtime.measurement.choice import open_engine
from fxoffload.runtime.measurement.clocks import mark_now
from fxoffload.runtime.program.book import MakeSchedule, Programs
from fxoffload.runtime.program.calls import Call, Entry
from fxoffload.runtime.store.counters import StoreStatistics, add_statistics, find_past
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.schedule import ProgramRecord

_lock = threading.Lock()  # Guards changes of _stores; nothing else is called under it.
_stores: dict[str, OffloadStore] = {}
_past = [StoreStatistics()]  # What closed stores did whose place another one took.
# Rating of a store's drives, None where nobody gave it, and when counting began.
_wear: dict[str, tuple[int | None, float]] = {}
_entries: dict[int, Entry] = {}
_programs = Programs()
_ids = itertools.count(1)


def register_store(
    config: OffloadConfig,
    *,
    keeps_graph: Callable[[], bool] = lambda: True,
    is_shared: Callable[[torch.Tensor], bool] = lambda _: False,
    make_counter: Callable[[torch.Tensor], torch.Tensor | None] = lambda _: None,
) -> str:
    """Open the store of `config`, or find the open one; returns the key that the ops carry.

    keeps_graph, is_shared, make_counter: see OffloadStore.
    """
    key = config.store_key
    rating = config.endurance_bytes
    store = _stores.get(key)
    if store is not None and not store.closed:
        if rating is not None:
            _wear[key] = rating, _wear[key][1]
        return key
    opened = _open_store(
        config, keeps_graph=keeps_graph, is_shared=is_shared, make_counter=make_counter
    )
    past = find_past(store.statistics()) if store is not None else None
    with _lock:
        if past is not None and _stores.get(key) is store:
            _past[0] = add_statistics([_past[0], past])
        store = _stores.get(key)
        used = store is None or store.closed
        if used:
            _wear[key] = rating, time.perf_counter()  # First: who finds the store looks it up.
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
    """For each store with the option `endurance`: how long its drives last if it goes on so.

    From what the store wrote since it was opened, or since the last reset_statistics.
    """
    now = time.perf_counter()
    return tuple(
        EnduranceProjection(find_store(key).statistics().nvme_written_bytes, now - start, rating)
        for key, (rating, start) in list(_wear.items())
        if rating is not None
    )


def schedule_graph(graph: str, make_schedule: MakeSchedule, *, is_limited: bool) -> None:
    """Let the ops that carry `graph` follow schedules from now on, which `make_schedule` makes.

    make_schedule: see ProgramBook; the latest that was given counts for all graphs of a step.
    is_limited: whether the graph has a budget, so that the safe rule waits for its writes.
    """
    _programs.add_graph(graph, make_schedule, is_limited=is_limited)


def forget_programs(graph: str) -> None:
    """Forget what was learned of the programs that `graph` belongs to."""
    _programs.forget(graph)


def find_programs() -> list[ProgramRecord]:
    """The programs of this thread that have a schedule, the latest first."""
    return _programs.find_records()


def close_stores() -> None:
    """Close every store; registering the same options again opens a new one."""
    for store in list(_stores.values()):
        store.close()


def _open_store(config: OffloadConfig, **questions: Any) -> OffloadStore:
    if config.checksum:
        find_digest()  # Raises before anything is opened.
    engine = open_engine(config)
    nvme: IOEngine = CheckedEngine(engine) if config.checksum else engine
    if not isinstance(nvme, MemoryEngine):
        nvme = MeteredEngine(nvme)
    engines: dict[str, IOEngine] = {"nvme": nvme}
    if config.host_bytes is not None and config.ioengine != "memory":
        engines["host"] = MemoryEngine(config.host_bytes)
    return OffloadStore(engines, max_inflight_bytes=config.inflight_bytes, **questions)


def _offload(
    x: torch.Tensor,
    store: str,
    name: str,
    tier: str,
    owned: bool,
    duplicate_bytes: int,
    graph: str = "",
) -> torch.Tensor:
    owner = find_store(store)
    call = _programs.enter_offload(graph, name, x.device)
    destination = tier if call is None else call.find_destination(name, tier)
    with _recorded(call, "offload", name, x.device):
        if destination == "keep":
            ticket = owner.keep(x, name, tier, owned)
        else:
            ticket = owner.offload(x, name, destination, owned, duplicate_bytes)
        entry = Entry(name, owner, ticket, call)
        if call is not None:
            call.add(name, entry)
            call.act("offload", name)
    number = next(_ids)
    array = np.array([number], np.int64)
    _entries[number] = entry
    weakref.finalize(array, _forget, number).atexit = False
    return torch.from_numpy(array)


def _release(ticket: torch.Tensor, x: torch.Tensor) -> None:
    entry = _find_entry(ticket)
    name, call = entry.name, entry.call
    with _recorded(call, "release", name, x.device):
        entry.store.release(entry.ticket, call is None or call.blocks)
        if call is not None:
            call.act("release", name)


def _prefetch(ticket: torch.Tensor) -> None:
    entry = _find_entry(ticket)
    name, call = entry.name, entry.call
    device = entry.ticket.layout.device
    with _recorded(call, "prefetch", name, device):
        if call is not None:
            call.act("prefetch", name)
        if call is None or call.reads_early:
            entry.start_reading()


def _wait(
    ticket: torch.Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    owned: bool = True,
) -> torch.Tensor:
    entry = _find_entry(ticket)
    name, call = entry.name, entry.call
    with _recorded(call, "wait", name, device):
        if call is not None:
            call.act("wait", name)
        y = entry.wait()
        if call is not None:
            call.pass_on(name, y)
    if (tuple(y.shape), y.dtype, y.device.type) != (tuple(size), dtype, device.type):
        raise StoreError(
            f"{name}: {y.dtype}{list(y.shape)} on {y.device} was offloaded and "
            f"{dtype}{list(size)} on {device} is asked for; the forward and the backward graph "
            "do not belong together"
        )
    if y.stride() == tuple(stride):
        return y
    if same_layout(size, stride, y.shape, y.stride()):
        return y.as_strided(size, stride)
    other = torch.empty_strided(size, stride, dtype=dtype, device=device)
    copy_values(other, y)
    return other


@contextmanager
def _recorded(call: Call | None, kind: str, name: str, device: torch.device) -> Generator[None]:
    """Within, the op `kind` of the value `name` runs."""
    run = None if call is None else call.find_run(kind, device)
    if call is None or run is None:
        yield
        return
    enter = mark_now(device)
    yield
    call.step.note_op(run, (kind, name), enter, mark_now(device))


def _find_entry(tensor: torch.Tensor) -> Entry:
    number = int(tensor.item())
    found = _entries.get(number)
    if found is None:
        raise StoreError(
            f"ticket {number} was freed: the tensor that offload returned has died, for example "
            "because a saved-tensor hook copied it (let such hooks return one-element int64 "
            "tensors as they are), or because the process was forked"
        )
    return found


def _forget(number: int) -> None:
    entry = _entries.pop(number, None)
    if entry is not None:
        entry.store.free(entry.ticket)
        if entry.call is not None:
            entry.call.step.note_death()


def _pause_reads() -> None:
    for store in list(_stores.values()):
        store.pause_reads()


def _resume_reads() -> None:
    for store in list(_stores.values()):
        store.resume_reads()


def _forget_all() -> None:
    # A forked child has the stores but not their threads: no transfer would end.
    global _lock
    _lock = threading.Lock()  # Another thread may have held it.
    for store in _stores.values():
        store.abandon()
    _past[0] = StoreStatistics()
    _wear.clear()
    _stores.clear()
    _entries.clear()
    _programs.clear()


for _name, _kernel in (
    ("offload", _offload),
    ("release", _release),
    ("prefetch", _prefetch),
    ("wait", _wait),
):
    LIBRARY.impl(_name, _kernel, "CompositeExplicitAutograd")

atexit.register(close_stores)
os.register_at_fork(before=_pause_reads, after_in_parent=_resume_reads, after_in_child=_forget_all)
