"""The callback for the Trainer of Lightning, by its example."""

from __future__ import annotations

from pathlib import Path

import lightning_fit
import pytest
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from trainer_runs import STEPS, assert_equal, find_parameters, run, run_main

from fxoffload.errors import ConfigError
from fxoffload.integrations.lightning import OffloadCallback

pytestmark = [
    pytest.mark.usefixtures("fresh_dynamo", "one_thread"),
    # What Lightning says of itself and of this machine.
    pytest.mark.filterwarnings("ignore::UserWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning:lightning.*"),
    pytest.mark.filterwarnings("ignore::FutureWarning:lightning.*"),
]


def test_blocks_train_as_if_nothing_moved(
    spill_directory: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"directory": spill_directory}
    (unmoved, _), unmoved_bytes = run(lightning_fit.train, enabled=False, **options)
    (moved, trainer), moved_bytes = run(lightning_fit.train, **options)
    assert_equal(find_parameters(moved), find_parameters(unmoved))
    assert unmoved_bytes == 0
    # Of the last batch; each moves the same.
    assert STEPS * trainer.callback_metrics["fxoffload_moved_bytes"] == moved_bytes > 0
    assert trainer.callback_metrics["fxoffload_exposed_seconds"] >= 0
    assert trainer.callback_metrics["fxoffload_predicted_peak_bytes"] > 0
    run_main(lightning_fit.main, spill_directory)
    assert "'fxoffload_moved_bytes': tensor(" in capsys.readouterr().out


class Tiny(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.Tanh())


@pytest.mark.parametrize(
    ("modules", "words"),
    [("layer", r"did you mean 'layers'\?"), ("layers", "does not compile Linear in place")],
)
def test_modules_that_cannot_be_compiled(modules: str, words: str, spill_directory: Path) -> None:
    callback = OffloadCallback(modules, directory=spill_directory)
    with pytest.raises(ConfigError, match=words):
        callback.on_fit_start(Trainer(logger=False, enable_checkpointing=False), Tiny())


def test_options_are_checked_at_once() -> None:
    with pytest.raises(ConfigError, match="unknown option 'memory_buget'; did you mean"):
        OffloadCallback("model", memory_buget="8GiB")
