"""What the steps of a trainer moved and waited for."""

from __future__ import annotations

from fxoffload import runtime
from fxoffload.backend import schedules


class StepMetrics:
    """Numbers of this process by name, for the steps since the last `take`: their means."""

    def __init__(self) -> None:
        self._before = _count()

    def take(self, steps: int) -> dict[str, float]:
        """The means of one of `steps` steps, and the predicted peak if the step has a schedule.

        fxoffload_moved_bytes: offloaded in a step. fxoffload_exposed_seconds: waited for transfers
        in a step. fxoffload_predicted_peak_bytes: see Schedule.
        """
        before, self._before = self._before, _count()
        metrics = {
            # Where a reset came in between, what has been counted since.
            name: (total - before[name] if total >= before[name] else total) / steps
            for name, total in self._before.items()
        }
        followed = schedules()
        if followed:
            metrics["fxoffload_predicted_peak_bytes"] = float(followed[0].peak_bytes)
        return metrics


def _count() -> dict[str, float]:
    done = runtime.statistics()
    return {
        "fxoffload_moved_bytes": float(done.offloaded_bytes),
        "fxoffload_exposed_seconds": done.exposed_seconds,
    }
