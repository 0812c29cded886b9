"""The record of one check of this machine."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

State = Literal["ok", "warning", "problem"]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a check found.

    state: "problem" if fxoffload cannot work, "warning" if it works worse than it could.
    remedy: what to do about it; "" if nothing.
    """

    subject: str
    state: State
    fact: str
    remedy: str = ""
