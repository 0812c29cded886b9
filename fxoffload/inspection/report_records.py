"""What a report says, as plain records; each field is a key of its JSON under the same name.

Seconds count from the first op of the step. Bytes are what the step adds to the device's memory.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any, Literal, get_args, get_origin, get_type_hints

from fxoffload.errors import ReportError
from fxoffload.holders import Holder

# Raised when a key changes its meaning, or goes away. New keys leave it as it is.
VERSION = 1


@dataclass(frozen=True, slots=True)
class Figures:
    """peak_bytes: None where the device does not tell. compute_seconds: the step without waits."""

    peak_bytes: int | None
    step_seconds: float
    compute_seconds: float
    exposed_seconds: float

    @property
    def slowdown(self) -> float:
        """Waits, as a share of the compute."""
        return self.exposed_seconds / self.compute_seconds if self.compute_seconds else 0.0


@dataclass(frozen=True, slots=True)
class MemoryPoint:
    """Bytes from `seconds` on: predicted, predicted with nothing moved, and as measured."""

    seconds: float
    nbytes: int
    unmoved_bytes: int
    measured_bytes: int | None = None


@dataclass(frozen=True, slots=True)
class Span:
    """What a track does from `start` to `end`: a half computes, a value is written, read, awaited.

    tier: "" for compute. forward: of the call, for compute only. queued_seconds: for which a
    transfer waited for those before it, until `start`. thread: the native id of the thread that
    ran this half in the last measured step, or waited in it; None without one, and of transfers.
    """

    kind: Literal["compute", "write", "read", "wait"]
    call: int
    name: str
    tier: str
    nbytes: int
    start: float
    end: float
    forward: bool = False
    queued_seconds: float = 0.0
    thread: int | None = None


@dataclass(frozen=True, slots=True)
class CallRow:
    """One call of the program, with what its values do."""

    call: int
    graph: str
    forward_start: float
    forward_seconds: float
    backward_start: float | None
    backward_seconds: float | None
    saved_bytes: int
    moved_bytes: int
    exposed_seconds: float


@dataclass(frozen=True, slots=True)
class ValueRow:
    """A saved value of a call.

    released: when its memory may be freed, in seconds; None if it stays. prefetched: when its read
    starts; None if it needs no read. exposed_seconds: predicted waits for it.
    """

    call: int
    graph: str
    name: str
    module: str
    source: str
    op: str
    shape: str
    dtype: str
    nbytes: int
    decision: str
    reason: str
    released: float | None
    prefetched: float | None
    exposed_seconds: float


@dataclass(frozen=True, slots=True)
class LinkRow:
    """One direction of a tier in a step.

    busy_seconds: the time that `nbytes` take at `bytes_per_second`.
    measured_bytes_per_second: None where too little was moved to tell.
    """

    tier: str
    direction: Literal["write", "read"]
    nbytes: int
    bytes_per_second: float
    busy_seconds: float
    measured_bytes_per_second: float | None = None


@dataclass(frozen=True, slots=True)
class Wear:
    """What the drives take. rating_bytes, years: None where the option `endurance` is not given."""

    written_bytes: int
    step_seconds: float
    rating_bytes: int | None = None
    years: float | None = None


@dataclass(frozen=True, slots=True)
class ReportData:
    """All of a report. source: a run that was measured, or a prediction before it.

    steps: of this program so far. kept_for: why values that may move stay. measured: None before a
    step that followed the schedule was measured. holders: the largest at the predicted peak.
    """

    version: int
    source: Literal["run", "prediction"]
    steps: int
    verdict: str
    ioengine: str
    budget_bytes: int | None
    unmoved_peak_bytes: int
    saved_bytes: int
    moved_bytes: int
    kept_for: str
    predicted: Figures
    measured: Figures | None
    memory: tuple[MemoryPoint, ...]
    peak_seconds: float
    holders: tuple[Holder, ...]
    spans: tuple[Span, ...]
    calls: tuple[CallRow, ...]
    values: tuple[ValueRow, ...]
    links: tuple[LinkRow, ...]
    wear: Wear | None
    hints: tuple[str, ...]

    @property
    def tiers(self) -> tuple[str, ...]:
        """Those that transfer something, in the order in which they begin."""
        return tuple(dict.fromkeys(span.tier for span in self.spans if span.tier))

    def find_idle(self, tier: str) -> list[tuple[float, float]]:
        """From when to when `tier` neither writes nor reads, in seconds of the predicted step."""
        idle: list[tuple[float, float]] = []
        end = 0.0
        for span in sorted(self.spans, key=lambda span: span.start):
            if span.tier == tier and span.kind in ("write", "read"):
                if span.start > end:
                    idle.append((end, span.start))
                end = max(end, span.end)
        if end < self.predicted.step_seconds:
            idle.append((end, self.predicted.step_seconds))
        return idle


def encode_record(record: ReportData) -> str:
    """`record` as JSON; decode_record gives it back."""
    return json.dumps(asdict(record), allow_nan=False)


def decode_record(kind: type[Any], text: str) -> Any:
    """The record of type `kind` that encode_record wrote.

    Keys that this version does not know are left out. Raises ReportError for any other text.
    """
    try:
        found: dict[str, Any] = json.loads(text)
        version = found["version"]
        if version != VERSION:
            raise ReportError(
                f"the report has version {version}, and this fxoffload reads version {VERSION}: "
                "read it with the fxoffload that wrote it"
            )
        return _decode(kind, found)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ReportError(
            f"this is no report ({error!r}): pass what Report.to_json returned"
        ) from error


def _decode(kind: Any, value: Any) -> Any:
    if is_dataclass(kind) and isinstance(kind, type):
        hints = get_type_hints(kind)
        # A report that an earlier version wrote lacks some keys: those have defaults.
        known = {each.name: value[each.name] for each in fields(kind) if each.name in value}
        return kind(**{name: _decode(hints[name], each) for name, each in known.items()})
    if get_origin(kind) is tuple:
        (item, _) = get_args(kind)
        return tuple(_decode(item, each) for each in value)
    if value is not None and type(None) in get_args(kind):
        (inner,) = (each for each in get_args(kind) if each is not type(None))
        return _decode(inner, value)
    return value
