"""The real kernels of the four ops; tickets and programs of this process.

A ticket tensor holds an id that is never used twice. Its memory is a numpy array with a weak
reference to it, so the ticket is freed exactly when the tensor's storage dies: after the backward,
after the last backward under retain_graph, or when a forward is abandoned. A clone of the tensor
has the id but does not keep the ticket alive.
"""

from __future__ import annotations

import itertools
import os
import weakref
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.profiler import record_function

from fxoffload.errors import StoreError
from fxoffload.holders import Holder
from fxoffload.ops import DIRECT, LIBRARY, OPS
from fxoffload.runtime.devices.buffers import copy_values, same_layout
from fxoffload.runtime.measurement.clocks import Mark, mark_now
from fxoffload.runtime.program.calls import Call
from fxoffload.runtime.program.entry import Entry
from fxoffload.runtime.program.half_run import HalfRun
from fxoffload.runtime.program.threads import GraphRules, Programs
from fxoffload.runtime.stores import find_store
from fxoffload.schedule import ProgramRecord, Schedule
from fxoffload.torch_internals.profiling import is_profiling

# Ticket tensors that are made at once: where compute has emptied the caches, the first one takes a
# hundred times as long as those behind it.
BLANKS = 64

# Ticket tensors without an entry, and their ids.
_blanks: deque[tuple[int, torch.Tensor]] = deque()
_arrays: dict[int, weakref.ref[Any]] = {}  # The memory of ticket tensors, by their ids.
_numbers: dict[int, int] = {}  # The ids of ticket tensors, by their addresses.
_entries: dict[int, tuple[Entry, Call | None]] = {}
_programs = Programs()
_ids = itertools.count(1)


def schedule_graph(graph: str, rules: GraphRules) -> None:
    """Let the ops that carry `graph` follow the schedules that are made by `rules`."""
    _programs.add_graph(graph, rules)


def forget_programs(graph: str) -> None:
    """Forget what was learned of the programs that `graph` belongs to."""
    _programs.forget(graph)


def begin_step() -> None:
    """Begin the next step of this thread here, not with its first compiled graph.

    Memory that is allocated after this call counts under a budget, such as that of embeddings that
    run before compiled layers. Call it after `zero_grad` and before a forward. It does nothing
    while a step runs, as between the micro-batches of a pipeline. Models that fxoffload.compile or
    compile_in_place have compiled do not need it: their forwards begin steps.
    """
    _programs.note_begin(declared=True)


def note_forward() -> None:
    """Begin the next step here at the latest: a compiled graph, or a model with some, is called."""
    if torch.is_grad_enabled():  # Otherwise it is an evaluation, or generates text.
        _programs.note_begin(declared=False)


def find_next_schedule() -> Schedule | None:
    """The schedule that the next step of this thread is expected to follow, if one is known.

    None while a step runs, and if several threads run steps.
    """
    return _programs.find_next_schedule()


def find_programs() -> list[ProgramRecord]:
    """The programs of this thread that have a schedule, the latest first."""
    return _programs.find_records()


def list_held() -> list[Holder]:
    """The memory of the device that values of steps in progress take at present, largest first.

    Names, graphs and calls are those of the runtime, which does not know modules and lines.
    """
    found = [
        Holder(name, call, step.calls[call].graph, "", "", "", nbytes)
        for step in _programs.find_running()
        for (call, name), nbytes in step.list_held().items()
    ]
    return sorted(found, key=lambda each: -each.nbytes)


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
    start = _begin(call, "offload", name, x.device)
    destination = tier if call is None else call.find_destination(name, tier, x.nbytes)
    if destination == "keep":
        ticket = owner.keep(x, name, tier, owned)
    else:
        ticket = owner.offload(x, name, destination, owned, duplicate_bytes)
    entry = Entry(name, owner, ticket, x.device, None if call is None else call.forward.half)
    if call is not None:
        call.add(name, entry)
        call.act("offload", name)
    _end(call, start, "offload", name, x.device)
    number, tensor = _take_blank()
    _entries[number] = entry, call
    return tensor


def _release(ticket: torch.Tensor, x: torch.Tensor) -> None:
    entry, call = _find_entry(ticket)
    name = entry.name
    start = _begin(call, "release", name, x.device)
    entry.store.release(entry.ticket, call is None or call.blocks)
    if call is not None:
        call.act("release", name)
    _end(call, start, "release", name, x.device)


def _prefetch(ticket: torch.Tensor) -> None:
    entry, call = _find_entry(ticket)
    name = entry.name
    start = _begin(call, "prefetch", name, entry.device)
    if call is not None:
        call.act("prefetch", name)
    if call is None or call.reads_early:
        entry.start_reading()
    _end(call, start, "prefetch", name, entry.device)


def _wait(
    ticket: torch.Tensor,
    size: Sequence[int],
    stride: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    owned: bool = True,
) -> torch.Tensor:
    entry, call = _find_entry(ticket)
    name = entry.name
    start = _begin(call, "wait", name, device)
    if call is not None:
        call.act("wait", name)
    y = entry.wait(is_measured=start is not None and start.run is not None)
    if call is not None:
        call.pass_on(name, y)
    _end(call, start, "wait", name, device)
    if (
        y.shape != tuple(size)
        or y.dtype != dtype
        or (entry.device != device and entry.device.type != device.type)
    ):
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


class _Start(NamedTuple):
    """The start of an op that is measured or shown in a trace.

    run, enter: its half and its start; None if the step is not measured. shown: its range in the
    trace of a profiler or of NVTX; None if neither runs.
    """

    run: HalfRun | None
    enter: Mark | None
    shown: record_function | None


def _begin(call: Call | None, kind: str, name: str, device: torch.device) -> _Start | None:
    """Note the start of the op `kind` on the value `name`; None if nothing measures or shows it."""
    run = None if call is None else call.find_run(kind, device)
    shown = _open_range(kind, name) if is_profiling() else None
    if run is None and shown is None:
        return None
    return _Start(run, None if run is None else mark_now(device), shown)


def _open_range(kind: str, name: str) -> record_function:
    """A range that the caller ends by `__exit__`; if the op fails, it ends when it is freed."""
    shown = record_function(f"fxoffload {kind} {name}")
    shown.__enter__()
    return shown


def _end(
    call: Call | None, start: _Start | None, kind: str, name: str, device: torch.device
) -> None:
    """Note the end of the op `kind` on the value `name`; start: from _begin."""
    if start is None:
        return
    if call is not None and start.run is not None and start.enter is not None:
        call.step.note_op(start.run, (kind, name), start.enter, mark_now(device))
    if start.shown is not None:
        start.shown.__exit__(None, None, None)


def _take_blank() -> tuple[int, torch.Tensor]:
    """A ticket tensor without an entry, and its id."""
    while True:  # Other threads may take what was made.
        try:
            return _blanks.popleft()
        except IndexError:
            _blanks.extend(_make_blank(number) for number in itertools.islice(_ids, BLANKS))


def _make_blank(number: int) -> tuple[int, torch.Tensor]:
    array = np.array([number], np.int64)
    tensor = torch.from_numpy(array)
    address = tensor.data_ptr()
    _numbers[address] = number
    _arrays[number] = weakref.ref(array, partial(_forget, number, address))
    return number, tensor


def _find_entry(tensor: torch.Tensor) -> tuple[Entry, Call | None]:
    number = _numbers.get(tensor.data_ptr())
    if number is None:  # A copy of the ticket, such as saved-tensor hooks make.
        number = int(tensor.item())
    found = _entries.get(number)
    if found is None:
        raise StoreError(
            f"ticket {number} was freed: the tensor that offload returned has died, for example "
            "because a saved-tensor hook copied it (let such hooks return one-element int64 "
            "tensors as they are), or because the process was forked"
        )
    return found


def _forget(number: int, address: int, _: object) -> None:
    """Free a ticket when the memory of its tensor dies; the address is reused only after this."""
    _arrays.pop(number, None)
    _numbers.pop(address, None)
    found = _entries.pop(number, None)
    if found is not None:
        entry, call = found
        entry.store.free(entry.ticket)
        if call is not None:
            call.note_death()


def _forget_entries() -> None:
    _blanks.clear()
    _arrays.clear()
    _numbers.clear()
    _entries.clear()
    _programs.clear()


for _op, _kernel in zip(OPS, (_offload, _release, _prefetch, _wait), strict=True):
    LIBRARY.impl(_op, _kernel, "CompositeExplicitAutograd")
    setattr(_op, DIRECT, _kernel)

os.register_at_fork(after_in_child=_forget_entries)
