"""The record of one value of a call, which the ops find by its ticket."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fxoffload.runtime.store.store import OffloadStore
from fxoffload.runtime.store.ticket import Ticket
from fxoffload.schedule import CallValue, Half, Owners


@dataclass(slots=True, eq=False)
class Entry:
    """A value of a call and its ticket; a kept value that is moved later gets another ticket.

    name: of the value in the graph; several calls may share a ticket, which has the name of the
    first. device: where the value comes from. half: the forward that saves the value; None if it
    belongs to no call. reading: whether a prefetch has started since the latest wait. handed: the
    memory of the tensor that the latest wait of a measured step returned. passed: the tensor that
    the next wait returns; a wait of another call with the same ticket has left it here. held:
    whether the caller still had the memory at the first wait; None if that is unknown.
    """

    name: str
    store: OffloadStore
    ticket: Ticket
    device: torch.device
    half: Half | None = None
    reading: bool = False
    handed: StorageWeakRef | None = None
    passed: torch.Tensor | None = None
    held: bool | None = None

    def count_resident_bytes(self, half: Half | None) -> int:
        """Bytes of the device's memory that the value takes while `half` runs.

        These include the caller's memory while the forward that saves the value runs, and the
        tensor that a wait has returned, as long as it lives.
        """
        caller = self.ticket.caller
        if self.handed is not None and not self.handed.expired():
            return self.ticket.nbytes
        if caller is not None and self.half is not None and self.half == half:
            return self.ticket.nbytes if caller.alive else 0
        return self.ticket.resident_bytes

    def wait(self, *, is_measured: bool) -> torch.Tensor:
        """The value; is_measured: whether the step is, so that its memory counts from here on."""
        if self.held is None:
            self.held = self.store.is_held(self.ticket)
        y, self.passed = self.passed, None
        if y is None:
            y = self.store.wait(self.ticket)
        elif self.ticket.caller is not None:
            self.ticket.caller.check_unchanged(self.name)
        self.reading = False
        if is_measured:
            self.handed = StorageWeakRef(y.untyped_storage())
        return y

    def start_reading(self) -> None:
        """Start to bring the value back, unless that was started before the latest wait."""
        if not self.reading or self.half is None:
            self.reading = True
            self.store.prefetch(self.ticket)

    def move_kept(self) -> None:
        """Move the value if it was kept; returns when it has been written."""
        moved = self.store.move_kept(self.ticket)
        if moved is not None:
            self.store.free(self.ticket)
            self.ticket = moved


def sum_resident_bytes(entries: Iterable[Entry], half: Half | None) -> int:
    """The sum of Entry.count_resident_bytes; entries that share a ticket count once."""
    found: dict[int, int] = {}
    for entry in entries:
        key, nbytes = id(entry.ticket), entry.count_resident_bytes(half)
        found[key] = max(nbytes, found.get(key, 0))
    return sum(found.values())


def list_resident_bytes(
    entries: Mapping[CallValue, Entry], half: Half | None
) -> dict[CallValue, int]:
    """Bytes of the device's memory that each value takes now; none of those that take none.

    What several calls have saved counts as the first of them.
    """
    found: dict[CallValue, int] = {}
    seen: set[int] = set()
    for value, entry in entries.items():
        nbytes = entry.count_resident_bytes(half)
        if nbytes and id(entry.ticket) not in seen:
            seen.add(id(entry.ticket))
            found[value] = nbytes
    return found


def find_owners(entries: Mapping[CallValue, Entry]) -> Owners:
    """The values of an ended step that several calls share, or whose memory the caller held."""
    shared: dict[int, list[CallValue]] = {}
    held: dict[CallValue, bool | None] = {}
    for value, entry in entries.items():
        if entry.ticket.caller is not None:
            shared.setdefault(id(entry.ticket), []).append(value)
            held[value] = entry.held
    return Owners(
        shared=tuple(tuple(group) for group in shared.values() if len(group) > 1),
        held=frozenset(value for value, found in held.items() if found is True),
        let_go=frozenset(value for value, found in held.items() if found is False),
    )
