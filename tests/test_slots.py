"""SlotAllocator: compared with a model, and its steady state over equal steps."""

from __future__ import annotations

import random

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from fxoffload.runtime.engines.slots import SlotAllocator

ALIGNMENT = 512


class SlotModel(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotAllocator(ALIGNMENT)
        self.live: dict[int, int] = {}

    @rule(nbytes=st.integers(0, 5000))
    def allocate(self, nbytes: int) -> None:
        holes_before = self.find_holes()
        offset = self.slots.allocate(nbytes)
        assert offset % ALIGNMENT == 0
        size = max(ALIGNMENT, -(-nbytes // ALIGNMENT) * ALIGNMENT)
        for other, length in self.live.items():
            assert offset + size <= other or other + length <= offset
        fitting = [start for start, length in holes_before if length >= size]
        if fitting:
            assert offset == min(fitting)
        self.live[offset] = size

    @rule(data=st.data())
    def free(self, data: st.DataObject) -> None:
        if self.live:
            offset = data.draw(st.sampled_from(sorted(self.live)))
            del self.live[offset]
            self.slots.free(offset)

    @invariant()
    def ends_with_the_last_slot(self) -> None:
        assert self.slots.end_bytes == max((o + n for o, n in self.live.items()), default=0)
        assert self.slots.allocated_bytes == sum(self.live.values())

    def find_holes(self) -> list[tuple[int, int]]:
        end, holes = 0, []
        for offset, size in sorted(self.live.items()):
            if offset > end:
                holes.append((end, offset - end))
            end = offset + size
        return holes


SlotModel.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestSlotModel = SlotModel.TestCase


def test_equal_steps_use_the_same_space() -> None:
    slots = SlotAllocator(ALIGNMENT)
    rng = random.Random(0)
    sizes = [rng.randrange(1, 100_000) for _ in range(50)]
    order = rng.sample(range(50), 50)
    ends = set()
    for _ in range(20):
        offsets = [slots.allocate(size) for size in sizes]
        ends.add(slots.end_bytes)
        for index in order:
            slots.free(offsets[index])
    assert len(ends) == 1
    assert slots.end_bytes == 0


def test_a_slot_cannot_be_freed_twice() -> None:
    slots = SlotAllocator(ALIGNMENT)
    offset = slots.allocate(1)
    slots.free(offset)
    with pytest.raises(KeyError):
        slots.free(offset)
