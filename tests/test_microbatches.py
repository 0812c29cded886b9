"""One forward and one backward in turn: the same gradients as those of one batch."""

from __future__ import annotations

import torch
from torch import Tensor

from benchmarks.microbatches import Microbatches


def test_one_forward_and_one_backward_in_turn() -> None:
    weight = torch.tensor(2.0, requires_grad=True)
    order: list[str] = []

    def compute_loss(batch: Tensor) -> Tensor:
        number = int(batch[0])
        order.append(f"F{number}")
        loss = (weight * batch).mean()
        loss.register_hook(lambda grad: order.append(f"B{number}"))
        return loss

    losses = Microbatches(compute_loss, torch.arange(4.0).chunk(4))
    assert order == ["F0"]
    losses.backward()
    assert order == ["F0", "F1", "B0", "F2", "B1", "F3", "B2", "B3"]
    assert weight.grad is not None
    assert weight.grad.item() == 0 + 1 + 2 + 3
    assert losses.item() == losses.detach().item() == 2 * (0 + 1 + 2 + 3) / 4
