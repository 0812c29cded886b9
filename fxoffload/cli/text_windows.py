"""Batches of random windows of a text, for the command `train` and the demo."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor


def sample_windows(text: bytes, *, batch: int, length: int, seed: int) -> Iterator[Tensor]:
    """Yield int64 tensors (batch, length) of bytes without end, the same ones for the same seed.

    text: at least `length` bytes. A window starts anywhere in it.
    """
    data = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    offsets = torch.arange(length)
    generator = torch.Generator().manual_seed(seed)
    while True:
        starts = torch.randint(len(data) - length + 1, (batch, 1), generator=generator)
        yield data[starts + offsets].long()
