"""A callback for the Trainer of Hugging Face: `Trainer(..., callbacks=[OffloadCallback(...)])`."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import TrainerCallback, TrainerControl, TrainerState, TrainingArguments

from fxoffload.config import OffloadConfig
from fxoffload.errors import ConfigError
from fxoffload.in_place import compile_in_place
from fxoffload.integrations.metrics import StepMetrics


class OffloadCallback(TrainerCallback):
    """Compiles the model in place when training begins, and adds StepMetrics to the logs.

    modules, dynamic, options: see compile_in_place. The numbers are in `state.log_history`, and in
    the logs that callbacks behind this one get. Those of `report_to` stand before it: to have the
    numbers in TensorBoard, for example, list its callback instead:
    `callbacks=[OffloadCallback(...), TensorBoardCallback()]`.

    Raises ConfigError for an option that cannot work; when training begins, also for a directory
    that cannot work, for a name that the model does not have, and if the Trainer compiles, too.
    """

    def __init__(
        self, modules: str | None = None, *, dynamic: bool | None = None, **options: Any
    ) -> None:
        OffloadConfig.from_options(options)
        self._modules = modules
        self._dynamic = dynamic
        self._options = options
        self._metrics = StepMetrics()
        self._steps = 0

    def on_train_begin(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        model: nn.Module | None = None,
        **kwargs: Any,
    ) -> None:
        """Compile."""
        assert model is not None, "the Trainer passes its model to every event"
        if args.torch_compile:
            raise ConfigError(
                f"torch_compile_backend={args.torch_compile_backend!r} in TrainingArguments "
                "compiles, as OffloadCallback does; leave out all torch_compile arguments"
            )
        compile_in_place(model, self._modules, dynamic=self._dynamic, **self._options)
        self._metrics = StepMetrics()
        self._steps = 0

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Count the step."""
        self._steps += 1

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float] | None = None,
        **kwargs: Any,
    ) -> None:
        """Add to the logs of training steps; those of evaluations stay as they are."""
        if logs is None or "loss" not in logs or not self._steps:
            return
        metrics = self._metrics.take(self._steps)
        self._steps = 0
        logs.update(metrics)
        state.log_history[-1].update(metrics)
