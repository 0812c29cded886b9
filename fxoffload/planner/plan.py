"""The saved values of a graph, and the plan that decides on each. Plain data, no torch.fx."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from fxoffload.sizes import MIB

Tier = Literal["nvme", "host"]
# Where torch's partitioner cuts the joint graph. None: as the program says. A number: so that this
# share of the activation memory is saved and the rest recomputed, 1.0 being the partitioner's own
# choice without checkpoints. "loops": that choice, but no result of a fused loop is saved because
# a call of the backward reads it.
Cut = float | Literal["loops"] | None
# Reasons why a value stays. It could be of any size:
UNCOUNTED = "size that depends on data without a bound: not counted in the predicted peak"
# It could move, but is marked (see fxoffload/marks.py):
KEPT = "kept by the program"
# It can move once steps have shown that the caller lets go of it:
RETURNED = "output of the forward, which the caller may keep"
# It could move, but the caller holds its memory anyway:
HELD = "kept by the caller"


def describe_cut(cut: Cut) -> str:
    """What a cut recomputes beside what the program says; "" for the program's own cut."""
    if cut is None:
        return ""
    if cut == "loops":
        return "what fused loops compute"
    return "nothing that checkpoints would" if cut == 1.0 else f"all but {cut:.0%} of what is saved"


@dataclass(frozen=True, slots=True)
class Origin:
    """Where in the program a value comes from; "" means unknown.

    module: path of the module that computes it. source: file and line. shape: "8 x 512".
    """

    module: str = ""
    source: str = ""
    op: str = ""
    shape: str = ""
    dtype: str = ""


@dataclass(frozen=True, slots=True)
class SavedValue:
    """One storage that the forward saves for the backward.

    name: the forward node that produces it; members: the saved nodes that look at it.
    nbytes: of the storage; member_bytes: of all members added up.
    born, last_use: positions in the forward (index of node) of the op that makes it, be it in a
    tuple, and of the last reader of its data, also through views; `born` when there is none.
    first_use, freed: positions of the first and the last reader in the backward. If nothing reads
    the value (see is_read), it dies behind `freed`, and first_use is the position after that.
    gathered: True when the members cover so little of the storage that the one member `name` is
    copied out of it instead; base_bytes: its share of that storage, which stays when the value
    does. owned: False when the storage belongs to the caller.
    refusal: why it may not be moved; None when it may. must_move: the program says that it moves.
    origin: for reports; values that differ in nothing else are equal.
    """

    name: str
    members: tuple[str, ...]
    nbytes: int
    member_bytes: int
    born: int
    last_use: int
    first_use: int
    freed: int
    gathered: bool = False
    owned: bool = True
    refusal: str | None = None
    base_bytes: int | None = None
    must_move: bool = False
    origin: Origin = field(default=Origin(), compare=False, repr=False)

    @property
    def is_read(self) -> bool:
        """Whether a backward reads the value, so that it comes back if it moves."""
        return self.first_use <= self.freed

    @property
    def has_ops(self) -> bool:
        """Whether some step may move the value, so that the graph has ops for it."""
        return self.refusal in (None, RETURNED)

    @property
    def kept_bytes(self) -> int:
        """Bytes that stay on the device when the value is kept."""
        return self.nbytes if self.base_bytes is None else self.base_bytes

    @property
    def moved_for(self) -> str:
        """Why the value moves, when it does."""
        return "the program says so" if self.must_move else "makes room"

    @property
    def counts(self) -> bool:
        """Whether a kept value is part of the peak: an input that the caller holds is not.

        An input that may move, or that only a mark keeps, is an activation of another graph, which
        this graph alone keeps alive. Outputs belong to the caller, but the graph makes them.
        """
        return self.owned or self.refusal in (None, KEPT, RETURNED, HELD)


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave the value where it is, for `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Offload:
    """Move the value to `tier` between its last forward and its first backward reader.

    released_before: name of the forward node in front of which the write is waited for; "" where
    nothing waits for it. prefetched_before: name of the backward node in front of which the read
    starts; "" is right in front of the first reader.
    """

    tier: Tier = "nvme"
    released_before: str = ""
    prefetched_before: str = ""


Decision = Keep | Offload


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision for every saved value, with the predicted time and memory of the step.

    peak_bytes: predicted activation peak; unmoved_peak_bytes: the same with nothing moved.
    budget_bytes: the peak that was asked for, None if none was. step_seconds,
    exposed_seconds, contended_seconds: predicted; see Simulation. cut: what is saved at all,
    and not recomputed. held_bytes: predicted to be on the device when the forward ends, its results
    included. kept_at_peak: bytes of kept values that are part of the peak, by the reason why they
    stay, largest first.
    Hashable and comparable: equal graphs and options give equal plans.
    """

    values: tuple[SavedValue, ...]
    decisions: tuple[Decision, ...]
    peak_bytes: int
    unmoved_peak_bytes: int
    budget_bytes: int | None = None
    step_seconds: float = 0.0
    exposed_seconds: float = 0.0
    contended_seconds: float = 0.0
    cut: Cut = None
    held_bytes: int = 0
    kept_at_peak: tuple[tuple[str, int], ...] = ()

    @property
    def offloads(self) -> tuple[tuple[SavedValue, Offload], ...]:
        """The values that move, with their decisions, in order of birth."""
        pairs = zip(self.values, self.decisions, strict=True)
        return tuple((value, decision) for value, decision in pairs if type(decision) is Offload)

    @property
    def offloaded_bytes(self) -> int:
        """Bytes that leave the device in one step."""
        return sum(value.nbytes for value, _ in self.offloads)

    @property
    def saved_bytes(self) -> int:
        """Bytes of all saved storages."""
        return sum(value.nbytes for value in self.values)

    @property
    def compute_seconds(self) -> float:
        """What the step would take if transfers cost nothing."""
        return self.step_seconds - self.exposed_seconds - self.contended_seconds

    def kept_bytes_by_reason(self) -> dict[str, int]:
        """Bytes that stay, by reason, largest first."""
        kept: dict[str, int] = {}
        for value, decision in zip(self.values, self.decisions, strict=True):
            if isinstance(decision, Keep):
                kept[decision.reason] = kept.get(decision.reason, 0) + value.nbytes
        return dict(sorted(kept.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        lines = [
            f"moved {self.offloaded_bytes / MIB:.1f} of {self.saved_bytes / MIB:.1f} MiB saved; "
            f"predicted peak {self.peak_bytes / MIB:.1f} MiB "
            f"({self.unmoved_peak_bytes / MIB:.1f} MiB with nothing moved), "
            f"step {self.step_seconds:.3f} s, {self.exposed_seconds:.3f} s of it exposed"
        ]
        if self.contended_seconds > 0.0:
            lines[0] += f", {self.contended_seconds:.3f} s taken from compute by transfers"
        if self.budget_bytes is not None and not self.offloads:
            lines.append(
                f"memory_budget of {self.budget_bytes / MIB:.1f} MiB is met with nothing moved"
            )
        if self.cut is not None:
            lines.append(f"recomputed: {describe_cut(self.cut)}")
        at_peak = dict(self.kept_at_peak)
        lines += [
            f"kept {nbytes / MIB:.1f} MiB ({at_peak.get(reason, 0) / MIB:.1f} MiB of the peak): "
            f"{reason}"
            for reason, nbytes in self.kept_bytes_by_reason().items()
        ]
        return "\n".join(lines)
