"""What the what-if functions answer: plain records, each printable as a table."""

from __future__ import annotations

from dataclasses import dataclass

from fxoffload.inspection.hardware import Hardware
from fxoffload.inspection.tables import format_table
from fxoffload.planner.plan import Plan

_MIB = 2**20


@dataclass(frozen=True, slots=True)
class Forecast:
    """What a training step is predicted to take; `print` it for a table.

    plans: one for each compiled graph. resident_bytes: parameters and buffers, which are no
    activations. hardware: that it is predicted for.
    """

    plans: tuple[Plan, ...]
    resident_bytes: int
    hardware: Hardware

    @property
    def step_seconds(self) -> float:
        """Seconds of forward and backward, of all graphs."""
        return sum(plan.step_seconds for plan in self.plans)

    @property
    def exposed_seconds(self) -> float:
        """Seconds of it that are spent waiting for transfers."""
        return sum(plan.exposed_seconds for plan in self.plans)

    @property
    def peak_bytes(self) -> int:
        """The largest activation peak of any graph: what others hold meanwhile is not in it."""
        return max((plan.peak_bytes for plan in self.plans), default=0)

    @property
    def written_bytes(self) -> int:
        """Bytes that go to the drives."""
        return sum(find_written_bytes(plan) for plan in self.plans)

    @property
    def fits(self) -> bool:
        """Whether parameters, buffers and the activation peak fit into the device's memory."""
        return self.resident_bytes + self.peak_bytes <= self.hardware.device_bytes

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is moved, and no more recomputed than torch does by itself."""
        return not any(plan.offloads or plan.cut is not None for plan in self.plans)

    def __str__(self) -> str:
        rows = [("graph", "step s", "exposed s", "peak MiB", "nothing moved MiB", "written MiB")]
        for index, plan in enumerate(self.plans):
            rows.append(
                (
                    str(index),
                    f"{plan.step_seconds:.4g}",
                    f"{plan.exposed_seconds:.4g}",
                    f"{plan.peak_bytes / _MIB:.1f}",
                    f"{plan.unmoved_peak_bytes / _MIB:.1f}",
                    f"{find_written_bytes(plan) / _MIB:.1f}",
                )
            )
        total = (
            f"step {self.step_seconds:.4g} s, {self.exposed_seconds:.4g} s of it exposed; peak "
            f"{self.peak_bytes / _MIB:.1f} MiB beside {self.resident_bytes / _MIB:.1f} MiB of "
            f"parameters and buffers; {self.written_bytes / _MIB:.1f} MiB written"
        )
        verdict = "fits" if self.fits else "does not fit"
        memory = f"{verdict} into {self.hardware.device_bytes / _MIB:.1f} MiB of device memory"
        return "\n".join([format_table(rows), total, memory])


@dataclass(frozen=True, slots=True)
class BatchForecast:
    """A micro-batch of `batch` samples, `microbatches` of them in a pipeline of `stages`.

    Source of the bubble: GPipe (arXiv 1811.06965) and Megatron-LM (arXiv 2104.04473), which state
    it for this schedule and for 1F1B alike.
    """

    batch: int
    microbatches: int
    stages: int
    forecast: Forecast

    @property
    def bubble_fraction(self) -> float:
        """Part of the time in which a stage waits for others: (p - 1) / (m + p - 1)."""
        return (self.stages - 1) / (self.microbatches + self.stages - 1)

    @property
    def samples_per_second(self) -> float:
        """Throughput of the pipeline, each of whose stages takes the forecast's step."""
        return self.batch / self.forecast.step_seconds * (1 - self.bubble_fraction)


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """How far the micro-batch can grow under `memory_budget_bytes`; `print` it for a table.

    unmoved: the largest that fits with nothing moved; None where not even one sample does. moved:
    the largest with fxoffload, as many micro-batches of it. merged: the same batch, in only as many
    micro-batches as the samples of all `unmoved` ones need.
    """

    memory_budget_bytes: int
    unmoved: BatchForecast | None
    moved: BatchForecast
    merged: BatchForecast

    @property
    def throughput_ratio(self) -> float | None:
        """Samples per second of `moved` over those of `unmoved`."""
        if self.unmoved is None:
            return None
        return self.moved.samples_per_second / self.unmoved.samples_per_second

    def __str__(self) -> str:
        rows = [("", "batch", "microbatches", "step s", "peak MiB", "written MiB", "bubble", "/s")]
        cases = {"nothing moved": self.unmoved, "moved": self.moved, "merged": self.merged}
        for name, case in cases.items():
            if case is None:
                rows.append((name, "none fits", "", "", "", "", "", ""))
                continue
            rows.append(
                (
                    name,
                    str(case.batch),
                    str(case.microbatches),
                    f"{case.forecast.step_seconds:.4g}",
                    f"{case.forecast.peak_bytes / _MIB:.1f}",
                    f"{case.forecast.written_bytes / _MIB:.1f}",
                    f"{case.bubble_fraction:.3f}",
                    f"{case.samples_per_second:.4g}",
                )
            )
        budget = f"activation peak of {self.memory_budget_bytes / _MIB:.1f} MiB"
        ratio = self.throughput_ratio
        factor = "" if ratio is None else f"; throughput changes by a factor of {ratio:.3f}"
        return f"{format_table(rows)}\n{budget}{factor}"


def find_written_bytes(plan: Plan) -> int:
    """Bytes of a plan that go to the drives."""
    return sum(value.nbytes for value, decision in plan.offloads if decision.tier == "nvme")
