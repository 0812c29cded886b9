"""Compare and scale the sizes of values that change from step to step.

A schedule of larger values fits smaller ones, too. So a program keeps the largest sizes that it has
seen, and only steps of about these sizes tell what the device holds and how long compute takes.
"""

from __future__ import annotations

from dataclasses import replace

from fxoffload.schedule import HalfMeasurement, Sizes, StepMeasurement

# A step with less than this share of the bytes that a schedule was made for does not measure it.
LIKE = 0.9


def merge_sizes(*all_sizes: Sizes) -> Sizes:
    """The largest size of each value of each graph."""
    found: dict[str, dict[str, int]] = {}
    for sizes in all_sizes:
        for graph, values in sizes.items():
            known = found.setdefault(graph, {})
            for name, nbytes in values.items():
                known[name] = max(nbytes, known.get(name, 0))
    return found


def is_smaller(seen: Sizes, known: Sizes) -> bool:
    """Whether a step that saved `seen` tells nothing about one that saves `known`."""
    return _sum(seen) < LIKE * sum(
        known.get(graph, {}).get(name, 0) for graph, values in seen.items() for name in values
    )


def scale_measurement(measured: StepMeasurement, sizes: Sizes) -> StepMeasurement:
    """The assumed measurement of a step of `sizes`, until one is measured.

    Bytes and seconds grow in proportion to the values.
    """
    before = _sum(measured.sizes)
    factor = _sum(sizes) / before if before else 1.0
    halves = [_scale_half(half, factor) for half in measured.halves]
    return replace(measured, halves=halves, sizes=sizes, excess_bytes=0)


def _scale_half(half: HalfMeasurement, factor: float) -> HalfMeasurement:
    def scale(nbytes: int | None) -> int | None:
        return None if nbytes is None else int(max(1.0, factor) * max(0, nbytes))

    return replace(
        half,
        clocks={event: factor * seconds for event, seconds in half.clocks.items()},
        gap_seconds=factor * half.gap_seconds,
        held_bytes=scale(half.held_bytes),
        gap_bytes=scale(half.gap_bytes),
        peak_bytes={event: scale(nbytes) or 0 for event, nbytes in half.peak_bytes.items()},
        live_bytes={},
    )


def _sum(sizes: Sizes) -> int:
    return sum(sum(values.values()) for values in sizes.values())
