"""Watch the stores of a step: the seconds of waiting for them, and their transfers."""

from __future__ import annotations

from fxoffload.runtime.engines.metered import Window, open_windows
from fxoffload.runtime.store.store import OffloadStore
from fxoffload.schedule import TierFlow


class StoreWatch:
    """The stores that a step moves values through. measures: whether transfers are recorded."""

    def __init__(self, *, measures: bool) -> None:
        self._measures = measures
        self._exposed_before: dict[OffloadStore, float] = {}
        self._windows: list[dict[str, Window]] = []

    @property
    def exposed_seconds(self) -> float:
        """Seconds of waiting for transfers, since each store was added."""
        return sum(store.exposed_seconds - before for store, before in self._exposed_before.items())

    def add(self, store: OffloadStore) -> None:
        """Watch `store`, unless it is watched already."""
        if store not in self._exposed_before:
            self._exposed_before[store] = store.exposed_seconds
            if self._measures:
                self._windows.append(open_windows(store.engines))

    def close(self) -> dict[str, TierFlow]:
        """End the recording; return the transfers of each tier."""
        return {tier: each.close() for windows in self._windows for tier, each in windows.items()}
