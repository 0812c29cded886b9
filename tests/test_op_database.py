"""A part of torch's operator database: with all values moved, results and gradients match eager."""

from __future__ import annotations

import warnings

from op_database import check, find_operators, find_samples

import fxoffload

# Those that needed care of their own, and every so manieth of all others.
CHOSEN = (
    "sparse.mm.reduce", "nn.functional.scaled_dot_product_attention", "nn.functional.conv2d",
    "nn.functional.max_pool2d", "nonzero", "masked_select", "linalg.svd", "index_add", "expand",
    "nn.functional.dropout", "nn.functional.embedding", "resolve_conj", "split", "unbind",
)  # fmt: skip
STRIDE = 12


def test_a_slice_is_right(fresh_dynamo: None) -> None:
    before = fxoffload.statistics().offloads
    problems: dict[str, str] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        operators = [*find_operators(CHOSEN), *list(find_operators(()))[::STRIDE]]
        samples = list(find_samples(operators, 1))
        for name, op, sample in samples:
            problem = check(op, sample)
            if problem is not None and not problem.startswith("skipped"):
                problems[name] = problem
    assert len(samples) >= 50
    assert problems == {}
    done = fxoffload.statistics()
    assert done.offloads - before >= len(samples) // 3, "values moved"
    assert (done.live_bytes, done.inflight_bytes) == (0, 0)
