"""A callback for the Trainer of Lightning: `Trainer(..., callbacks=[OffloadCallback(...)])`."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from fxoffload.config import OffloadConfig
from fxoffload.in_place import compile_in_place
from fxoffload.integrations.metrics import StepMetrics


class OffloadCallback(Callback):
    """Compiles modules in place when fitting begins, and logs StepMetrics of each batch.

    modules, dynamic, options: see compile_in_place; a path begins in the LightningModule, such as
    "model" or "model.layers". There is no default, as `training_step` decides what is called.

    Raises ConfigError for an option that cannot work; when fitting begins, also for a directory
    that cannot work, and for a name that the LightningModule does not have.
    """

    def __init__(self, modules: str, *, dynamic: bool | None = None, **options: Any) -> None:
        OffloadConfig.from_options(options)
        self._modules = modules
        self._dynamic = dynamic
        self._options = options
        self._metrics = StepMetrics()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Compile."""
        compile_in_place(pl_module, self._modules, dynamic=self._dynamic, **self._options)

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Start counting here: what ran since the last batch does not belong to this one."""
        self._metrics.take(1)

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        """Log."""
        pl_module.log_dict(self._metrics.take(1))
