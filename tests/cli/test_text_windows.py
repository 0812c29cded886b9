"""Windows of a text: what is in them, and that a seed makes the same ones."""

from __future__ import annotations

from itertools import islice

import torch

from fxoffload.cli.text_windows import sample_windows


def test_windows_are_pieces_of_the_text() -> None:
    text = bytes(range(100))
    for window in islice(sample_windows(text, batch=4, length=10, seed=0), 20):
        assert window.shape == (4, 10)
        assert window.dtype == torch.int64
        assert all(bytes(row) in text for row in window.tolist())


def test_the_whole_text_is_used() -> None:
    windows = sample_windows(b"abc", batch=200, length=2, seed=0)
    assert {bytes(row) for row in next(windows).tolist()} == {b"ab", b"bc"}
    assert bytes(next(sample_windows(b"abc", batch=1, length=3, seed=0))[0].tolist()) == b"abc"


def test_a_seed_makes_the_same_windows() -> None:
    def take(seed: int) -> torch.Tensor:
        return next(sample_windows(bytes(range(200)), batch=8, length=10, seed=seed))

    assert torch.equal(take(1), take(1))
    assert not torch.equal(take(1), take(2))
