"""What is known of each saved value, and what is decided about it. Plain data, no torch.fx."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Tier = Literal["nvme", "host"]


@dataclass(frozen=True, slots=True)
class SavedValue:
    """One storage that the forward saves for the backward.

    name: the forward node that produces it; members: the saved nodes that look at it.
    nbytes: of the storage; member_bytes: of all members added up.
    born, last_use: positions in the forward (index of node); `last_use` counts readers of data,
    through views, and is `born` when there is none.
    first_use, freed: positions of the first and the last reader in the backward.
    gathered: True when the members cover so little of the storage that the one member `name` is
    copied out of it instead. owned: False when the storage belongs to the caller.
    refusal: why it may not be moved; None when it may.
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


@dataclass(frozen=True, slots=True)
class Keep:
    """Leave the value where it is, for `reason`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Offload:
    """Move the value to `tier` between its last forward and its first backward reader."""

    tier: Tier = "nvme"


Decision = Keep | Offload


@dataclass(frozen=True, slots=True)
class Plan:
    """A decision for every saved value, with what it is predicted to lead to.

    peak_bytes: predicted peak of saved values and returned gradients; unmoved_peak_bytes: the same
    with nothing moved. budget_bytes: the peak that was asked for, None when there was none.
    Hashable and comparable: equal graphs and options give equal plans.
    """

    values: tuple[SavedValue, ...]
    decisions: tuple[Decision, ...]
    peak_bytes: int
    unmoved_peak_bytes: int
    budget_bytes: int | None = None

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
    def fits(self) -> bool:
        """Whether the predicted peak is within the budget (True without one)."""
        return self.budget_bytes is None or self.peak_bytes <= self.budget_bytes

    def kept_bytes_by_reason(self) -> dict[str, int]:
        """Bytes that stay, by reason, largest first."""
        kept: dict[str, int] = {}
        for value, decision in zip(self.values, self.decisions, strict=True):
            if isinstance(decision, Keep):
                kept[decision.reason] = kept.get(decision.reason, 0) + value.nbytes
        return dict(sorted(kept.items(), key=lambda item: -item[1]))

    def __str__(self) -> str:
        mib = 2**20
        lines = [
            f"moved {self.offloaded_bytes / mib:.1f} of {self.saved_bytes / mib:.1f} MiB saved; "
            f"predicted peak {self.peak_bytes / mib:.1f} MiB "
            f"({self.unmoved_peak_bytes / mib:.1f} MiB with nothing moved)"
        ]
        if not self.fits:
            assert self.budget_bytes is not None
            lines.append(
                f"memory_budget of {self.budget_bytes / mib:.1f} MiB is missed: everything that "
                f"may be moved is moved, the lowest reachable peak is {self.peak_bytes / mib:.1f}"
                " MiB"
            )
        lines += [
            f"kept {nbytes / mib:.1f} MiB: {reason}"
            for reason, nbytes in self.kept_bytes_by_reason().items()
        ]
        return "\n".join(lines)
