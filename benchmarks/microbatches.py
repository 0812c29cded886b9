"""The order of a pipeline's first stage with one forward and one backward in turn (1F1B)."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

import torch
from torch import Tensor


class Microbatches:
    """The loss of several microbatches: the first forward has run; `backward` runs the rest.

        F0 | F1 B0 F2 B1 F3 B2 B3

    compute_loss: of one microbatch. It stands where one loss of a whole batch would.
    """

    def __init__(self, compute_loss: Callable[[Tensor], Tensor], batches: Iterable[Tensor]) -> None:
        self._compute_loss = compute_loss
        self._batches = deque(batches)
        self._losses = deque([compute_loss(self._batches.popleft())])
        self._done: list[Tensor] = []

    def backward(self) -> None:
        """The other forwards, and all backwards."""
        while self._losses:
            if self._batches:
                self._losses.append(self._compute_loss(self._batches.popleft()))
            loss = self._losses.popleft()
            loss.backward()
            self._done.append(loss.detach())

    def detach(self) -> Tensor:
        """The mean of all losses, behind `backward`."""
        return torch.stack(self._done).mean()

    def item(self) -> float:
        """See detach."""
        return self.detach().item()
