"""Tickets of what belongs to the caller: several graphs that save one tensor have one ticket."""

from __future__ import annotations

import torch

from fxoffload.runtime.store.callers import find_key
from fxoffload.runtime.store.ticket import Ticket


class SharedTickets:
    """By storage of the caller's, the latest ticket. Every method needs the lock of the store."""

    def __init__(self) -> None:
        self._tickets: dict[int, Ticket] = {}

    def add(self, ticket: Ticket) -> None:
        """Let others that save what `ticket` has find it, if that is the caller's."""
        if ticket.caller is not None:
            self._tickets[ticket.caller.key] = ticket

    def find(self, x: torch.Tensor, *, kept: bool) -> Ticket | None:
        """The ticket of `x`, which has one holder more now, if there is one.

        kept: whether the memory of `x` stays where it is.
        """
        ticket = self._tickets.get(find_key(x))
        if ticket is None or ticket.lent or (ticket.kept is not None) is not kept:
            return None
        if ticket.caller is None or not ticket.caller.is_same(x):
            return None
        ticket.holders += 1
        return ticket

    def remove(self, ticket: Ticket) -> None:
        """Nobody holds `ticket` any more."""
        if ticket.caller is not None and self._tickets.get(ticket.caller.key) is ticket:
            del self._tickets[ticket.caller.key]
