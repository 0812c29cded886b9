"""The results of the what-if functions: plain records, each printable as a table."""

from __future__ import annotations

from dataclasses import dataclass

from fxoffload.hardware import Hardware
from fxoffload.planner.plan import Plan
from fxoffload.sizes import MIB
from fxoffload.tables import format_table


@dataclass(frozen=True, slots=True)
class Forecast:
    """The predicted time and memory of a training step; `print` it for a table.

    plans: one for each compiled graph. resident_bytes: bytes of parameters and buffers, which are
    not part of the activation peak. hardware: the hardware that the step is predicted for.
    """

    plans: tuple[Plan, ...]
    resident_bytes: int
    hardware: Hardware

    @property
    def step_seconds(self) -> float:
        """Seconds of the forwards and backwards of all graphs."""
        return sum(plan.step_seconds for plan in self.plans)

    @property
    def exposed_seconds(self) -> float:
        """Seconds of the step that are spent waiting for transfers."""
        return sum(plan.exposed_seconds for plan in self.plans)

    @property
    def peak_bytes(self) -> int:
        """The largest activation peak of any graph, without what other graphs hold meanwhile."""
        return max((plan.peak_bytes for plan in self.plans), default=0)

    @property
    def written_bytes(self) -> int:
        """Bytes that the step writes to the drives."""
        return sum(find_written_bytes(plan) for plan in self.plans)

    @property
    def fits(self) -> bool:
        """Whether parameters, buffers and the activation peak fit into the device's memory."""
        return self.resident_bytes + self.peak_bytes <= self.hardware.device_bytes

    @property
    def keeps_all(self) -> bool:
        """Whether nothing is moved, and nothing recomputed beyond what torch does by itself."""
        return not any(plan.offloads or plan.cut is not None for plan in self.plans)

    def __str__(self) -> str:
        rows = [("graph", "step s", "exposed s", "peak MiB", "nothing moved MiB", "written MiB")]
        for index, plan in enumerate(self.plans):
            rows.append(
                (
                    str(index),
                    f"{plan.step_seconds:.4g}",
                    f"{plan.exposed_seconds:.4g}",
                    f"{plan.peak_bytes / MIB:.1f}",
                    f"{plan.unmoved_peak_bytes / MIB:.1f}",
                    f"{find_written_bytes(plan) / MIB:.1f}",
                )
            )
        total = (
            f"step {self.step_seconds:.4g} s, {self.exposed_seconds:.4g} s of it exposed; peak "
            f"{self.peak_bytes / MIB:.1f} MiB beside {self.resident_bytes / MIB:.1f} MiB of "
            f"parameters and buffers; {self.written_bytes / MIB:.1f} MiB written"
        )
        verdict = "fits" if self.fits else "does not fit"
        memory = f"{verdict} into {self.hardware.device_bytes / MIB:.1f} MiB of device memory"
        return "\n".join([format_table(rows), total, memory])


@dataclass(frozen=True, slots=True)
class BatchForecast:
    """The forecast of a micro-batch in a pipeline.

    batch: samples in a micro-batch. microbatches: micro-batches in a step. stages: stages of the
    pipeline. forecast: a step of one stage with one micro-batch. Source of the bubble: GPipe (arXiv
    1811.06965) and Megatron-LM (arXiv 2104.04473); it is the same for GPipe's schedule and 1F1B.
    """

    batch: int
    microbatches: int
    stages: int
    forecast: Forecast

    @property
    def bubble_fraction(self) -> float:
        """The share of the time that a stage waits for other stages: (p - 1) / (m + p - 1).

        p: stages. m: microbatches.
        """
        return (self.stages - 1) / (self.microbatches + self.stages - 1)

    @property
    def samples_per_second(self) -> float:
        """Throughput of the pipeline, if each stage takes as long as `forecast` says."""
        return self.batch / self.forecast.step_seconds * (1 - self.bubble_fraction)


@dataclass(frozen=True, slots=True)
class LargestBatch:
    """The largest micro-batches that fit `memory_budget_bytes`; `print` it for a table.

    unmoved: the largest that fits with nothing moved; None if not even one sample does. moved: the
    largest that fits with fxoffload, and as many micro-batches as in `unmoved`. merged: the same
    micro-batch as in `moved`, but only as many of them as all samples of `unmoved` need.
    """

    memory_budget_bytes: int
    unmoved: BatchForecast | None
    moved: BatchForecast
    merged: BatchForecast

    @property
    def throughput_ratio(self) -> float | None:
        """Samples per second of `moved` over those of `unmoved`; None without `unmoved`."""
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
                    f"{case.forecast.peak_bytes / MIB:.1f}",
                    f"{case.forecast.written_bytes / MIB:.1f}",
                    f"{case.bubble_fraction:.3f}",
                    f"{case.samples_per_second:.4g}",
                )
            )
        budget = f"activation peak of {self.memory_budget_bytes / MIB:.1f} MiB"
        ratio = self.throughput_ratio
        factor = "" if ratio is None else f"; throughput changes by a factor of {ratio:.3f}"
        return f"{format_table(rows)}\n{budget}{factor}"


def find_written_bytes(plan: Plan) -> int:
    """Bytes that a step by `plan` writes to the drives."""
    return sum(value.nbytes for value, decision in plan.offloads if decision.tier == "nvme")
