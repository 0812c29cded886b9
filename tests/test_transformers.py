"""The callback for the Trainer of Hugging Face, by its example."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import hf_trainer
import pytest
import torch
from trainer_runs import TEXT, assert_equal, find_parameters, run, run_main
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainerCallback, TrainingArguments

import fxoffload
from benchmarks.measure import record_memory
from fxoffload.errors import ConfigError
from fxoffload.integrations.transformers import OffloadCallback
from fxoffload.sizes import MIB

PEAK = "fxoffload_predicted_peak_bytes"


pytestmark = pytest.mark.usefixtures("fresh_dynamo", "one_thread")


def find_losses(trainer: Trainer) -> list[float]:
    return [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]


def test_blocks_and_the_whole_model_train_as_if_nothing_moved(
    spill_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"directory": spill_directory}
    unmoved, unmoved_bytes = run(hf_trainer.train, enabled=False, **options)
    expected = find_parameters(unmoved.model)
    assert unmoved_bytes == 0
    for modules in ("model.layers", "LlamaDecoderLayer", None):
        moved, moved_bytes = run(hf_trainer.train, modules=modules, **options)
        assert moved_bytes > 0
        assert find_losses(moved) == find_losses(unmoved)
        assert_equal(find_parameters(moved.model), expected)
        check_log(moved, moved_bytes)
    capsys.readouterr()
    run_main(hf_trainer.main, spill_directory)
    assert "'fxoffload_moved_bytes': " in capsys.readouterr().out


def check_log(trainer: Trainer, moved_bytes: int) -> None:
    """The log of each step has its numbers; together they are what moved."""
    steps = [entry for entry in trainer.state.log_history if "loss" in entry]
    assert sum(entry["fxoffload_moved_bytes"] for entry in steps) == moved_bytes
    assert all(entry["fxoffload_exposed_seconds"] >= 0 for entry in steps)
    assert steps[-1][PEAK] > 0
    (summary,) = (entry for entry in trainer.state.log_history if "train_runtime" in entry)
    assert "fxoffload_moved_bytes" not in summary


class MeasuredTrainer(Trainer):
    """Knows the highest activation peak of its steps, the first two left out."""

    peaks: list[int]

    def training_step(self, *args: Any, **kwargs: Any) -> Any:
        step = super().training_step
        losses: list[Any] = []
        peak_bytes = record_memory(lambda: losses.append(step(*args, **kwargs))).peak_bytes
        self.peaks = [*getattr(self, "peaks", []), peak_bytes]
        return losses[0]


def test_a_budget_is_kept(spill_directory: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hf_trainer, "Trainer", MeasuredTrainer)
    options = {"directory": spill_directory, "steps": 6, "min_bytes": "64KiB"}
    unmoved, _ = run(hf_trainer.train, enabled=False, **options)
    budget_bytes = int(0.7 * max(unmoved.peaks[2:]))
    moved, moved_bytes = run(hf_trainer.train, memory_budget=budget_bytes, **options)
    assert moved_bytes > 0
    assert max(moved.peaks[2:]) <= 1.02 * budget_bytes + MIB
    assert moved.state.log_history[-2][PEAK] <= budget_bytes
    assert find_losses(moved) == find_losses(unmoved)


class Recorder(TrainerCallback):
    """Keeps the logs that it gets."""

    def __init__(self) -> None:
        self.logs: list[dict[str, float]] = []

    def on_log(self, *_: Any, logs: dict[str, float], **__: Any) -> None:
        self.logs.append(dict(logs))


def make_trainer(folder: Path, *callbacks: TrainerCallback, **arguments: Any) -> Trainer:
    """Of a model of one layer, three steps of two sequences."""
    rows = torch.tensor(list(TEXT[:1024])).unfold(0, 64, 64)
    config = LlamaConfig(**{**hf_trainer.SHAPE.to_dict(), "num_hidden_layers": 1})
    data = [{"input_ids": row, "labels": row} for row in rows]
    return Trainer(
        LlamaForCausalLM(config),
        TrainingArguments(
            str(folder), max_steps=3, per_device_train_batch_size=2, save_strategy="no",
            dataloader_pin_memory=False, disable_tqdm=True, **arguments,
        ),
        train_dataset=data,
        eval_dataset=data[:2],
        callbacks=list(callbacks),
    )  # fmt: skip


def test_callbacks_behind_get_the_numbers(spill_directory: Path, tmp_path: Path) -> None:
    """Also in a second training, and with evaluations, whose logs stay as they are."""
    recorder = Recorder()
    offload = OffloadCallback(
        directory=spill_directory, memory_budget="min", min_bytes=1, compiler="eager"
    )
    trainer = make_trainer(
        tmp_path, offload, recorder, logging_steps=2, eval_strategy="steps", eval_steps=1
    )
    fxoffload.reset_statistics()
    for _ in range(2):
        trainer.train()
    logged = [logs for logs in recorder.logs if "fxoffload_moved_bytes" in logs]
    assert len(logged) == 2  # Of the second step of each training.
    assert all("loss" in logs for logs in logged)
    (each,) = {logs["fxoffload_moved_bytes"] for logs in logged}
    assert 6 * each == fxoffload.statistics().offloaded_bytes > 0


def test_a_trainer_that_compiles_itself_is_refused(spill_directory: Path, tmp_path: Path) -> None:
    trainer = make_trainer(
        tmp_path, OffloadCallback(directory=spill_directory), torch_compile_backend="aot_eager"
    )
    with pytest.raises(ConfigError, match=r"torch_compile_backend='aot_eager' in Tr.*; leave"):
        trainer.train()


def test_a_name_that_the_model_lacks(spill_directory: Path, tmp_path: Path) -> None:
    trainer = make_trainer(tmp_path, OffloadCallback("model.layer", directory=spill_directory))
    with pytest.raises(ConfigError, match=r"did you mean 'model.layers'\?"):
        trainer.train()


def test_options_are_checked_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown option 'memory_buget'; did you mean"):
        OffloadCallback(memory_buget="8GiB")
    with pytest.raises(ConfigError, match="memory_budget='lots' is not a size"):
        OffloadCallback(memory_budget="lots")
