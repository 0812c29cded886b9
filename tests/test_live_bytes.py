"""Live bytes of a device."""

from __future__ import annotations

import torch

from fxoffload.runtime.program.live_bytes import count_live_bytes

CPU = torch.device("cpu")


def test_a_tensor_is_live_until_it_dies() -> None:
    before = count_live_bytes(CPU)
    assert before is not None
    x = torch.empty(8 * 2**20, dtype=torch.uint8)
    during = count_live_bytes(CPU)
    assert during is not None
    assert abs(during - before - x.nbytes) < 2**16
    del x
    after = count_live_bytes(CPU)
    assert after is not None
    assert abs(after - before) < 2**16


def test_nobody_counts_other_devices() -> None:
    assert count_live_bytes(torch.device("meta")) is None
