"""Share tickets: graphs that save the same tensor of the caller get the same ticket."""

from __future__ import annotations

import torch

from fxoffload.runtime.store.callers import find_key
from fxoffload.runtime.store.ticket import Ticket


class SharedTickets:
    """The latest ticket of each storage of the caller. Every method needs the store's lock."""

    def __init__(self) -> None:
        self._tickets: dict[int, Ticket] = {}

    def add(self, ticket: Ticket) -> None:
        """Register `ticket`, if its tensor belongs to the caller, for other graphs to find."""
        if ticket.caller is not None:
            self._tickets[ticket.caller.key] = ticket

    def find(self, x: torch.Tensor, *, kept: bool) -> Ticket | None:
        """The ticket of `x`, with one more holder; None if there is none.

        kept: whether to look for a ticket that keeps the value in memory, or for one that moves it.
        """
        ticket = self._tickets.get(find_key(x))
        if ticket is None or ticket.lent or (ticket.kept is not None) is not kept:
            return None
        if ticket.caller is None or not ticket.caller.is_same(x):
            return None
        ticket.holders += 1
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Remove `ticket`, which has lost its last holder."""
        if ticket.caller is not None and self._tickets.get(ticket.caller.key) is ticket:
            del self._tickets[ticket.caller.key]
