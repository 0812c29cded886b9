"""Fixtures of the tests of torch_internals, nearly all of which compile."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

import pytest
import torch
from compiling import LOOP, MM, compile_plainly
from torch import Tensor
from toys import aten

from fxoffload.torch_internals import compilation, partitioning


@pytest.fixture(autouse=True)
def _compiles_afresh(fresh_dynamo: None) -> None:
    """Nothing is left of the graphs of other tests."""


@pytest.fixture
def find_order(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The calls in the code that Inductor makes of a function, with or without our order."""
    from torch._inductor.utils import run_and_get_code

    # Only what will not be trained is brought into another order by Inductor.
    @torch._inductor.config.patch(reorder_for_locality=False)
    def find(
        compute: Callable[[Tensor], object], *, arranges: bool, calls: Sequence[str] = (MM, LOOP)
    ) -> list[str]:
        torch._dynamo.reset()
        # A call that takes part in nothing stands for our ops.
        for module in (compilation, partitioning):
            monkeypatch.setattr(module, "OPS", [aten.histc.default] if arranges else [])

        def compute_both(x: Tensor) -> tuple[object, Tensor]:
            return compute(x), torch.histc(x, 2)

        compiled = torch.compile(compute_both, backend=compile_plainly)
        with torch._inductor.utils.fresh_cache(), torch.no_grad():
            _, (code,) = run_and_get_code(compiled, torch.ones(64, 64))
        return re.findall(
            rf"^ +.*({'|'.join(calls)})\S*\(", code.split("def call(")[1], re.MULTILINE
        )

    return find
