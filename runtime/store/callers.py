"""Tensors that belong to the caller: detects in-place changes, and values that stay in memory.

A graph may save what another graph, or the program itself, still holds. To write such a value out
frees nothing: where its memory is found alive when the value is asked for, the next value of the
same site is kept where it is. Where we turn out to be the last that hold it, the site moves again.
"""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fxoffload.errors import ModifiedError


class CallersTensor:
    """What is known of a tensor of the caller's, without holding its memory.

    site: the same for the same place of the program in every step; None is no such place. counter:
    has the version of `x`, and none of its memory; without it changes are not seen.
    """

    def __init__(
        self, x: torch.Tensor, site: str | None, counter: torch.Tensor | None = None
    ) -> None:
        self.site = site
        self._storage = StorageWeakRef(x.untyped_storage())
        self._counter = counter
        if counter is not None:
            self._version = counter._version
            self._shown = f"{x.dtype} {list(x.shape)}"

    @property
    def alive(self) -> bool:
        """Whether anybody still holds the memory."""
        return not self._storage.expired()

    def check_unchanged(self, name: str) -> None:
        """Raise ModifiedError where the tensor was written to in place, as autograd does."""
        if self._counter is None or self._counter._version == self._version:
            return
        raise ModifiedError(
            f"{name}: one of the variables needed for gradient computation has been modified by "
            f"an inplace operation: [{self._shown}] is at version {self._counter._version}; "
            f"expected version {self._version} instead; change a copy of it, or change it after "
            "the backward"
        )


class Sites:
    """Which sites save values that stay in memory anyway; safe in every thread."""

    def __init__(self) -> None:
        self._stay: dict[str, bool] = {}

    def stay(self, site: str | None) -> bool:
        """Whether the values of `site` were alive whenever they were asked for."""
        return site is not None and self._stay.get(site, False)

    def note(self, site: str | None, *, alive: bool) -> None:
        """A value of `site` was found alive; or it was not, and then the site moves for good."""
        if site is None:
            return
        if alive:
            self._stay.setdefault(site, True)
        else:
            self._stay[site] = False
