"""Tensors that belong to the caller: detects in-place changes, and memory that is saved twice.

A graph may save what another graph made, returned and saved as well: the output of one and the
input of the next are one storage, which moves once.
"""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fxoffload.errors import ModifiedError


class CallersTensor:
    """What is known of a tensor of the caller's, without holding its memory.

    counter: has the version of `x`, and none of its memory; without it changes are not seen.
    """

    def __init__(self, x: torch.Tensor, counter: torch.Tensor | None = None) -> None:
        self.key = find_key(x)
        self._storage = StorageWeakRef(x.untyped_storage())
        self._layout = _find_layout(x)
        self._counter = counter
        if counter is not None:
            self._version = counter._version
            self._shown = f"{x.dtype} {list(x.shape)}"

    @property
    def alive(self) -> bool:
        """Whether anybody still holds the memory."""
        return not self._storage.expired()

    def is_same(self, x: torch.Tensor) -> bool:
        """Whether `x`, of the same key, has the same elements in the same place, unchanged."""
        if self._counter is None or x.is_inference():
            return False
        versions = {self._counter._version, x._version}
        return versions == {self._version} and self._layout == _find_layout(x)

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


def find_key(x: torch.Tensor) -> int:
    """The identity of the storage of `x` as long as a StorageWeakRef to it exists."""
    return x.untyped_storage()._cdata


def _find_layout(x: torch.Tensor) -> tuple[int, torch.Size, tuple[int, ...], torch.dtype]:
    return x.data_ptr(), x.shape, x.stride(), x.dtype
