"""The exceptions of fxoffload: every message names its subject, the fact and the remedy."""

from __future__ import annotations

from fxoffload.holders import Holder


class OffloadError(Exception):
    """Base of all errors of this package."""


class ConfigError(OffloadError, ValueError):
    """An option is wrong; the message names it and the values that are valid."""


class GraphError(OffloadError):
    """A transformed graph breaks a rule of the graph language (raised by verification)."""


class PlanError(OffloadError):
    """A plan does not belong to the graph that it is applied to."""


class MarkError(OffloadError):
    """The program marks a value to move that may not be moved, or to move and to be kept."""


class BudgetError(OffloadError):
    """No plan fits memory_budget; the message states the lowest peak and what holds it.

    holders: all that is in memory at the lowest peak, largest first.
    """

    budget_bytes: int = 0
    lowest_peak_bytes: int = 0
    holders: tuple[Holder, ...] = ()

    def rephrase(self, message: str) -> BudgetError:
        """The same error with another message."""
        error = BudgetError(message)
        error.budget_bytes, error.lowest_peak_bytes = self.budget_bytes, self.lowest_peak_bytes
        error.holders = self.holders
        return error


class ReportError(OffloadError):
    """There is nothing to report yet, or a text is no saved report."""


class StoreError(OffloadError):
    """The store cannot do what a graph asked of it."""


class StoreFull(StoreError):
    """The spill directories have too little space; the message states both sizes."""


class StoreClosed(StoreError):
    """The store was closed while a graph still had values in it."""


class ModifiedError(StoreError, RuntimeError):
    """A saved tensor that belongs to the caller was changed in place before its backward.

    It is a RuntimeError, which autograd raises for this without fxoffload.
    """


class TransferError(StoreError):
    """A write or a read failed for good; the message names value, bytes, file and cause."""


class ChecksumError(TransferError):
    """Two reads of a value returned other bytes than were written; the message has both digests."""
