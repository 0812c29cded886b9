"""Track tensors that belong to the caller: detect in-place changes, and memory saved twice.

Two graphs may save the same storage: the first one returns and saves a value that is also an input
of the second one. Such a storage is moved once.
"""

from __future__ import annotations

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from fxoffload.errors import ModifiedError


class CallersTensor:
    """The identity, layout and version of a tensor of the caller, without holding its memory.

    counter: a tensor without memory that shares the version counter of `x`; if it is None, changes
    in place are not detected.
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
        """Whether a tensor still uses the storage."""
        return not self._storage.expired()

    def is_same(self, x: torch.Tensor) -> bool:
        """Whether `x`, which has the same key, is the same tensor, unchanged since."""
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
