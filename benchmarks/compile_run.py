"""What compile_time.py measures, in the fresh process that it starts."""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import torch

import fxoffload

sys.path.append(str(Path(__file__).resolve().parent.parent))

from benchmarks.fresh_process import report, run_child
from benchmarks.models import Shape
from benchmarks.trainer import Trainer, compile_variant, make_inputs


def work(settings: dict[str, Any]) -> None:
    """Report the seconds of the first step beyond those of the second, and what was moved."""
    torch.set_num_threads(settings["threads"])
    model, tokens = make_inputs(settings["model"], Shape(**settings["shape"]), settings["device"])
    compile_model = partial(compile_variant, variant=settings["variant"], **settings["options"])
    trainer = Trainer(model, tokens, compile_model)
    fxoffload.reset_statistics()
    _, seconds = trainer.step()
    done = fxoffload.statistics()
    report(
        {
            "compile_seconds": trainer.first_seconds - seconds,
            "core_seconds": trainer.first_core_seconds,
            "pass_seconds": trainer.passes.seconds,
            "plans": len(trainer.passes.plans),
            # Which of the caller's tensors turned out to be kept anyway depends on the drive.
            "offloaded_bytes": done.offloaded_bytes + done.kept_bytes,
        }
    )


if __name__ == "__main__":
    run_child(work)
