"""Programs with sizes that depend on data: results as with nothing moved, and a counted peak."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fxoffload

ROWS, WIDTH, EXPERTS = 64, 16, 3
OPTIONS: dict[str, Any] = {"compiler": "eager", "ioengine": "memory", "min_bytes": 1}


class Experts(nn.Module):
    """A mixture of experts: each computes the rows that chose it."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(WIDTH, EXPERTS)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(WIDTH, 2 * WIDTH), nn.GELU(), nn.Linear(2 * WIDTH, WIDTH))
            for _ in range(EXPERTS)
        )

    def forward(self, x: Tensor) -> Tensor:
        scores = self.gate(x).softmax(-1)
        chosen = scores.argmax(-1)
        out = torch.zeros_like(x)
        for index, expert in enumerate(self.experts):
            rows = (chosen == index).nonzero().squeeze(1)
            out = out.index_add(0, rows, expert(x[rows]) * scores[rows, index, None])
        return out


class MaskedLoss(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x).tanh()[x > 0].square()


class Prefix(nn.Module):
    """Rows up to a number that is read from the data."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor) -> Tensor:
        count = (x[:, 0] > 0).sum().item()
        torch._check(count <= ROWS)
        torch._check(count >= 2)
        return self.layer(self.layer(x)[:count].tanh())


@pytest.fixture(autouse=True)
def captures_sizes(fresh_dynamo: None) -> Iterator[None]:
    with torch._dynamo.config.patch(
        capture_dynamic_output_shape_ops=True, capture_scalar_outputs=True
    ):
        yield


def compute_gradients(kind: type[nn.Module], **options: Any) -> list[Tensor]:
    torch._dynamo.reset()
    torch.manual_seed(0)
    model, x = kind(), torch.randn(ROWS, WIDTH, requires_grad=True)
    compiled = fxoffload.compile(model, fullgraph=True, **OPTIONS | options)
    compiled(x).sum().backward()
    return [p.grad for p in (x, *model.parameters()) if p.grad is not None]


@pytest.mark.parametrize("budget", [None, "min", "1MiB"])
@pytest.mark.parametrize("kind", [Experts, MaskedLoss, Prefix])
def test_gradients_are_those_with_nothing_moved(kind: type[nn.Module], budget: str | None) -> None:
    expected = compute_gradients(kind, enabled=False)
    found = compute_gradients(kind, memory_budget=budget)
    assert len(found) == len(expected) > 2
    for one, other in zip(found, expected, strict=True):
        assert torch.equal(one, other)


def test_what_experts_save_counts_in_the_predicted_peak() -> None:
    """Each could be given all rows: the rows inside of it are larger than all other values."""
    inner_bytes = ROWS * 2 * WIDTH * 4
    with pytest.raises(fxoffload.BudgetError) as refused:
        compute_gradients(Experts, memory_budget=EXPERTS * inner_bytes)
    assert refused.value.lowest_peak_bytes > EXPERTS * inner_bytes
