"""Compares torch's database of operators, everything moved, with eager mode, sample by sample.

    python tests/op_database.py                       # all of them: many minutes
    python tests/op_database.py --ops nn.functional.gelu sparse.mm

Runs the first sample of every differentiable operator (float64, CPU) with `compiler="eager"`,
`memory_budget="min"` and `min_bytes=1`, and compares results and gradients with those of plain
eager mode. Prints what failed, and the counts; the exit status is 1 where something did.
"""

from __future__ import annotations

import argparse
import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.testing._internal.common_methods_invocations import op_db
from torch.utils._pytree import tree_leaves, tree_map_only

import fxoffload

OPTIONS: dict[str, Any] = {
    "compiler": "eager", "ioengine": "memory", "memory_budget": "min", "min_bytes": 1,
}  # fmt: skip


def find_operators(names: Sequence[str]) -> Iterator[tuple[str, Any]]:
    """Name and operator, of every differentiable operator or of those called `names`."""
    for op in op_db:
        name = f"{op.name}.{op.variant_test_name}" if op.variant_test_name else op.name
        if torch.float64 not in op.supported_dtypes("cpu") or not op.supports_autograd:
            continue
        if not names or op.name in names or name in names:
            yield name, op


def find_samples(
    operators: Iterable[tuple[str, Any]], count: int
) -> Iterator[tuple[str, Any, Any]]:
    """Name, operator and sample, up to `count` of each operator."""
    for name, op in operators:
        samples = op.sample_inputs("cpu", torch.float64, requires_grad=True)
        for index, sample in zip(range(count), samples, strict=False):
            yield f"{name} {index}", op, sample


def compute(
    function: Callable[..., Any], op: Any, sample: Any
) -> tuple[list[Tensor], list[Tensor | None]]:
    """The results of a sample, and the gradients of its inputs."""

    def copy(tensor: Tensor) -> Tensor:
        return tensor.detach().clone().requires_grad_(tensor.requires_grad)

    inputs = tree_map_only(Tensor, copy, (sample.input, sample.args, sample.kwargs))
    torch.manual_seed(0)
    outputs = [x for x in tree_leaves(function(*inputs)) if isinstance(x, Tensor)]
    leaves = [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and x.requires_grad]
    roots = [x for x in outputs if x.requires_grad]
    if not roots or not leaves:
        return outputs, []
    seeds = [torch.ones_like(root) for root in roots]
    return outputs, list(torch.autograd.grad(roots, leaves, seeds, allow_unused=True))


def check(op: Any, sample: Any) -> str | None:
    """What went wrong with a sample, in a line; None where nothing did."""

    def function(x: Any, args: Any, kwargs: Any) -> Any:
        return op(x, *args, **kwargs)

    def attempt(compile_function: Callable[..., Any] | None = None) -> Any:
        torch._dynamo.reset()
        try:
            compiled = function if compile_function is None else compile_function(function)
            return compute(compiled, op, sample)
        except Exception as error:
            return error

    expected = attempt()
    if isinstance(expected, Exception):
        return f"skipped: eager mode itself raises {type(expected).__name__}"
    found = attempt(partial(fxoffload.compile, **OPTIONS))
    if isinstance(found, Exception):
        plain = attempt(partial(torch.compile, backend="aot_eager"))
        kind = "skipped: aot_eager raises too" if isinstance(plain, Exception) else "raises"
        return f"{kind}: {type(found).__name__}: {str(found).splitlines()[0][:150]}"
    for ours, theirs in zip(tree_leaves(found), tree_leaves(expected), strict=True):
        if isinstance(ours, Tensor) and not _is_close(ours, theirs):
            return "differs from eager mode"
    return None


def _is_close(left: Tensor, right: Tensor) -> bool:
    try:
        torch.testing.assert_close(left, right, equal_nan=True, check_stride=False)
    except AssertionError:
        return False
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Run the samples; 1 where one failed."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--ops", nargs="*", default=[], help="names of operators; default: all")
    parser.add_argument("--samples", type=int, default=2, help="of each operator")
    arguments = parser.parse_args(argv)
    warnings.simplefilter("ignore")
    counts: Counter[str] = Counter()
    for name, op, sample in find_samples(find_operators(arguments.ops), arguments.samples):
        problem = check(op, sample)
        kind = "right" if problem is None else problem.partition(":")[0]
        counts[kind if kind in ("right", "skipped") else "wrong"] += 1
        if problem is not None:
            print(f"{name}: {problem}", flush=True)
    statistics = fxoffload.statistics()
    moved = f"{statistics.offloads} values moved, {statistics.live_bytes} bytes live"
    print(", ".join(f"{count} {kind}" for kind, count in sorted(counts.items())), f"; {moved}")
    return 1 if counts["wrong"] or not counts["right"] else 0


if __name__ == "__main__":
    sys.exit(main())
