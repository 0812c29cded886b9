"""What the stores of a step did since it began."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
from test_metered import NBYTES, move

from fxoffload.runtime.engines.memory import MemoryEngine
from fxoffload.runtime.engines.metered import MeteredEngine
from fxoffload.runtime.program.store_watch import StoreWatch


@dataclass(eq=False)
class FakeStore:
    """Has waited so long, and moves by these engines."""

    exposed_seconds: float = 0.0
    engines: dict[str, Any] = field(default_factory=dict[str, Any])


def test_seconds_of_waiting_count_from_the_first_use() -> None:
    watch: Any = StoreWatch(measures=False)
    first, second = FakeStore(3.0), FakeStore(1.0)
    assert watch.exposed_seconds == 0.0
    watch.add(first)
    first.exposed_seconds = 5.0
    watch.add(first)
    watch.add(second)
    second.exposed_seconds = 1.5
    assert watch.exposed_seconds == 2.5
    assert watch.close() == {}


@pytest.mark.parametrize("measures", [False, True])
def test_transfers_are_recorded_where_the_step_is_measured(measures: bool) -> None:
    engine = MeteredEngine(MemoryEngine(2**24))
    store = FakeStore(engines={"nvme": engine})
    move(engine)
    watch: Any = StoreWatch(measures=measures)
    watch.add(store)
    watch.add(store)
    move(engine)
    flows = watch.close()
    assert [flow.write.nbytes for flow in flows.values()] == [NBYTES] * measures
    assert [flow.read.nbytes for flow in flows.values()] == [NBYTES] * measures
    assert engine.windows == ()
    engine.close()
