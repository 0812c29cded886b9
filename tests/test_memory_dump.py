"""Dumps of what is in memory: where they go, and what they say."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor

import fxoffload
from fxoffload import memory_dump
from fxoffload.config import OffloadConfig
from fxoffload.holders import Holder
from fxoffload.sizes import MIB
from fxoffload.torch_internals.memory_observer import Observer

VALUE = Holder("tanh", 0, "", "layers.0", "/x/model.py:3", "tanh", 3 * MIB)

pytestmark = pytest.mark.usefixtures("fresh_dynamo", "fresh_programs")


@pytest.fixture
def attached(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Observer]]:
    """What a torch with CUDA would call when a device is out of memory."""
    found: list[Observer] = []
    name = "_cuda_attach_out_of_memory_observer"
    monkeypatch.setattr(torch._C, name, found.append, raising=False)
    memory_dump.watch_devices.cache_clear()
    yield found
    memory_dump.watch_devices.cache_clear()


def run(x: Tensor) -> Tensor:
    return ((x @ x).tanh() @ x).tanh().sum()


def make_input() -> Tensor:
    return torch.ones(256, 256, requires_grad=True)


def read_file(said: str, folder: Path, rank: int = 0) -> list[str]:
    """The lines of the file that `said` names."""
    found = re.search(r"all that is in memory is in (\S+)", said)
    assert found is not None
    assert Path(found[1]) == folder / f"fxoffload-memory-rank{rank}-pid{os.getpid()}.txt"
    return Path(found[1]).read_text().splitlines()


def test_a_graph_that_does_not_fit_leaves_its_holders(spill_directory: Path) -> None:
    options = {"directory": spill_directory, "compiler": "eager", "min_bytes": 1}
    compiled = torch.compile(run, backend="fxoffload", options={**options, "memory_budget": 1})
    with pytest.raises(fxoffload.BudgetError, match="make the batch smaller; all that") as caught:
        compiled(make_input())
    facts, _, heading, _, *rows = read_file(str(caught.value), spill_directory)
    assert facts.startswith("memory_budget=1 (0.0 MiB) cannot be met")
    assert heading.split() == ["MiB", "name", "call", "module", "op", "source"]
    assert len(rows) == len(caught.value.holders) > 1
    assert any(f"{__file__}:" in row for row in rows), "the line of the program that computes it"
    assert caught.value.lowest_peak_bytes > 0


def test_a_device_out_of_memory_leaves_what_the_step_holds(
    spill_directory: Path, attached: list[Observer], caplog: pytest.LogCaptureFixture
) -> None:
    """As CUDA would call it between forward and backward, with all that is saved in memory."""
    options = {"directory": spill_directory, "compiler": "eager", "memory_budget": "1GiB"}
    step = torch.compile(run, backend="fxoffload", options={**options, "min_bytes": 1})
    step(make_input()).backward()
    loss = step(make_input())  # The second step keeps all, as the budget allows.
    (observer,) = attached
    observer(0, 7 * MIB, 80 * MIB, 5 * MIB)
    loss.backward()
    (said,) = [record.getMessage() for record in caplog.records if record.levelname == "ERROR"]
    assert said.startswith(
        "cuda:0 is out of memory: 7.0 MiB are asked for, and 5.0 of 80.0 MiB are free"
    )
    _, _, _, _, *rows = read_file(said, spill_directory)
    names = [row.split()[1] for row in rows]
    assert {"tanh", "tanh_1"} <= set(names)
    assert all(row.split()[:1] == ["0.25"] and row.split()[2] == "0" for row in rows)
    assert f"{len(rows) / 4:.1f} MiB of these are values" in said


def test_nothing_is_written_between_steps(
    spill_directory: Path, attached: list[Observer], caplog: pytest.LogCaptureFixture
) -> None:
    options = {"directory": spill_directory, "compiler": "eager", "min_bytes": 1}
    step = torch.compile(run, backend="fxoffload", options={**options, "memory_budget": "min"})
    step(make_input()).backward()
    attached[0](0, MIB, MIB, 0)
    assert not caplog.records
    assert not list(spill_directory.glob("*.txt"))


def test_each_rank_has_its_file(spill_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_rank", lambda: 3)
    said = memory_dump.save_holders(OffloadConfig(directory=spill_directory), "facts", [VALUE])
    assert read_file(said, spill_directory, 3) == [
        "facts",
        "",
        "MiB   name  call  module    op    source",
        "----  ----  ----  --------  ----  -------------",
        "3.00  tanh  0     layers.0  tanh  /x/model.py:3",
    ]


def test_the_directory_of_the_environment_is_the_place(
    spill_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FXOFFLOAD_DIRECTORY", str(spill_directory))
    config = OffloadConfig.from_options({"ioengine": "memory"})
    assert read_file(memory_dump.save_holders(config, "facts", []), spill_directory)


def test_a_file_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    error = fxoffload.BudgetError("it does not fit")
    error.budget_bytes = 17
    said = memory_dump.explain_failure(error, OffloadConfig(directory=tmp_path / "gone"))
    assert re.match(
        "it does not fit; what is in memory could not be written to a file: .*No such", str(said)
    )
    assert said.budget_bytes == 17
